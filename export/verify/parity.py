"""Compares exported graphs with eager PyTorch, before a bundle is written.

The inputs have other shapes than the traced ones: ragged batches, a prefill and then cached steps. Graph and
module get the same inputs in every step. `judge` decides which differences are right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from valle2.engine import Backend
from valle2.engine.backends.stateful import Stateful
from valle2.engine.bundle.contract import (
    AR,
    CODEBOOK_SIZE,
    CODEBOOKS,
    DECODER,
    ENCODER,
    LOGITS,
    NAR,
    OUT_SUFFIX,
    STREAM,
)
from valle2.engine.bundle.nar_inputs import NARInputs
from valle2.export.codecs import CodecConfig, EncodecConfig
from valle2.export.graphs import ar_inputs, cache_names
from valle2.export.models import ARModel, ModelConfig, NARModel
from valle2.export.verify.float64 import in_float64
from valle2.export.verify.judge import (
    LOGITS_TOLERANCE,
    MULTIPLE,
    Array,
    Difference,
    Judge,
    Sides,
    gap,
    greatest,
    judge_choices,
    judge_logits,
)

AUDIO_TOLERANCE = 1e-3
CODES_TOLERANCE = 0.01
"""Share of codes that may differ: rounding decides between two equally good codes."""
CHECK_STEPS = 8
"""AR calls of a comparison."""
MOST_FRAMES, LEAST_FRAMES = 40, 20
"""Frames of the NAR's first and last stages."""


@dataclass(frozen=True, slots=True)
class Call:
    """Inputs of one AR call. text_lengths, past and new (B,): text, cached and new positions by row."""

    text: Array
    codes: Array
    text_lengths: Array
    past: Array
    new: Array


Run = tuple[Array, list[Array]]
"""Logits (calls, B, G, 1025), and the caches after the last call, each (B, H, positions, D)."""


def ar_calls(config: ModelConfig, batch: int) -> list[Call]:
    """A ragged prefill, then mixed cached calls."""
    generator = np.random.default_rng(0)
    batch = 1 if config.style.text_ahead else batch  # such rows are prefilled one by one
    lengths = generator.integers(1, min(24, config.max_text), batch)
    groups = generator.integers(0, min(12, config.max_groups - CHECK_STEPS), batch)
    new, past, calls = lengths + config.style.code_bos + groups, np.zeros(batch, np.int64), []
    for step in range(CHECK_STEPS):
        steps = int(new.max())
        text = generator.integers(0, config.text_rows, (batch, steps))
        codes = generator.integers(0, CODEBOOK_SIZE, (batch, steps, config.group_size))
        calls.append(Call(text, codes, lengths, past, new))
        past, new = past + new, 1 + (np.arange(batch) + step) % 2
    return calls


def run_graph(backend: Backend, config: ModelConfig, calls: Sequence[Call], capacity: int) -> Run:
    """Run the calls on a graph. Each call's caches are the next call's inputs."""
    names, batch, logits = cache_names(config.layers), len(calls[0].past), []
    kinds = {tensor.name: tensor.dtype for tensor in backend.spec.inputs}  # a build has other caches
    given = ar_inputs(config, batch, 1, capacity)
    feeds = {name: value.numpy().astype(kinds[name]) for name, value in given.items()}
    for call in calls:
        feeds |= {"text": call.text, "codes": call.codes, "text_lengths": call.text_lengths}
        feeds |= {"past_lengths": call.past, "new_lengths": call.new}
        found = backend.run(feeds)
        logits.append(found[LOGITS])
        feeds |= {name: found[f"{name}{OUT_SUFFIX}"] for name in names}
    return np.stack(logits), [feeds[name] for name in names]


def run_module(model: ARModel, calls: Sequence[Call]) -> Run:
    """Run the calls on the module, with caches of just the needed length."""
    capacity = max(int(call.past.max()) + call.text.shape[1] for call in calls)
    caches, logits = model.empty_caches(len(calls[0].past), capacity), []
    for call in calls:
        values = (call.text, call.codes, call.text_lengths, call.past, call.new)
        text, codes, lengths, past, new = map(torch.from_numpy, values)
        window = model.window(past, new, text.shape[1], capacity, lengths)
        found, caches = model.forward_cached(text, codes, lengths, window, caches)
        logits.append(found.numpy())
    return np.stack(logits), [part.numpy() for pair in caches for part in pair]


