"""The AR step against positions and rows, prefills, group sizes, and the options of the command line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from valle2.benchmarks.cli import KINDS
from valle2.benchmarks.fullsize import FullSizeModel
from valle2.benchmarks.options import OPTIONS, PANELS, options_of
from valle2.benchmarks.report.html import html_table
from valle2.benchmarks.speed import prefill
from valle2.benchmarks.speed.hardware import step_bytes
from valle2.benchmarks.speed.steps import random_row, steps, timed
from valle2.benchmarks.stages import ARStage
from valle2.engine.bundle.precisions import RECORD_FILE, graph_folder
from valle2.runtime import Valle2
from valle2.runtime.cli.main import main


def test_a_condition_is_what_it_says(bundle: Path) -> None:
    """Timed steps write the positions after the filled ones, in the rows of the condition alone."""
    tts = Valle2.load(bundle, threads=1, slots=3)
    ar, sizes = ARStage(tts), tts.manifest.sizes
    for index in range(3):
        ar.prefill(index, random_row(sizes, 90, index))
    assert ar.positions() == [90, 90, 90]
    before = ar.caches()["cache_key_0"].copy()
    timed(ar, 2, 50)
    assert ar.positions()[:2] == [65, 65]
    cache = ar.caches()["cache_key_0"]
    changed = (cache != before).any(axis=(1, 3))
    assert [np.flatnonzero(row).tolist() for row in changed] == [list(range(50, 65))] * 2 + [[]]


def test_a_prefill_in_chunks(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        main(["bench", "prefill", "--model", str(bundle), "--repeats", "1", "--threads", "1", "--table"]) == 0
    )
    out = capsys.readouterr().out
    found = json.loads(out[out.index("result: ") + 8 :])
    assert [(line["positions"], line["chunk"]) for line in found["prefill"]] == [
        (180, chunk) for chunk in (32, 64, 128, 180)
    ]
    assert all(line["alone_ms"] > 0 and line["gap_ms"] > 0 for line in found["prefill"])
    assert "| positions | chunk |" in out


def test_a_running_row_is_timed_beside_a_prefill(bundle: Path) -> None:
    """It steps once before the prefill and once after each chunk."""
    tts = Valle2.load(bundle, threads=1, slots=2)
    ar, sizes = ARStage(tts), tts.manifest.sizes
    ar.chunk = 32
    ar.prefill(0, random_row(sizes, 50, 0))
    found = prefill.timed(ar, random_row(sizes, 90, 1))
    assert ar.positions()[0] == prefill.RUNNING + 4
    assert len(found) == len(prefill.PARTS) and min(found) > 0


def test_steps(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="needs the extra: bench")
    words = ["bench", "steps", "--model", str(bundle), "--repeats", "1", "--threads", "1", "--table"]
    assert main([*words, "--plot", str(tmp_path / "s.svg"), "--html", str(tmp_path / "s.html")]) == 0
    out = capsys.readouterr().out
    assert "| positions in the cache |" in out and "ms a row" in out
    found = json.loads(out[out.index("result: ") + 8 :])
    assert [point["rows"] for point in found["batch"]] == [1, 2, 4, 8, 16]
    assert all(point["ms"] > 0 for point in found["positions"])
    sizes = Valle2.load(bundle, threads=1).manifest.sizes
    each = step_bytes(sizes, 1) - step_bytes(sizes, 0)
    assert found["us_per_position_bound"] == pytest.approx(each / found["read_gb_per_s"] / 1e3, abs=2e-3)
    one, *_, sixteen = found["batch"]
    assert one["step_ms"] == one["ms"] and sixteen["step_ms"] == pytest.approx(16 * sixteen["ms"], abs=0.01)
    page = (tmp_path / "s.html").read_text()
    assert page.count("<table>") == 2 and "<svg" in page and "&quot;us_per_position&quot;" in page
    assert not re.search(r'(src|href)="http', page) and (tmp_path / "s.svg").stat().st_size > 1000


def test_groups(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "groups", "--model", f"A={bundle}", "--model", f"B={bundle}", "--text", "hello there"]
    assert main([*words, "--repeats", "1", "--threads", "1", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["groups"]
    assert list(rows) == ["A", "B"] and rows["A"]["ar_ratio"] == 1
    a, b = rows["A"], rows["B"]
    assert a["audio_seconds"] == b["audio_seconds"] > 0 and a["steps"] == b["steps"]
    assert b["ar_ratio"] == pytest.approx(a["ms"]["ar"] / b["ms"]["ar"], abs=0.01)
    assert b["total_ratio"] == pytest.approx(a["ms"]["total"] / b["ms"]["total"], abs=0.01)


def test_a_full_size_model_has_the_precisions_that_were_asked_for(small_full_size: FullSizeModel) -> None:
    assert (graph_folder(small_full_size.bundle, "int8", "ort") / RECORD_FILE).is_file()
    found = steps(str(small_full_size.bundle), 1, 0, 1, "int8")
    assert found["precision"] == "int8" and found["batch_positions"] > 100


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["serve", "--size", "full"], "unrecognized arguments: --size full"),
        (["precision", "--html", "a.html"], "unrecognized arguments: --html a.html"),
        (["steps", "--engine", "tensorrt"], "unrecognized arguments: --engine tensorrt"),
        (["serve", "--precision", "int8"], "unrecognized arguments: --precision int8"),
        (["latency", "--precision", "fp32,int8"], "expected one precision, got fp32,int8"),
        (["lengths", "--lengths", "2,-1"], "expected numbers above 0, got 2,-1"),
        (["batch", "--counts", "2,x"], "expected numbers such as 1,2,4, got 2,x"),
        (["batch", "--counts", "1.5"], "expected whole numbers, got 1.5"),
        (["quality", "--seed", "3"], "unrecognized arguments: --seed 3"),
    ],
)
def test_what_would_be_ignored_is_refused(
    args: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        main(["bench", *args])
    assert error.value.code == 2 and said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["steps", "--repeats", "0"], "--repeats is 0"),
        (["batch", "--seconds", "2"], "--seconds is for --size full"),
        (["quality", "--sentences", "S", "--plot", "a.svg"], "add --sweep"),
        (["latency", "--model", "a", "--model", "b"], "2 models were given"),
    ],
)
def test_what_contradicts_itself_is_refused(
    args: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *args]) == 1
    error = capsys.readouterr().err
    assert said in error and len(error.splitlines()) == 1


def test_every_benchmark_says_what_its_own_options_are(capsys: pytest.CaptureFixture[str]) -> None:
    for kind in KINDS:
        with pytest.raises(SystemExit) as end:
            main(["bench", kind, "--help"])
        shown = capsys.readouterr().out
        assert end.value.code == 0
        flags = {row.flag for row in OPTIONS}
        own = {row.flag for row in options_of(kind)}
        assert all(flag in shown for flag in own)
        assert not any(f"{flag} " in shown for flag in flags - own - {"checkpoint"})


def test_every_kind_of_an_option_is_a_benchmark() -> None:
    assert {kind for row in OPTIONS for kind in row.kinds} <= set(KINDS)
    assert set(PANELS) <= set(KINDS)


def test_a_table_is_escaped() -> None:
    assert html_table(["| a | b |", "| --- | --- |", "| <x> | 1 |"]) == (
        "<table><tr><th>a</th><th>b</th></tr><tr><td>&lt;x&gt;</td><td>1</td></tr></table>"
    )
