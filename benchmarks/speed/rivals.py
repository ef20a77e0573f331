"""What a user might run instead, for `bench compare`: eager PyTorch compiled, or in bfloat16.

- `compile`: `torch.compile` of an AR step with a cache of fixed length, and of a NAR pass. Its shapes are
  those of the one request, so nothing is compiled again. A prefill stays eager. Needs a C++ compiler.
- `bf16`: AR and NAR of the eager baseline in bfloat16, where the processor multiplies bfloat16 itself.

A rival that this machine cannot run has a reason instead of times.
"""

from __future__ import annotations

import copy
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from valle2.benchmarks.options import RIVALS
from valle2.benchmarks.speed.eager import EagerTimes, synthesize
from valle2.benchmarks.speed.hardware import INNER, PRODUCTS, ROWS, WIDTH
from valle2.engine.bundle.nar_inputs import NARInputs
from valle2.engine.bundle.precisions import STORED
from valle2.export import Checkpoint
from valle2.export.models.ar import ARModel, Cache, Window, merge_heads, split_heads
from valle2.export.models.nar import NARModel
from valle2.export.models.reference import layout
from valle2.runtime import Settings
from valle2.runtime.generation.sampling import sample_group, uniforms
from valle2.runtime.types import Codes

COMPILE, BF16 = RIVALS
COMPILERS = ("c++", "g++", "clang++", "cl")
BF16_INSTRUCTIONS = {"amx_bf16": "AMX", "avx512_bf16": "AVX512_BF16"}
Run = Callable[[int], tuple[Codes, EagerTimes]]
"""AR steps at the most -> codes (T, Q) and times of one synthesis."""


@dataclass(slots=True)
class Rival:
    """One rival.

    Args:
        about: what it is. run: synthesises once; None if this machine cannot. precision: of its numbers.
        times: of every turn. same: the least share of codebook 0 that is as eager PyTorch in fp32 draws it.
    """

    about: str
    run: Run | None = None
    precision: str = STORED
    times: list[EagerTimes] = field(default_factory=list)
    same: float = 1.0

    def turn(self, steps: int, reference: Codes) -> None:
        """Synthesise once. reference: (T, Q) of eager PyTorch."""
        if self.run:
            codes, took = self.run(steps)
            both = min(len(codes), len(reference))
            self.same = min(self.same, float(np.mean(codes[:both, 0] == reference[:both, 0])))
            self.times.append(took)


def rivals(
    names: Sequence[str], checkpoint: Checkpoint, text: Codes, prompt: Codes, settings: Settings
) -> dict[str, Rival]:
    """The rivals by name, on a CPU.

    Args:
        text: (L,) ids with `<eos>`. prompt: (P, Q) codes, P a multiple of the group size.
    """
    made = {COMPILE: compiled, BF16: bfloat16}
    return {name: made[name](checkpoint, text, prompt, settings) for name in names}


def compiler() -> str:
    """The C++ compiler that `torch.compile` would find; empty if there is none."""
    return next((found for found in map(shutil.which, COMPILERS) if found), "")


def bf16_instructions() -> str:
    """The processor's instructions for products of bfloat16; empty if it has none, or torch does not say."""
    try:
        has = torch.cpu.get_capabilities()
    except AttributeError:
        return ""
    return next((name for flag, name in BF16_INSTRUCTIONS.items() if has.get(flag)), "")


def bfloat16(checkpoint: Checkpoint, text: Codes, prompt: Codes, settings: Settings) -> Rival:
    """The eager baseline in bfloat16."""
    instructions = bf16_instructions()
    if not instructions:
        return Rival("no bfloat16 instructions")
    ar, nar = copy.deepcopy(checkpoint.ar), copy.deepcopy(checkpoint.nar)
    half = replace(checkpoint, ar=ar.to(torch.bfloat16), nar=nar.to(torch.bfloat16))
    name = f"eager bf16 ({instructions})"
    return Rival(name, lambda steps: synthesize(half, text, prompt, settings, steps), BF16)


def bf16_peak(threads: int) -> float:
    """Operations a second of a bfloat16 product of a NAR's size in PyTorch, the best of several."""
    torch.set_num_threads(threads)
    left, right = (torch.ones(shape, dtype=torch.bfloat16) for shape in ((ROWS, WIDTH), (WIDTH, INNER)))
    times = []
    for _ in range(PRODUCTS):
        began = time.perf_counter()
        torch.mm(left, right)
        times.append(time.perf_counter() - began)
    return 2 * ROWS * WIDTH * INNER / min(times)


