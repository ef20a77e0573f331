"""A plain reference generator: eager PyTorch, one request, with or without a cache.

Tests compare graphs, backends and the runtime with it. The caller passes the sampling rule, so that the
runtime's NumPy rule can be used without an import of the runtime.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from valle2.engine.bundle.contract import EOS_CODE
from valle2.engine.bundle.nar_inputs import NARInputs
from valle2.export.models.ar import ARModel
from valle2.export.models.nar import NARModel

Codes = NDArray[np.int64]
Sampler = Callable[[NDArray[np.float32], int], tuple[Codes, bool]]
"""(logits (G, 1025), step) -> (the codes before `<eos>`, whether `<eos>` was sampled)."""


def greedy(logits: NDArray[np.float32], step: int) -> tuple[Codes, bool]:
    """The likeliest code of every slot of a group."""
    codes = logits.argmax(axis=1)
    ends = np.flatnonzero(codes == EOS_CODE)
    return (codes[: ends[0]], True) if len(ends) else (codes, False)


def layout(model: ARModel, text: Codes, codes: Codes) -> tuple[Tensor, Tensor, Tensor]:
    """Lay out one row: ids with `<eos>`, `<bos>`, groups -> text (1, S), codes (1, S, G), length (1,)."""
    groups = torch.as_tensor(codes).reshape(-1, model.config.group_size)
    start = len(text) + model.config.style.code_bos
    length = start + len(groups)
    words = torch.zeros(1, length, dtype=torch.int64)
    words[0, : len(text)] = torch.as_tensor(text)
    laid = torch.zeros(1, length, model.config.group_size, dtype=torch.int64)
    laid[0, start:] = groups
    return words, laid, torch.tensor([len(text)])


@torch.no_grad()
def generate(
    model: ARModel,
    text: Codes,
    prompt: Codes,
    max_steps: int,
    sample: Sampler = greedy,
    *,
    cached: bool = True,
) -> tuple[Codes, bool]:
    """Decode codebook 0.

    Args:
        text: (L,) int64, with `<eos>`. prompt: (P,) int64, P a multiple of G. max_steps: most groups.
        sample: draws a group. cached: use a KV cache; otherwise run the whole row at every step.

    Returns:
        The new codes (T,) int64, and whether `<eos>` ended them.
    """
    run = cached_logits(model, text, prompt, max_steps) if cached else whole_logits(model, text, prompt)
    out: list[Codes] = []
    logits = run(None)
    for step in range(max_steps):
        codes, finished = sample(logits.numpy(), step)
        out.append(codes)
        if finished:
            return np.concatenate(out), True
        if step + 1 < max_steps:
            logits = run(codes)
    return (np.concatenate(out) if out else np.zeros(0, np.int64)), False


Run = Callable[[Codes | None], Tensor]


def whole_logits(model: ARModel, text: Codes, prompt: Codes) -> Run:
    """Logits after each added group, by running the whole row again."""
    row = prompt

    def run(group: Codes | None) -> Tensor:
        nonlocal row
        row = row if group is None else np.concatenate([row, group])
        logits: Tensor = model(*layout(model, text, row))[0, -1]
        return logits

    return run


def cached_logits(model: ARModel, text: Codes, prompt: Codes, max_steps: int) -> Run:
    """Logits after each added group, with a KV cache."""
    words, codes, length = layout(model, text, prompt)
    capacity = words.shape[1] + max_steps
    caches = model.empty_caches(1, capacity)
    past = torch.zeros(1, dtype=torch.int64)

    def run(group: Codes | None) -> Tensor:
        nonlocal caches, past
        new_words, new_codes = words, codes
        if group is not None:
            new_words = torch.zeros(1, 1, dtype=torch.int64)
            new_codes = torch.from_numpy(group).reshape(1, 1, -1)
        steps = new_words.shape[1]
        window = model.window(past, torch.tensor([steps]), steps, capacity, length)
        logits, caches = model.forward_cached(new_words, new_codes, length, window, caches)
        past = past + steps
        return logits[0]

    return run


@torch.no_grad()
def refine(model: NARModel, text: Codes, prompt: Codes, first: Codes) -> Codes:
    """Predict codebooks 1..Q-1 on torch's default device: prompt (P, Q), first (T,) -> codes (T, Q)."""
    codes = torch.zeros(1, len(prompt) + len(first), model.config.codebooks, dtype=torch.int64)
    codes[0, : len(prompt)] = torch.as_tensor(prompt)
    codes[0, len(prompt) :, 0] = torch.as_tensor(first)
    words, lengths = torch.as_tensor(text)[None], torch.tensor([len(text)])
    start, total = torch.tensor([len(prompt)]), torch.tensor([codes.shape[1]])
    for stage in range(1, model.config.codebooks):
        inputs = NARInputs(words, lengths, codes, start, total, torch.tensor(stage))
        codes[0, len(prompt) :, stage] = model.choose(model(inputs), inputs)[0]
    return codes[0, len(prompt) :].cpu().numpy()
