"""The regression guard: ratios within one run, never seconds.

Five runs on a machine that trained two other models at the same time gave an AR step of 1.6 to 2.9 times
eager's speed, of group 1's 1.6 to 2.4, a NAR pass of 1.2 to 1.8 and a host share of at most 0.02. The bounds
lie below that, so they catch what makes the decode as slow as eager PyTorch, not a loss of some percent.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from valle2.benchmarks.speed.compare import compare

CHECKPOINT = Path(__file__).parents[3] / "demo" / "checkpoint"


@pytest.mark.serial
def test_ours_stays_ahead_of_eager() -> None:
    found = compare(CHECKPOINT, "demo", "Yes.", repeats=3, seed=0, threads=1)
    assert found["ratios"]["ar_step"] > 1.2
    assert found["ratios_group_1"]["ar_step"] > 1.2
    assert found["ratios"]["nar_pass"] > 0.6
    assert found["host_fraction"] < 0.1
