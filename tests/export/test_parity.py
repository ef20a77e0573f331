"""Every lowering against eager PyTorch: logits within 1e-4, and equal codes, greedy and seeded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.conftest import near_a_boundary
from valle2.engine import Backend
from valle2.engine.bundle.contract import EOS_CODE
from valle2.export.attention import LOWERINGS
from valle2.export.graphs import ar_inputs, cache_names
from valle2.export.models import ARModel
from valle2.export.models.reference import generate
from valle2.export.verify import verify_ar
from valle2.runtime import Settings
from valle2.runtime.generation.ar_runner import ARRunner
from valle2.runtime.generation.engine import advance_rows
from valle2.runtime.generation.sampling import ranked_probabilities, sample_group, uniforms
from valle2.runtime.generation.scheduler import Scheduler
from valle2.runtime.generation.sequence import Sequence
from valle2.runtime.types import EOS

GROUPS = (1, 2, 4, 8)
CAPACITY = 320
STEPS = 200
TOLERANCE = 1e-4
LOGITS_ROUNDING = 1e-5
Make = Callable[[int, str, int], tuple[ARModel, Backend]]
MakeBuilt = Callable[[int, str, int, str], tuple[ARModel, Backend]]


@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize("group_size", GROUPS)
@pytest.mark.parametrize("batch", [1, 4])
def test_logits_of_prefill_and_200_cached_steps(
    ar_backend: Make, group_size: int, lowering: str, batch: int
) -> None:
    worst, _ = steps_beside_eager(*ar_backend(group_size, lowering, CAPACITY), batch)
    assert worst < TOLERANCE


@torch.no_grad()
def steps_beside_eager(
    model: ARModel, backend: Backend, batch: int, steps: int = STEPS
) -> tuple[float, float]:
    """Run a ragged prefill and cached steps on both sides, each with its own caches.

    Returns:
        The greatest difference of the logits, and the share of rows and slots with the same likeliest code.
    """
    kinds = {tensor.name: tensor.dtype for tensor in backend.spec.inputs}
    group_size = model.config.group_size
    rng = np.random.default_rng(batch)
    lengths = rng.integers(3, 20, batch)
    new = lengths + 1 + rng.integers(0, 9, batch)
    past = np.zeros(batch, np.int64)
    feeds = {k: v.numpy().astype(kinds[k]) for k, v in ar_inputs(model.config, batch, 1, CAPACITY).items()}
    caches = model.empty_caches(batch, CAPACITY)
    worst, same = 0.0, []
    for _ in range(steps + 1):
        width = int(new.max())
        feeds["text"] = rng.integers(0, model.config.vocab_size + 1, (batch, width))
        feeds["codes"] = rng.integers(0, 1024, (batch, width, group_size))
        feeds |= {"text_lengths": lengths, "past_lengths": past, "new_lengths": new}
        inputs = [torch.from_numpy(feeds[name]) for name in ("text", "codes", "text_lengths")]
        counts = torch.from_numpy(past), torch.from_numpy(new)
        window = model.window(*counts, width, CAPACITY, inputs[2])
        expected, caches = model.forward_cached(inputs[0], inputs[1], inputs[2], window, caches)
        found = backend.run(feeds)
        worst = max(worst, float(np.abs(found["logits"] - expected.numpy()).max()))
        same.append(float(np.mean(found["logits"].argmax(axis=2) == expected.numpy().argmax(axis=2))))
        feeds |= {name: found[f"{name}_out"] for name in cache_names(model.config.layers)}
        past = past + new
        assert np.array_equal(found["past_lengths_out"], past)
        new = np.ones(batch, np.int64)
    return worst, float(np.mean(same))


@pytest.mark.parametrize("lowering", LOWERINGS)
def test_rows_may_prefill_while_others_decode(ar_backend: Make, lowering: str) -> None:
    model, backend = ar_backend(2, lowering, CAPACITY)
    assert verify_ar(model, backend, CAPACITY, batch=4) < TOLERANCE


def reference_codes(
    model: ARModel, row: Sequence, steps: int, *, cached: bool
) -> tuple[list[int], bool, list[NDArray[np.float32]]]:
    """Codes of the eager model under the NumPy rule, and the logits of every step."""
    history, trace, settings = row.prompt, list[NDArray[np.float32]](), row.settings

    def sample(logits: NDArray[np.float32], step: int) -> tuple[NDArray[np.int64], bool]:
        nonlocal history
        trace.append(logits)
        codes, history, ended = sample_group(
            logits,
            history,
            row.uniforms[step],
            top_p=settings.top_p,
            window=settings.window,
            threshold=settings.threshold,
            least=row.min_frames - step * model.config.group_size,
        )
        return codes, ended

    codes, ended = generate(model, row.text, row.prompt, steps, sample, cached=cached)
    return codes.tolist(), ended, trace


def agrees(model: ARModel, row: Sequence, found: tuple[list[int], bool], steps: int, *, cached: bool) -> bool:
    """Whether these are the reference's codes. Asserts that another draw is within rounding of a boundary."""
    codes, ended, trace = reference_codes(model, row, steps, cached=cached)
    if found == (codes, ended):
        return True
    same = 0
    while same < min(len(codes), len(found[0])) and codes[same] == found[0][same]:
        same += 1
    step, slot = divmod(same, model.config.group_size)
    logits, draws = trace[step][slot], row.uniforms[step, slot]
    assert near_a_boundary(logits, draws, row.settings.top_p, LOGITS_ROUNDING), (same, found, codes)
    return False


