"""The baseline of `bench compare`: eager PyTorch with a KV cache that grows by `torch.cat`.

It runs on torch's default device, and its models must be there. Its results are on the host.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from valle2.export import Checkpoint
from valle2.export.models.ar import ARModel, Cache, Window, merge_heads, split_heads
from valle2.export.models.reference import layout, refine
from valle2.runtime import Settings
from valle2.runtime.generation.sampling import sample_group, uniforms
from valle2.runtime.types import Codes


@dataclass(frozen=True, slots=True)
class EagerTimes:
    """Seconds of one synthesis by stage, and its AR steps. prefill: until the first group. ar: after it."""

    prefill: float
    ar: float
    nar: float
    codec: float
    steps: int

    @property
    def total(self) -> float:
        return self.prefill + self.ar + self.nar + self.codec


def attend_cat(
    query: Tensor, key: Tensor, value: Tensor, cache: Cache, window: Window
) -> tuple[Tensor, Cache]:
    """Attention of one row with a growing cache. A prefill is causal; a step sees the whole cache."""
    heads = cache[0].shape[1]
    keys = torch.cat([cache[0], split_heads(key, heads)], dim=2)
    values = torch.cat([cache[1], split_heads(value, heads)], dim=2)
    causal = query.shape[1] > 1
    out = functional.scaled_dot_product_attention(split_heads(query, heads), keys, values, is_causal=causal)
    return merge_heads(out), (keys, values)


@torch.inference_mode()
def synthesize(
    checkpoint: Checkpoint, text: Codes, prompt: Codes, settings: Settings, max_steps: int
) -> tuple[Codes, EagerTimes]:
    """All stages in eager PyTorch.

    Args:
        text: (L,) ids with `<eos>`. prompt: (P, Q) codes, P a multiple of the group size.
        max_steps: AR steps after which decoding stops without `<eos>`.

    Returns:
        Codes (T, Q) and the seconds of each stage.
    """
    began = time.perf_counter()
    first, prefill, steps = decode(checkpoint.ar, text, prompt[:, 0], settings, max_steps)
    decoded = time.perf_counter()
    codes = refine(checkpoint.nar, text, prompt, first)
    refined = time.perf_counter()
    assert checkpoint.codec is not None
    checkpoint.codec[1](torch.as_tensor(codes)[None]).cpu()
    done = time.perf_counter()
    ar = decoded - began - prefill
    return codes, EagerTimes(prefill, ar, refined - decoded, done - refined, steps)


def decode(
    model: ARModel, text: Codes, prompt: Codes, settings: Settings, max_steps: int
) -> tuple[Codes, float, int]:
    """Codes (T,) of codebook 0, seconds until the first group, and AR steps."""
    began, prefill = time.perf_counter(), 0.0
    group = model.config.group_size
    draws = uniforms(settings.seed, 0, max_steps, group)
    words, codes, length = layout(model, text, prompt)
    kind = next(model.parameters()).dtype
    caches = [(keys.to(kind), values.to(kind)) for keys, values in model.empty_caches(1, 0)]
    past, history, out = torch.zeros(1, dtype=torch.int64), prompt, list[Codes]()
    for step in range(max_steps):
        new = torch.tensor([words.shape[1]])
        window = Window(past, new, torch.ones(0, dtype=torch.bool))
        logits, caches = model.forward_cached(words, codes, length, window, caches, attend_cat)
        drawn, history, ended = sample_group(
            logits[0].float().cpu().numpy(),
            history,
            draws[step],
            top_p=settings.top_p,
            window=settings.window,
            threshold=settings.threshold,
        )
        out.append(drawn)
        prefill = prefill or time.perf_counter() - began
        if ended:
            break
        past = past + new
        words, codes = torch.zeros(1, 1, dtype=torch.int64), torch.as_tensor(drawn).reshape(1, 1, -1)
    return np.concatenate(out), prefill, len(out)
