"""Padding to a ladder of sizes, with a function in place of a graph."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.engine.backends.fake import FakeBackend
from valle2.engine import BackendError, GraphSpec
from valle2.engine.backends.base import ArrayBuffer
from valle2.engine.backends.ladder import WARM_CALLS, Ladder, is_same, lengths_up_to
from valle2.engine.bundle.specs import TensorSpec

Array = NDArray[Any]
SPEC = GraphSpec(
    "sums.onnx",
    (
        TensorSpec("values", "int64", ("batch", "places")),
        TensorSpec("lengths", "int64", ("batch",)),
        TensorSpec("factor", "int64", ()),
    ),
    (TensorSpec("sums", "int64", ("batch", "places")),),
)
RUNGS = [{"batch": rows, "places": places} for rows in (1, 2, 4) for places in (4, 8)]


def running_sums(feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Sums of the places before each row's end, times the factor."""
    assert (feeds["lengths"] >= 1).all(), "a row of padding has a place"
    places = np.arange(feeds["values"].shape[1])
    seen = feeds["values"] * (places < feeds["lengths"][:, None])
    return {"sums": feeds["factor"] * seen.cumsum(axis=1)}


@pytest.fixture
def calls() -> list[tuple[int, ...]]:
    return []


@pytest.fixture
def ladder(calls: list[tuple[int, ...]]) -> Ladder:
    """A ladder that records the shapes of its calls."""

    def counted(feeds: Mapping[str, Array]) -> dict[str, Array]:
        calls.append(feeds["values"].shape)
        return running_sums(feeds)

    def outputs(sizes: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
        return {"sums": (sizes["batch"], sizes["places"])}

    return Ladder(FakeBackend(SPEC, counted), RUNGS, outputs, {"lengths": 1})


def feeds(rows: int, places: int, factor: int = 1) -> dict[str, Array]:
    values = np.random.default_rng(rows + 10 * places).integers(0, 9, (rows, places))
    return {"values": values, "lengths": np.full(rows, places), "factor": np.array(factor)}


@pytest.mark.parametrize("rows", [1, 2, 3, 4])
@pytest.mark.parametrize("places", [1, 3, 4, 5, 8])
def test_padding_changes_nothing(
    ladder: Ladder, calls: list[tuple[int, ...]], rows: int, places: int
) -> None:
    """Also in buffers that hold an earlier, longer call."""
    for factor in (1, 2):
        ladder.run(feeds(4, 8))
        given = feeds(rows, places, factor)
        found = ladder.run(given)
        assert found is not None
        assert np.array_equal(found["sums"][:rows, :places], running_sums(given)["sums"])
    assert calls[-1] == (min(n for n in (1, 2, 4) if n >= rows), 4 if places <= 4 else 8)


def test_a_result_is_the_callers_own(ladder: Ladder) -> None:
    first = ladder.run(feeds(1, 4))
    assert first is not None
    kept = first["sums"].copy()
    ladder.run(feeds(1, 4, factor=5))
    assert np.array_equal(first["sums"], kept)


def test_what_fits_no_rung_runs_elsewhere(ladder: Ladder, calls: list[tuple[int, ...]]) -> None:
    assert ladder.run(feeds(5, 4)) is None and ladder.run(feeds(1, 9)) is None and not calls
    with pytest.raises(BackendError, match="input values is int64"):
        ladder.run(feeds(1, 4) | {"values": np.zeros((1, 4, 1), np.int64)})


def test_only_what_differs_is_written(ladder: Ladder, monkeypatch: pytest.MonkeyPatch) -> None:
    ladder.run(feeds(2, 4))
    written: list[Array] = []
    monkeypatch.setattr(ArrayBuffer, "write", lambda self, values: written.append(values))
    ladder.run(feeds(2, 4, factor=3))
    inputs = [values for values in written if values.shape != (2, 4)]  # the other is the output
    assert len(written) == 2 and [values.shape for values in inputs] == [()]


def full(sizes: Mapping[str, int]) -> dict[str, Array]:
    return feeds(sizes["batch"], sizes["places"])


def test_every_rung_is_warm_before_the_first_request(ladder: Ladder, calls: list[tuple[int, ...]]) -> None:
    """The largest first, whose memory the others take. Then each is replayed once."""
    assert ladder.warm_up(full)
    sizes = [(rung["batch"], rung["places"]) for rung in RUNGS]
    assert sorted(calls) == sorted(sizes * (WARM_CALLS + 1)) and calls[0] == max(sizes)


def test_a_replay_that_returns_something_else_is_found(
    ladder: Ladder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one would that reads sizes which a later capture has overwritten."""
    steps = [rung.step for rung in ladder.rungs]
    ran: list[int] = []

    def broken(index: int) -> None:
        ran.append(index)
        steps[index]()
        if len(ran) > WARM_CALLS * len(steps) and index == 1:  # all are captured
            ladder.rungs[1].outputs["sums"].write(np.zeros(tuple(ladder.rungs[1].sizes.values())))

    for index, rung in enumerate(ladder.rungs):
        rung.step = partial(broken, index)
    assert not ladder.warm_up(full)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (np.arange(20), np.r_[7, np.arange(1, 20)], True),
        (np.arange(20), np.r_[7, 7, 7, np.arange(3, 20)], False),
        (np.ones(3, np.float32), np.array([1, 1.0005, 1], np.float32), True),
        (np.ones(3, np.float32), np.array([1, 1.1, 1], np.float32), False),
        (np.ones(3, np.float32), np.array([1, np.nan, 1], np.float32), False),
        (np.zeros(3, np.float32), np.zeros(3, np.float32), True),
    ],
)
def test_what_a_library_may_round_is_the_same(one: Array, other: Array, same: bool) -> None:
    assert is_same(one, other) == same


def test_its_memory_is_that_of_all_buffers(ladder: Ladder) -> None:
    places = sum(rung["batch"] * rung["places"] for rung in RUNGS)
    rows = sum(rung["batch"] for rung in RUNGS)
    assert ladder.size == 8 * (2 * places + rows + len(RUNGS))


def test_lengths_grow_to_the_last() -> None:
    assert lengths_up_to(64, 640, 2.0, 64) == [64, 128, 256, 512, 640]
    assert lengths_up_to(128, 100, 1.5, 16) == [100]
    assert lengths_up_to(1, 6, 2.0, 1) == [1, 2, 4, 6]
    assert lengths_up_to(8, 40, 1.1, 8) == [8, 16, 24, 32, 40]