def as_likely(model: ARModel, row: Sequence, found: tuple[list[int], bool], steps: int, slack: float) -> bool:
    """Whether the codes are the reference's greedy codes up to a code that is as likely within `slack`."""
    codes, ended, trace = reference_codes(model, row, steps, cached=True)
    ours, theirs = ([*said, EOS_CODE] if over else said for said, over in (found, (codes, ended)))
    same = next((n for n, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), None)
    if same is None:
        return found == (codes, ended)
    logits = trace[same // model.config.group_size][same % model.config.group_size]
    return bool(logits[ours[same]] > logits.max() - slack)


def decoded(runner: ARRunner, rows: list[Sequence], steps: int) -> list[tuple[list[int], bool]]:
    """Codes of every row up to its `<eos>`. Each row enters one step after the row before."""
    scheduler = Scheduler(runner.rows)
    sequences = [scheduler.add(replace(row, step_limit=steps, codes=[])) for row in rows]
    while not all(sequence.finished for sequence in sequences):
        advance_rows(scheduler, runner)
    return [(sequence.codes, sequence.finish_reason == EOS) for sequence in sequences]


def ragged_rows(model: ARModel, settings: Settings, steps: int) -> list[Sequence]:
    """Four rows with texts and prompts of different lengths."""
    group_size = model.config.group_size
    rng = np.random.default_rng(group_size)
    return [
        Sequence(
            np.append(rng.integers(0, model.config.vocab_size, length), model.config.vocab_size),
            rng.integers(0, 1024, groups * group_size),
            uniforms(seed, 0, steps, group_size),
            settings,
        )
        for seed, (length, groups) in enumerate([(5, 6), (11, 0), (3, 9), (8, 1)])
    ]


@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize("group_size", GROUPS)
@pytest.mark.parametrize(
    "settings", [Settings(top_p=0.0, threshold=1.0), Settings(top_p=0.6)], ids=["greedy", "seeded"]
)
def test_codes_equal_the_reference_in_a_ragged_batch(
    ar_backend: Make, group_size: int, lowering: str, settings: Settings
) -> None:
    model, backend = ar_backend(group_size, lowering, CAPACITY)
    slots, steps = ARRunner(backend, model.config.to_dict(), CAPACITY, 4, 10), 40
    rows = ragged_rows(model, settings, steps)
    batch = decoded(slots, rows, steps)
    agreed = [agrees(model, row, found, steps, cached=True) for row, found in zip(rows, batch, strict=True)]
    alone = [agrees(model, row, decoded(slots, [row], steps)[0], steps, cached=True) for row in rows]
    uncached = agrees(model, rows[0], batch[0], steps, cached=False)
    greedy = settings.top_p == 0
    least = len(rows) - (not greedy)  # one seeded row may differ by a draw on a boundary
    assert sum(agreed) >= least and sum(alone) >= least and (uncached or not greedy)


EARLY = [Settings(top_p=1.0, threshold=1.0), Settings(top_p=1.0, threshold=0.0)]
"""`<eos>` comes by the first draw of a slot, or by the redraw, which threshold 0 makes for every code."""


def ending_early(model: ARModel, settings: Settings, steps: int) -> list[Sequence]:
    """Rows whose random numbers draw `<eos>` at once, in the middle of a group, twice in one, and often."""
    group, deciding = model.config.group_size, int(settings.threshold == 0)
    last = group - 1
    places = [[(0, 0)], [(0, last), (1, 0)], [(3, 0), (3, last), (6, 0)], [(step, last) for step in range(7)]]
    rows = [
        replace(row, min_frames=3 * group + 1 + index)
        for index, row in enumerate(ragged_rows(model, settings, steps))
    ]
    for row, wanted in zip(rows, places, strict=True):
        for step, slot in wanted:
            _, _, trace = reference_codes(model, row, step + 1, cached=True)
            if len(trace) > step:
                order, probs = ranked_probabilities(trace[step][slot])
                rank = order.tolist().index(EOS_CODE)
                row.uniforms[step, slot, deciding] = probs[:rank].sum(dtype=np.float64) + probs[rank] / 2
    return rows


def check_early_ends(model: ARModel, runner: ARRunner, settings: Settings, steps: int = 12) -> None:
    """Rows that draw `<eos>` too early have the codes of the reference, alone and in a ragged batch."""
    rows = ending_early(model, settings, steps)
    batch = decoded(runner, rows, steps)
    agreed = [agrees(model, row, found, steps, cached=True) for row, found in zip(rows, batch, strict=True)]
    assert sum(agreed) >= len(rows) - 1  # one row may differ by a draw on a boundary
    for row, found in zip(rows, batch, strict=True):
        assert decoded(runner, [row], steps) == [found]
        assert len(found[0]) >= row.min_frames
        free = decoded(runner, [replace(row, min_frames=0)], steps)[0]
        assert free[1] and len(free[0]) < row.min_frames, "it ends early if it may"
    assert any(ended for _, ended in batch)


@pytest.mark.parametrize("settings", EARLY, ids=["first draw", "redraw"])
@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize("group_size", GROUPS)
def test_an_early_end_is_rejected_as_in_the_reference(
    ar_backend: Make, group_size: int, lowering: str, settings: Settings
) -> None:
    model, backend = ar_backend(group_size, lowering, CAPACITY)
    check_early_ends(model, ARRunner(backend, model.config.to_dict(), CAPACITY, 4, 10), settings)
