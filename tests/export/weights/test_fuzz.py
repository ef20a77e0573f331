"""A few thousand hostile files of every kind. `python -m tests.fuzz` reads a hundred thousand."""

from __future__ import annotations

import pytest

from tests.fuzz.__main__ import KINDS, table
from tests.fuzz.faulty import EXPECTED, Faulty
from tests.fuzz.harness import WARM_UP, fuzz

COUNT = 2000


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_files_are_read_or_refused_and_nothing_else(kind: str) -> None:
    maker, share = KINDS[kind]
    report = fuzz(kind, maker, COUNT * share // 100, seed=1)
    print(table([report]))
    assert not report.faults
    assert report.files == COUNT * share // 100 and report.read and report.refused


def test_the_harness_finds_every_fault() -> None:
    report = fuzz("faulty", Faulty, WARM_UP + len(EXPECTED))
    assert len(report.faults) == len(EXPECTED)
    for (fault, _), expected in zip(report.faults, EXPECTED, strict=True):
        assert expected in fault
