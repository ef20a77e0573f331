"""Nucleus and repetition-aware sampling (Algorithm 1) as tensors: the last part of the AR graph.

The reference is `valle2.runtime.generation.sampling` in NumPy. Both read the same uniform numbers.
Axes: B batch, G group size, V classes with `<eos>` last, W history slots.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from valle2.engine.bundle.contract import EOS_CODE

EMPTY = -1
"""A history slot without a code."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """Sampling inputs by row.

    history: (B, W) int64, the latest codes, newest last, `EMPTY` where there is none yet.
    uniforms: (B, G, 2) float32 in [0, 1), for the first draw and the redraw of each slot.
    top_p, threshold: (B,) float32. repeat_window: (B,) int64, K in the paper.
    """

    history: Tensor
    uniforms: Tensor
    top_p: Tensor
    repeat_window: Tensor
    threshold: Tensor


def draw(cumulative: Tensor, uniform: Tensor, kept: Tensor) -> Tensor:
    """Invert a CDF over its first `kept` entries: cumulative (B, G, V), others (B, G, 1) -> (B, G, 1)."""
    mass = cumulative.gather(2, kept - 1)
    index = (cumulative <= uniform * mass).to(torch.int64).sum(dim=2, keepdim=True)
    return torch.minimum(index, kept - 1)


def sample_group(
    logits: Tensor, sampling: Sampling, argmax_ends: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Draw one group of codes per row.

    Args:
        logits: (B, G, V) float32, all from one forward pass.
        sampling: see `Sampling`. argmax_ends: draw `<eos>` whenever it is the likeliest class.

    Returns:
        codes (B, G) int64; history (B, W) int64 with the codes before `<eos>` appended; finished (B,) bool;
        log-probabilities (B, G) float32 of the codes under the full softmax.
    """
    classes = logits.shape[2]
    ranked, order = torch.topk(logits, classes, dim=2)
    log_probs = torch.log_softmax(ranked, dim=2)
    probs = log_probs.exp()
    cumulative = probs.cumsum(dim=2)
    inside = (cumulative - probs) < sampling.top_p[:, None, None]
    kept = inside.to(torch.int64).sum(dim=2, keepdim=True).clamp(min=1)
    first = draw(cumulative, sampling.uniforms[:, :, :1], kept)
    redraw = draw(cumulative, sampling.uniforms[:, :, 1:], torch.full_like(kept, classes))
    if argmax_ends:
        ends = order[:, :, :1] == EOS_CODE
        first, redraw = (torch.where(ends, torch.zeros_like(rank), rank) for rank in (first, redraw))
    ranks, history = choose(order, first, redraw, sampling)
    codes = order.gather(2, ranks)[:, :, 0]
    finished = (codes == EOS_CODE).to(torch.int64).sum(dim=1) > 0
    return codes, history, finished, log_probs.gather(2, ranks)[:, :, 0]


def choose(order: Tensor, first: Tensor, redraw: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Apply the repetition rule slot by slot, so that each slot sees the earlier ones.

    Tensor sizes are never operands here: each would be copied from the host at every step, and a CUDA graph
    cannot capture such a step.

    Returns:
        Ranks (B, G, 1) int64 of the chosen codes, and history (B, W) int64.
    """
    history, alive = sampling.history, torch.ones_like(sampling.threshold, dtype=torch.bool)
    window = sampling.repeat_window[:, None]
    index = torch.arange(history.shape[1])
    age = (index[-1:] - index + 1)[None, :]
    ranks = []
    for slot in range(order.shape[1]):
        code = order[:, slot].gather(1, first[:, slot])
        repeats = ((history == code) & (age <= window)).to(torch.int64).sum(dim=1, keepdim=True)
        share = torch.minimum(repeats + 1, window).to(torch.float32) / window.to(torch.float32)
        again = share > sampling.threshold[:, None]
        ranks.append(torch.where(again, redraw[:, slot], first[:, slot]))
        code = order[:, slot].gather(1, ranks[-1])
        alive = alive & (code[:, 0] != EOS_CODE)
        history = torch.where(alive[:, None], torch.cat([history[:, 1:], code], dim=1), history)
    return torch.stack(ranks, dim=1), history
