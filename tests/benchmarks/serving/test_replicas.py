"""What the comparison of replicas makes of its rounds. test_ray_app.py runs the cluster."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from valle2.benchmarks.serving.replicas import Load, config, cpu_seconds, replicas, running, summary
from valle2.engine.errors import Valle2Error


def test_ratios_are_of_rounds_not_of_medians() -> None:
    one = [Load(speed, 0.5, frozenset("a")) for speed in (1.0, 2.0, 4.0)]
    two = [Load(speed, 0.625, frozenset(name)) for speed, name in ((1.5, "b"), (3.8, "bc"), (5.0, "c"))]
    found = summary({"one": one, "two": two})
    assert (found["one_replica"], found["two_replicas"]) == (2.0, 3.8)
    assert found["ratio"] == 1.5 and found["ratios"] == [1.5, 1.9, 1.25]
    assert found["cpu"] == {"one": 0.5, "two": 0.625} and found["ratio_by_cpu"] == 1.6
    assert found["answered"] == {"one": 1, "two": 2}


def test_nothing_is_measured_of_nothing() -> None:
    with pytest.raises(Valle2Error, match="--rounds is 0"):
        replicas("demo", "hello", 1, 1, 0, 1)
    assert cpu_seconds(f"no such application {os.getpid()}") == 0


def test_a_cluster_that_does_not_come_up_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("valle2.benchmarks.serving.replicas.sys.executable", "false")
    content = config(1, [{"route_prefix": "/"}])
    with (
        pytest.raises(RuntimeError, match="/ready did not answer within 120 s; the end of its log"),
        running(content, tmp_path / "log"),
    ):
        pass
