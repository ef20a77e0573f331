"""The figures of the README: their numbers come from the results, and the files are small and valid SVG."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

pytest.importorskip("matplotlib", reason="needs the extra: bench")

from valle2.benchmarks.report import plots
from valle2.benchmarks.report.figures import draw_all, machine, read_results
from valle2.benchmarks.report.plots import Line, Panel
from valle2.engine.errors import Valle2Error

DOCS = Path(__file__).parents[3] / "docs"
MOST_BYTES = 40_000


def a_comparison(model: str, scale: float, **precisions: float) -> dict[str, Any]:
    """What `bench compare --json` prints: eager takes 100, 400, 300 and 10 ms, the runtime a part of it."""
    eager = {"prefill": 100.0, "ar": 400.0, "nar": 300.0, "codec": 10.0, "total": 810.0}

    def side(part: float) -> dict[str, Any]:
        stages = {name: {"eager_ms": scale * ms, "ours_ms": scale * part * ms} for name, ms in eager.items()}
        return {"stages": stages, "rtf": scale * part * 0.81 / 3}

    return {
        "precisions": {name: side(part) for name, part in precisions.items()},
        "eager_rtf": {"own_group": scale * 0.81 / 3},
        "eager_precision": "fp32",
        "device": "cpu",
        "model": model,
        "machine": "x86_64, 2 cores",
        "processor": "Some(R) Processor 9 CPU @ 2.70GHz",
        "threads": 2,
        "audio_seconds": 3.0,
    }


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("quality.json", "h200.json"):
        shutil.copy(DOCS / "data" / name, folder)
    (folder / "compare-demo.json").write_text(json.dumps(a_comparison("demo", 1, fp32=0.5, int8=0.25)))
    (folder / "compare-full.json").write_text(json.dumps(a_comparison("full", 10, int8=0.2)))
    return folder


def texts(path: Path) -> list[str]:
    """All texts of an SVG, which must be small and must not refer to what it does not have."""
    svg = path.read_text(encoding="utf-8")
    assert len(svg) < MOST_BYTES
    used = set(re.findall(r'(?:href="|url\()#(\w+)', svg))
    assert used <= set(re.findall(r'id="(\w+)"', svg))
    classes = set(re.findall(r'class="(\w+)"', svg))
    assert classes <= set(re.findall(r"\.(c\d+)\{", svg))
    return [node.text or "" for node in ElementTree.fromstring(svg).iter() if node.tag.endswith("}text")]


def test_numbers_come_from_the_results(data: Path, tmp_path: Path) -> None:
    files = {path.stem: texts(path) for path in draw_all(data, tmp_path / "figures")}
    assert set(files) == {"quality", "speed", "time"}
    assert {"810 ms", "405 ms (2.0× as fast)", "202 ms (4.0× as fast)"} <= set(files["time"])
    assert {"8.1 s", "1.6 s (5.0× as fast)", "eager PyTorch fp32", "valle2 int8"} <= set(files["time"])
    assert "Embedded model: 3.0 s of speech, Some 9, 2 threads" in files["time"]
    assert {"3.7", "7.4", "15", "0.37", "1.9"} <= set(files["speed"])  # 1 / RTF of both results
    assert {"5.6", "18", "22", "NVIDIA H200"} <= set(files["speed"])  # of the GPU's
    assert {"1790 ms", "553 ms (3.2× as fast)", "eager PyTorch fp16"} <= set(files["time"])
    sweep = json.loads((data / "quality.json").read_text())
    for name in sweep["axes"]["precision"]:
        assert f"{sweep['conditions'][name]['summary']['wer']['value']:.1f}" in files["quality"]


def test_equal_results_give_equal_files(data: Path, tmp_path: Path) -> None:
    first, second = (draw_all(data, tmp_path / name) for name in ("a", "b"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_a_missing_result_names_its_command(data: Path, tmp_path: Path) -> None:
    for path in data.glob("compare-*.json"):
        path.unlink()
    (data / "h200.json").unlink()
    with pytest.raises(Valle2Error, match=r"has no comparison with eager PyTorch.*valle2 bench compare"):
        draw_all(data, tmp_path / "figures")
    (data / "quality.json").unlink()
    with pytest.raises(Valle2Error, match="cannot be read as results"):
        draw_all(data, tmp_path / "figures")


def test_figures_of_the_documentation_are_small_and_current() -> None:
    for path in [DOCS / "quality.svg", *(DOCS / "figures").glob("*.svg")]:
        assert texts(path), path
    sweep = json.loads((DOCS / "data" / "quality.json").read_text())
    shown = texts(DOCS / "figures" / "quality.svg")
    for axis in ("precision", "unseen", "streaming"):
        for name in sweep["axes"][axis]:
            summary = sweep["conditions"][name]["summary"]
            assert (
                f"{summary['wer']['value']:.1f}" in shown and f"{summary['similarity']['value']:.2f}" in shown
            )


def test_a_machine_is_a_gpu_or_a_processor() -> None:
    assert machine(a_comparison("demo", 1)) == "Some 9, 2 threads"
    older = {"device": "cpu", "machine": "x86_64, 2 cores", "threads": 2}
    assert machine(older) == "x86_64, 2 cores, 2 threads"
    on_gpu = [result for result in read_results(DOCS / "data") if result["device"] != "cpu"]
    assert {machine(result) for result in on_gpu} == {"NVIDIA H200"}


def test_panels_share_one_legend(tmp_path: Path) -> None:
    line = Line("G2", [0, 1], [(1.0, 0.5, 1.5), (2.0, 1.0, 3.0)], colour=1)
    other = Line("G4", [0, 1], [(1.0, 0.5, 1.5), (2.0, 1.0, 3.0)])
    bars = Panel("bars", "ms", [Line("a", (), [1.0, 2.0])], stacked=("x", "y"))
    for name, panels, count in (
        ("same", [Panel("WER", "top-p", [line, other])] * 3, 1),
        ("unequal", [Panel("WER", "top-p", [line]), Panel("CER", "top-p", [other])], 1),
        ("bars", [bars], 0),
    ):
        shown = texts(plots.draw(panels, tmp_path / f"{name}.svg"))
        assert shown.count("G2") == count
    assert {"bars", "x", "y"} <= set(shown)