@torch.no_grad()
def verify_ar(
    model: ARModel, backend: Backend, capacity: int, judge: Judge | None = None, *, batch: int = 3
) -> float:
    """Compare a ragged prefill and then mixed cached calls.

    Args:
        capacity: cache positions of the graph. judge: collects the differences. batch: rows.

    Returns:
        The greatest difference of the logits.

    Raises:
        ParityError: see `Judge.settle`. The other comparisons raise it too.
    """
    judge, config, calls = judge or Judge(), model.config, ar_calls(model.config, batch)
    found, eager = run_graph(backend, config, calls, capacity), run_module(model, calls)
    difference = gap(found[0], eager[0])
    judge.record(AR, difference)
    if difference <= LOGITS_TOLERANCE:
        return difference
    with in_float64():
        truth = run_module(model, calls)
    axes, chosen = ("step", "row", "slot", "code"), found[0].argmax(axis=-1)
    sides = Sides("the logit", axes, found[0], eager[0], truth[0], chosen)
    hint = first_cache(config, calls[-1], found[1], eager[1], truth[1])
    results = judge_logits(AR, judge, [sides])
    judge.settle(AR, [Difference(one.figure, one.bound, one.sentence + hint) for one in results])
    return difference


def first_cache(config: ModelConfig, last: Call, *runs: Sequence[Array]) -> str:
    """Name the first wrong cache, in the order of the layers. runs: caches of graph, eager and float64."""
    valid = (last.past + last.new)[:, None, None, None]
    for name, *parts in zip(cache_names(config.layers), *runs, strict=True):
        length = parts[1].shape[2]
        inside = np.arange(length)[None, None, :, None] < valid
        graph, eager, truth = (np.where(inside, part[:, :, :length], 0.0) for part in parts)
        off, rounding = gap(graph, truth), gap(eager, truth)
        if not off <= MULTIPLE * rounding:
            return f"; the first cache that is out is {name}, by {off:.2e} (eager by {rounding:.2e})"
    return "; no cache is out"


