"""The sampler in the graph against the NumPy rule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tests.conftest import near_a_boundary
from valle2.engine.bundle.contract import EOS_CODE
from valle2.export.attention import PORTABLE_OPSET
from valle2.export.graphs import quiet_export
from valle2.export.models.sampler import EMPTY, Sampling, sample_group
from valle2.runtime.generation import sampling as rule

CASES = 10_000
CLASSES = 1025
ROUNDING = CLASSES * 2**-24  # worst drift of the graph's float32 cumulative sum


def random_logits(rng: np.random.Generator, count: int) -> NDArray[np.float32]:
    """Peaked, flat, tied and single-candidate distributions in turn."""
    logits = rng.standard_normal((count, 1, CLASSES)) * rng.choice([0.5, 2.0, 6.0], (count, 1, 1))
    logits[1::4] = np.round(logits[1::4])
    single = logits[2::8]
    single[:] = -1e4
    single[np.arange(len(single)), 0, rng.integers(0, CLASSES, len(single))] = 5.0
    return np.asarray(logits, np.float32)


class SamplerGraph(torch.nn.Module):
    """The sampler alone, as the AR graph holds it."""

    def forward(self, logits: torch.Tensor, *fields: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return sample_group(logits, Sampling(*fields))


def run_graph(arrays: tuple[NDArray[Any], ...], folder: Path) -> list[NDArray[Any]]:
    """Export the sampler for a dynamic batch and run it in ONNX Runtime."""
    import onnxruntime

    examples = tuple(torch.from_numpy(array[:2]) for array in arrays)
    shapes = tuple({0: torch.export.Dim.DYNAMIC} for _ in arrays)
    with quiet_export(), torch.no_grad():
        program = torch.onnx.export(
            SamplerGraph(), examples, dynamo=True, opset_version=PORTABLE_OPSET,
            dynamic_shapes=(shapes[0], shapes[1:]), verbose=False,
        )  # fmt: skip
    assert program is not None
    program.save(str(folder / "sampler.onnx"))
    session = onnxruntime.InferenceSession(str(folder / "sampler.onnx"))
    names = [value.name for value in session.get_inputs()]
    return list(session.run(None, dict(zip(names, arrays, strict=True))))


def test_ten_thousand_random_cases(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    logits = random_logits(rng, CASES)
    top_p = rng.choice([0.0, 0.2, 0.7, 0.95, 1.0], CASES).astype(np.float32)
    window = rng.choice([1, 3, 10, 25], CASES)
    threshold = rng.choice([0.0, 0.1, 0.3, 1.0], CASES).astype(np.float32)
    history = rng.integers(0, CLASSES - 1, (CASES, 25))
    best = logits[:, 0].argmax(axis=1)
    history[::2, -4] = np.where(best[::2] < CLASSES - 1, best[::2], 7)
    short = rng.integers(0, 25, CASES)
    history[np.arange(25)[None, :] < 25 - short[:, None]] = EMPTY
    draws = rng.random((CASES, 1, 2), dtype=np.float32)
    arrays = (logits, history, draws, top_p, window, threshold)
    codes, after, finished, _ = run_graph(arrays, tmp_path)
    differing = 0
    for i in range(CASES):
        past = history[i][history[i] != EMPTY]
        expected, grown, ended = rule.sample_group(
            logits[i],
            past,
            draws[i],
            top_p=float(top_p[i]),
            window=int(window[i]),
            threshold=float(threshold[i]),
        )
        assert bool(finished[i]) == (int(codes[i, 0]) == CLASSES - 1)
        if ended == bool(finished[i]) and expected.tolist() == codes[i][: len(expected)].tolist():
            kept = after[i]
            assert np.array_equal(kept[kept != EMPTY], grown[-25:])
        else:
            differing += 1
            assert near_a_boundary(logits[i, 0], draws[i, 0], float(top_p[i]), ROUNDING), i
    assert differing <= CASES // 1000


def one(
    logits: list[float], history: list[int], *, top_p: float = 0.0, window: int = 10, threshold: float = 0.1
) -> int:
    """The code that the NumPy rule draws from a few classes. The redraw's uniform number is 0.999."""
    full = np.full((1, CLASSES), -50, np.float32)
    full[0, : len(logits)] = logits
    draws = np.array([[0.5, 0.999]], np.float32)
    codes, _, ended = rule.sample_group(
        full, np.array(history, np.int64), draws, top_p=top_p, window=window, threshold=threshold
    )
    return EOS_CODE if ended else int(codes[0])


def test_top_p_zero_is_argmax_without_a_repeat() -> None:
    assert one([1.0, 3.0, 2.0], []) == 1


def test_a_repeat_within_the_window_is_drawn_again_and_one_outside_is_not() -> None:
    assert one([1.0, 1.1], [1]) == 0
    assert one([1.0, 1.1], [1] + [9] * 10) == 1


def test_threshold_one_switches_the_rule_off_even_when_all_repeat() -> None:
    assert one([1.0, 1.1], [1] * 10, threshold=1.0) == 1


def test_earlier_slots_of_a_group_count_as_history() -> None:
    logits = np.full((2, CLASSES), -50, np.float32)
    logits[:, :2] = [1.0, 1.1]
    draws = np.array([[0.5, 0.999], [0.5, 0.999]], np.float32)
    codes, _, _ = rule.sample_group(logits, np.zeros(0, np.int64), draws, top_p=0, window=10, threshold=0.1)
    assert codes.tolist() == [1, 0]


@pytest.mark.parametrize("slot", [0, 1, 2, 3])
def test_eos_in_a_slot_keeps_the_codes_before_it(slot: int) -> None:
    logits = np.full((4, CLASSES), -50, np.float32)
    logits[np.arange(4), [3, 4, 5, 6]] = 9
    logits[slot] = -50
    logits[slot, EOS_CODE] = 9
    codes, history, ended = rule.sample_group(
        logits, np.array([8]), np.zeros((4, 2), np.float32), top_p=0, window=10, threshold=0.1
    )
    assert ended and codes.tolist() == [3, 4, 5][:slot] and history.tolist() == [8, *[3, 4, 5][:slot]]


def test_random_numbers_do_not_depend_on_how_many_are_taken() -> None:
    long, short = rule.uniforms(7, 1, 50, 2), rule.uniforms(7, 1, 9, 2)
    assert np.array_equal(long[:9], short)
    assert not np.array_equal(short, rule.uniforms(7, 2, 9, 2))
    assert not np.array_equal(short, rule.uniforms(8, 1, 9, 2))


def test_a_likeliest_eos_ends_where_the_family_says_so() -> None:
    logits = torch.full((2, 1, CLASSES), -50.0)
    logits[:, 0, 3] = 1.0
    logits[0, 0, CLASSES - 1] = 1.1
    draws = torch.full((2, 1, 2), 0.999)
    ones = torch.ones(2)
    sampling = Sampling(torch.full((2, 10), EMPTY), draws, ones, torch.full((2,), 10), ones)
    plain = sample_group(logits, sampling)[0]
    ended, _, finished, _ = sample_group(logits, sampling, argmax_ends=True)
    assert plain.tolist() == [[3], [3]] and ended.tolist() == [[CLASSES - 1], [3]]
    assert finished.tolist() == [True, False]
