"""The progress of a build, from nested phases and from a build by TensorRT."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.engine.build.test_tensorrt import REASON, RTX
from valle2.engine.build.progress import Percent, make_monitor
from valle2.engine.build.tensorrt import build_engine
from valle2.engine.bundle.profiles import Limits


def test_nested_phases_share_their_parents_step() -> None:
    reported: list[int] = []
    percent = Percent(reported.append)
    percent.start("all", None, 2)
    percent.start("first", "all", 5)
    for step in range(5):
        percent.complete("first", step)
    assert reported == [10, 20, 30, 40, 50]
    percent.finish("first")
    percent.complete("all", 0)
    percent.start("second", "all", 1000)
    percent.complete("second", 99)
    percent.complete("unknown", 0)
    percent.complete("second", 999)
    assert reported == [10, 20, 30, 40, 50, 100]


def test_a_phase_cut_short_or_repeated_never_counts_back() -> None:
    reported: list[int] = []
    percent = Percent(reported.append)
    percent.start("all", None, 2)
    percent.complete("all", 0)
    for _ in range(2):
        percent.start("costs", "all", 4)
        percent.complete("costs", 1)
        percent.finish("costs")
    percent.finish("all")
    percent.start("all", None, 10)
    percent.complete("all", 0)
    assert reported == [50, 70] and percent.names == ["all"]


def test_a_release_without_monitors_has_none() -> None:
    assert make_monitor(SimpleNamespace(), lambda percent: None) is None


def test_a_build_reports_its_progress(fixed_bundles: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason=REASON)
    folder = Path(shutil.copytree(fixed_bundles["portable"], tmp_path / "toy"))
    reported: list[str] = []
    build_engine(folder, RTX, gpus=["sm89"], limits=Limits(1, 100), progress=reported.append)
    ours = [line for line in reported if line.startswith("building ar (fp16, 2 profiles) for sm89")]
    percents = [int(line.removesuffix("%").split(": ")[1]) for line in ours[1:]]
    assert ours[0] == "building ar (fp16, 2 profiles) for sm89"
    assert percents == sorted(set(percents)) and len(percents) > 2 and percents[-1] >= 50