def compiled(checkpoint: Checkpoint, text: Codes, prompt: Codes, settings: Settings) -> Rival:
    """The compiled baseline."""
    if not compiler():
        return Rival("no C++ compiler")
    ar, nar, codec = checkpoint.ar, checkpoint.nar, checkpoint.codec
    assert codec is not None
    step, logits = torch.compile(StaticStep(ar), dynamic=False), torch.compile(PassLogits(nar), dynamic=False)

    @torch.inference_mode()
    def run(steps: int) -> tuple[Codes, EagerTimes]:
        began = time.perf_counter()
        first, prefill, count = decode(ar, step, text, prompt[:, 0], settings, steps)
        decoded = time.perf_counter()
        codes = refine(nar, logits, text, prompt, first)
        refined = time.perf_counter()
        codec[1](torch.as_tensor(codes)[None])
        done = time.perf_counter()
        ar_seconds = decoded - began - prefill
        return codes, EagerTimes(prefill, ar_seconds, refined - decoded, done - refined, count)

    return Rival("torch.compile fp32", run)


def attend_static(
    query: Tensor, key: Tensor, value: Tensor, cache: Cache, window: Window
) -> tuple[Tensor, Cache]:
    """Attention of one row; the new keys and values are written into the cache where it stands."""
    heads = cache[0].shape[1]
    places = window.past + torch.arange(query.shape[1])
    for whole, new in zip(cache, (key, value), strict=True):
        whole.index_copy_(2, places, split_heads(new, heads))
    out = functional.scaled_dot_product_attention(split_heads(query, heads), *cache, attn_mask=window.mask)
    return merge_heads(out), cache


class StaticStep(torch.nn.Module):
    """The AR with a cache of fixed length, which it changes."""

    def __init__(self, model: ARModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, words: Tensor, codes: Tensor, length: Tensor, past: Tensor, caches: Tensor) -> Tensor:
        """Logits (G, 1025) after new positions. caches: (layers, 2, 1, H, C, D). Others: see `ARModel`."""
        new, capacity = words.shape[1], caches.shape[4]
        window = self.model.window(past, torch.full_like(past, new), new, capacity, length)
        pairs = [(pair[0], pair[1]) for pair in caches]
        logits, _ = self.model.forward_cached(words, codes, length, window, pairs, attend_static)
        return logits[0]


class PassLogits(torch.nn.Module):
    """The logits of one pass of the NAR over a row without padding."""

    def __init__(self, model: NARModel) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, text: Tensor, lengths: Tensor, codes: Tensor, start: int, total: Tensor, stage: Tensor
    ) -> Tensor:
        """(1, T, 1024). start: prompt frames, of which the compiler makes a constant. Others: `NARInputs`."""
        inputs = NARInputs(text, lengths, codes, torch.full_like(total, start), total, stage)
        wanted = torch.arange(text.shape[1] + start, text.shape[1] + codes.shape[1])
        return self.model.head(self.model.masked(*self.model.embed(inputs), stage, wanted), stage)


def decode(
    model: ARModel,
    step: Callable[..., Tensor],
    text: Codes,
    prompt: Codes,
    settings: Settings,
    max_steps: int,
) -> tuple[Codes, float, int]:
    """Codes (T,) of codebook 0, seconds until the first group, and AR steps. step: `StaticStep`, compiled."""
    began, prefill = time.perf_counter(), 0.0
    group = model.config.group_size
    draws = uniforms(settings.seed, 0, max_steps, group)
    words, codes, length = layout(model, text, prompt)
    empty = model.empty_caches(1, words.shape[1] + max_steps)
    caches = torch.stack([torch.stack(pair) for pair in empty])
    past, history, out = torch.zeros(1, dtype=torch.int64), prompt, list[Codes]()
    run: Callable[..., Tensor] = StaticStep(model)
    for index in range(max_steps):
        logits = run(words, codes, length, past, caches)
        drawn, history, ended = sample_group(
            logits.numpy(),
            history,
            draws[index],
            top_p=settings.top_p,
            window=settings.window,
            threshold=settings.threshold,
        )
        out.append(drawn)
        prefill, run = prefill or time.perf_counter() - began, step
        if ended:
            break
        past = past + words.shape[1]
        words, codes = torch.zeros(1, 1, dtype=torch.int64), torch.as_tensor(drawn).reshape(1, 1, -1)
    return np.concatenate(out), prefill, len(out)


def refine(model: NARModel, logits: Callable[..., Tensor], text: Codes, prompt: Codes, first: Codes) -> Codes:
    """Codes (T, Q) of the speech. logits: `PassLogits`, compiled. first: (T,), codebook 0."""
    codes = torch.zeros(1, len(prompt) + len(first), model.config.codebooks, dtype=torch.int64)
    codes[0, : len(prompt)] = torch.as_tensor(prompt)
    codes[0, len(prompt) :, 0] = torch.as_tensor(first)
    words, lengths = torch.as_tensor(text)[None], torch.tensor([len(text)])
    start, total = torch.tensor([len(prompt)]), torch.tensor([codes.shape[1]])
    for book in range(1, model.config.codebooks):
        stage = torch.tensor(book)
        found = logits(words, lengths, codes, len(prompt), total, stage)
        inputs = NARInputs(words, lengths, codes, start, total, stage)
        codes[0, len(prompt) :, book] = model.choose(found, inputs)[0]
    return codes[0, len(prompt) :].numpy()
