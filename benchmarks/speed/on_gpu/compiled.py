"""An AR step in PyTorch with a cache of fixed length: eager, and compiled with CUDA graphs.

This is what a user of PyTorch would do to make a step fast. The cache is updated in place, so that no step
copies it. The sampler is argmax, which costs less than ours.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor
from torch._dynamo import mark_static_address
from torch.nn import functional

from valle2.benchmarks.speed.on_gpu.setup import Result, Setup
from valle2.benchmarks.speed.on_gpu.steps import POSITIONS, ms
from valle2.export import ARModel, read_checkpoint
from valle2.export.models.ar import Cache, Window, merge_heads, split_heads

WARM, TIMED = 6, 60
Step = Callable[[Tensor, Tensor, Window, list[Cache]], Tensor]


def attend_in_place(
    query: Tensor, key: Tensor, value: Tensor, cache: Cache, window: Window
) -> tuple[Tensor, Cache]:
    """Attention of one new position per row. All rows write the same position of the cache."""
    heads = cache[0].shape[1]
    for part, fresh in zip(cache, (key, value), strict=True):
        part.index_copy_(2, window.past[:1], split_heads(fresh, heads))
    out = functional.scaled_dot_product_attention(split_heads(query, heads), *cache, attn_mask=window.mask)
    return merge_heads(out), cache


def time_compiled(setup: Setup) -> Result:
    """Milliseconds of an eager and of a compiled step of one row, in the precision of the last timing."""
    device, half = torch.device(setup.device), setup.on_gpu
    torch.set_num_threads(setup.threads)
    model = read_checkpoint(setup.model().checkpoint).ar.to(device, torch.float16 if half else torch.float32)
    mode = "reduce-overhead" if setup.on_gpu else "default"
    found = {"eager, static cache": measure(model, step_of(model), device)}
    began = time.perf_counter()
    compiled: Step = torch.compile(step_of(model), mode=mode, fullgraph=True)
    found[f"torch.compile, {mode}"] = measure(model, compiled, device)
    return {
        "precision": "fp16" if half else "fp32",
        "ms": found,
        "compile_seconds": round(time.perf_counter() - began, 1),
        "torch": torch.__version__,
    }


def step_of(model: ARModel) -> Step:
    """One step: the greedy codes (1, 1, G) after the codes that were given."""
    text = torch.zeros(1, 1, dtype=torch.int64, device=model.code_table.weight.device)
    ahead = torch.ones(1, dtype=torch.int64, device=text.device)

    def step(codes: Tensor, past: Tensor, window: Window, caches: list[Cache]) -> Tensor:
        logits, _ = model.forward_cached(text, codes, ahead, window, caches, attend_in_place)
        return logits[:, None, :, :1024].argmax(dim=-1)

    return step


@torch.inference_mode()
def measure(model: ARModel, step: Step, device: torch.device) -> float:
    """Median milliseconds of a step of one row whose cache holds the positions of the other timings."""
    capacity = min(POSITIONS, model.config.max_groups) + 1
    place = device, model.code_table.weight.dtype
    caches = [(key.to(*place), value.to(*place)) for key, value in model.empty_caches(1, capacity)]
    for part in (part for pair in caches for part in pair):
        mark_static_address(part)  # a CUDA graph may then write it in place
    codes = torch.zeros(1, 1, model.config.group_size, dtype=torch.int64, device=device)
    past = torch.full((1,), capacity - 1, device=device)
    new = torch.ones(1, dtype=torch.int64, device=device)
    window = Window(past, new, torch.ones(1, 1, 1, capacity, dtype=torch.bool, device=device))
    times = []
    for _ in range(WARM + TIMED):
        began = time.perf_counter()
        codes = step(codes, past, window, caches).clone()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return ms(median(times[WARM:]))