def nar_inputs(config: ModelConfig, stage: int, generator: np.random.Generator) -> NARInputs[Array]:
    """Inputs of a stage: two rows of different lengths, and another number of frames in every stage."""
    frames = min(max(MOST_FRAMES - 3 * (stage - 1), LEAST_FRAMES), config.max_frames)
    return NARInputs(
        text=generator.integers(0, config.nar_text_rows, (2, 9)),
        text_lengths=np.array([9, 4]),
        codes=generator.integers(0, CODEBOOK_SIZE, (2, frames, config.codebooks)),
        prompt_lengths=np.array([frames // 3, frames // 4]),
        frame_lengths=np.array([frames, frames - frames // 8]),
        stage=np.array(stage),
    )


@torch.no_grad()
def verify_nar(model: NARModel, backend: Backend, judge: Judge | None = None) -> float:
    """Compare every stage on a ragged batch. Returns the greatest difference of the logits.

    The graph's codes must be those that the module chooses by the graph's own logits, except for ties.
    """
    judge, generator = judge or Judge(), np.random.default_rng(1)
    other, differences = 0.0, list[float]()
    logits, scores = list[Sides](), list[Sides]()
    for stage in range(1, model.config.codebooks):
        given = nar_inputs(model.config, stage, generator)
        inputs = given.map(torch.from_numpy)
        eager, found = model(inputs), backend.run(given.feeds())
        chosen = model.choose(torch.from_numpy(found[LOGITS]), inputs).numpy()
        other = max(other, float((found["codes_out"] != chosen).mean()))
        differences.append(gap(found[LOGITS], eager.numpy()))
        judge.record(NAR, differences[-1])
        if not differences[-1] <= LOGITS_TOLERANCE:
            parts = by_float64(model, inputs, eager, found)
            logits.append(parts[0])
            scores += parts[1:]
    sentence = f"{other:.1%} of the codes differ from PyTorch's choice by the graph's logits, over 1 %"
    judge.settle("nar codes", [Difference(other, CODES_TOLERANCE, sentence)])
    if logits:
        choices = judge_choices(scores) if scores else []
        judge.settle(NAR, judge_logits(NAR, judge, logits) + choices)
    return max(differences)


def by_float64(
    model: NARModel, inputs: NARInputs[Tensor], eager: Tensor, found: Mapping[str, Array]
) -> list[Sides]:
    """A stage's logits, and also its scores if codes are chosen by vectors."""
    with in_float64():
        truth = model(inputs)
        exact = code_scores(model, truth, inputs)
    of, axes = f"of stage {int(inputs.stage)}", ("row", "position", "code")
    values = found[LOGITS], eager.numpy(), truth.numpy()
    if not model.config.vector_width:
        return [Sides(f"the logit {of}", axes, *values, found["codes_out"])]
    ours = code_scores(model, eager, inputs).numpy()
    return [
        Sides(f"the logit {of}", axes, *values, found[LOGITS].argmax(axis=-1)),
        Sides(f"the score {of}", axes, ours, ours, exact.numpy(), found["codes_out"]),
    ]


def code_scores(model: NARModel, logits: Tensor, inputs: NARInputs[Tensor]) -> Tensor:
    """Scores (B, T', 1024) of the codes. `NARModel.choose` takes the code with the greatest score."""
    if not model.config.vector_width:
        return logits
    wanted, vectors = model.wanted(logits, inputs)
    return 2 * wanted @ vectors.T - (vectors * vectors).sum(dim=1)


@torch.no_grad()
def verify_codec(
    encoder: nn.Module,
    decoder: nn.Module,
    config: CodecConfig | EncodecConfig,
    backends: Mapping[str, Backend],
    judge: Judge | None = None,
) -> dict[str, float]:
    """Compare encoder and decoder.

    Returns:
        For the encoder the share of codes that differ, for the decoder the greatest sample difference.
    """
    judge, generator = judge or Judge(), np.random.default_rng(2)
    audio = generator.standard_normal((1, 50 * config.hop)).astype(np.float32) * 0.1
    expected = encoder(torch.from_numpy(audio)).numpy()
    found = backends[ENCODER].run({"audio": audio})["codes"]
    codes = generator.integers(0, CODEBOOK_SIZE, (1, 45, CODEBOOKS))
    wave = decoder(torch.from_numpy(codes)).numpy()
    spoken = backends[DECODER].run({"codes": codes})["audio"]
    return {
        ENCODER: judge.check(ENCODER, codes_difference(found, expected)),
        DECODER: judge.check(DECODER, audio_difference(spoken, wave)),
    }


@torch.no_grad()
def verify_stream(decoder: nn.Module, backend: Backend, judge: Judge | None = None) -> float:
    """Compare a streaming decoder, chunk by chunk, with one call. Returns the greatest sample difference."""
    codes = np.random.default_rng(3).integers(0, CODEBOOK_SIZE, (1, 40, CODEBOOKS))
    whole = decoder(torch.from_numpy(codes)).numpy()
    stream = Stateful(backend)
    parts = [stream.run({"codes": part})["audio"] for part in np.split(codes, (7, 8, 23), axis=1)]
    return (judge or Judge()).check(STREAM, audio_difference(np.concatenate(parts, axis=1), whole))


def codes_difference(found: Array, expected: Array) -> Difference:
    """The share of codes (1, T, Q) that differ."""
    share = float((found != expected).mean())
    _, frame, book = greatest(found != expected)
    return Difference(
        share,
        CODES_TOLERANCE,
        f"{share:.1%} of the codes differ, over 1 %; the first is codebook {book} of frame {frame}, "
        f"{found[0, frame, book]} in the graph and {expected[0, frame, book]} in eager PyTorch",
    )


def audio_difference(found: Array, expected: Array) -> Difference:
    """The greatest difference of samples (1, N), relative to the loudest sample if that is above 1."""
    at = greatest(found - expected)
    return Difference(
        gap(found, expected) / max(1.0, float(np.abs(expected).max())),
        AUDIO_TOLERANCE,
        f"sample {at[1]} is {found[at]:.6g} in the graph and {expected[at]:.6g} in eager PyTorch; it may "
        f"differ by {AUDIO_TOLERANCE:.0e} of the loudest",
    )
