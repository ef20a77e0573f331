"""Latency, throughput, lengths and batches; what bounds them."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from valle2.benchmarks.report.statistics import longest_wait
from valle2.benchmarks.speed import batch, hardware
from valle2.benchmarks.speed.hardware import read, read_bandwidth, step_bytes
from valle2.benchmarks.speed.throughput import Listener, summary
from valle2.engine.bundle.precisions import METHODS
from valle2.engine.errors import Valle2Error
from valle2.runtime import Request, Speech, Valle2
from valle2.runtime.cli.main import main


def measured(capsys: pytest.CaptureFixture[str], bundle: Path, *args: str) -> dict[str, object]:
    assert main(["bench", *args, "--model", str(bundle), "--text", "hello there", "--json"]) == 0
    return dict(json.loads(capsys.readouterr().out))


def rows(found: dict[str, object], name: str) -> list[dict[str, Any]]:
    listed = found[name]
    assert isinstance(listed, list)
    return listed


def test_latency(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ("latency", "--repeats", "2", "--threads", "1", "--codebooks", "8,2")
    found: dict[str, object] = measured(capsys, bundle, *args)
    stages, first, chunks = found["stages"], found["first_audio"], found["first_chunks"]
    assert isinstance(chunks, dict) and list(chunks) == ["8", "2"]
    for one in chunks.values():
        parts = sum(one[name] for name in ("prefill", "steps", "nar", "codec"))
        assert parts == pytest.approx(one["first_audio"], abs=0.1) and min(one["nar"], one["codec"]) > 0
    assert chunks["2"]["nar"] < chunks["8"]["nar"]
    assert isinstance(stages, dict) and isinstance(first, dict)
    parts = sum(stages[name]["p50"] for name in ("prefill", "ar", "nar", "codec"))
    assert 0 < parts <= stages["total"]["p95"] * 1.05
    assert 0 < first["streamed"]["p50"] < first["whole"]["p50"]
    assert isinstance(found["bound_fraction"], float) and 0 < found["bound_fraction"] < 1


def test_an_engine_is_for_latency(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "latency", "--model", str(bundle), "--engine", "ort-tensorrt", "--device", "cuda"]
    assert main(words) == 1
    assert "has the lowering ort; ort-tensorrt on cuda takes portable" in capsys.readouterr().err


def test_throughput(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = (
        "throughput",
        "--repeats",
        "1",
        "--slots",
        "3",
        "--requests",
        "5",
        "--rate",
        "50",
        "--threads",
        "1",
    )
    found = measured(capsys, bundle, *args)
    loop = found["open_loop"]
    assert isinstance(loop, dict) and loop["requests"] == 5 and loop["errors"] == 0
    assert found["ratio"] == pytest.approx(found["at_once"] / found["one_at_a_time"], abs=0.01)  # type: ignore[operator]
    assert loop["requests_per_s"] == 50 and loop["audio_s_per_s"] > 0
    assert main(["bench", *args, "--model", str(bundle), "--text", "hello", "--table"]) == 0
    assert "| ratio |" in capsys.readouterr().out


def test_lengths(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="needs the extra: bench")
    page = tmp_path / "l.html"
    args = ("lengths", "--repeats", "1", "--threads", "1", "--lengths", "0.2,0.4", "--html", str(page))
    short, long = rows(measured(capsys, bundle, *args), "lengths")
    assert 0 < short["audio_seconds"] <= 0.2 and 0.2 < long["audio_seconds"] <= 0.4
    assert short["steps"] < long["steps"]
    assert 0 < short["stages"]["ar"]["p50"] < short["stages"]["total"]["p50"]
    for found in (short, long):
        share = found["first_audio"]["p50"] / found["stages"]["total"]["p50"]
        assert found["first_audio_share"] == pytest.approx(share, rel=0.01)
        assert found["underruns"] == (found["longest_wait_ms"]["p50"] > 100)
    assert page.read_text().count("<table>") == 1 and "<svg" in page.read_text()


def test_batch(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib", reason="needs the extra: bench")
    plot = tmp_path / "b.svg"
    args = ("batch", "--repeats", "1", "--threads", "1", "--counts", "1,3", "--plot", str(plot))
    found = measured(capsys, bundle, *args)
    one, three = rows(found, "batch")
    assert found["same_codes"] is True
    assert one["bound"] == 1 and 1 < three["bound"] < 3
    for row in (one, three):
        assert row["ratio"] == pytest.approx(row["audio_s_per_s"] / found["one_at_a_time"], rel=0.01)
        assert 0 < row["first_audio_ms"]["p50"] <= row["first_audio_ms"]["p95"]
    assert plot.stat().st_size > 1000


def test_batch_refuses_other_codes(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def changed(tts: Valle2, requests: list[Request]) -> list[Speech]:
        found = tts.synthesize_batch(requests)
        if len(requests) > 1:
            found[-1].codes[-1] += 1
        return found

    monkeypatch.setattr(batch, "speak", changed)
    with pytest.raises(Valle2Error, match="request 1 has other codes in a batch of 2 than alone"):
        batch.batch(str(bundle), "hello there", 1, 0, 1, counts=(1, 2))


def test_what_sharing_gives_at_most() -> None:
    assert batch.bound(1.0, 8) == 8 and batch.bound(0.0, 8) == 1
    assert batch.bound(0.5, 2) == pytest.approx(4 / 3)


@pytest.mark.parametrize(
    "args", [["latency", "--repeats", "0"], ["throughput", "--requests", "0"], ["compare"]]
)
def test_bad_sizes(bundle: Path, capsys: pytest.CaptureFixture[str], args: list[str]) -> None:
    assert main(["bench", *args, "--model", str(bundle)]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_step_reads_every_weight_that_it_uses(tts: Valle2) -> None:
    from tests.conftest import toy_checkpoint

    model, sizes = toy_checkpoint(2).ar, tts.manifest.sizes
    tables = (model.text_table, model.text_positions, model.code_positions)
    looked_up = {id(table.weight) for table in tables}
    weights = sum(w.numel() for w in model.parameters() if id(w) not in looked_up)
    rows = (1 + 1 + 1 + sizes["group_size"]) * sizes["d_model"]  # text, its position, the group's, codes
    assert step_bytes(sizes, 0) == 4 * (weights + rows)
    products = sum(w.numel() for w in model.parameters() if w.dim() > 1 and id(w) not in looked_up)
    products -= model.code_table.weight.numel()
    eight = 1 + 4 / METHODS["int8"]["ar"].block
    assert step_bytes(sizes, 0, "int8") == step_bytes(sizes, 0) - (4 - eight) * products
    assert step_bytes(sizes, 9, "fp16") == step_bytes(sizes, 9) / 2
    caches = [t for t in tts.manifest.graphs["ar"].inputs if t.name.startswith("cache_")]
    assert {t.dtype for t in caches} == {"float32"}
    per_position = sum(int(t.axes[1]) * int(t.axes[3]) for t in caches)
    assert step_bytes(sizes, 1) - step_bytes(sizes, 0) == 4 * per_position
    assert step_bytes(sizes, 1, "int8") - step_bytes(sizes, 0, "int8") == per_position


def test_listeners_notice_a_pause() -> None:
    listener = Listener(SimpleNamespace(), arrived=1.0)  # type: ignore[arg-type]
    listener.heard = [(2.0, 1.0), (2.5, 1.0), (4.25, 0.5)]  # two seconds from 2.0, then 0.25 s of silence
    assert listener.first == 1.0 and listener.took == 3.25 and listener.audio == 2.5
    assert longest_wait(listener.heard) == pytest.approx(0.25)


def test_only_streams_without_an_error_count() -> None:
    def listener(heard: list[tuple[float, float]], error: object = None) -> Listener:
        return Listener(SimpleNamespace(error=error), arrived=1.0, heard=heard)  # type: ignore[arg-type]

    smooth, waits = [(2.0, 1.0), (2.5, 1.0)], [(4.0, 1.0), (5.25, 1.0)]
    found = summary(
        [listener(smooth), listener(waits), listener([]), listener(smooth, ValueError())], 2.0, 8.0
    )
    assert (found["requests"], found["errors"], found["underruns"]) == (4, 2, 1)
    assert found["first_audio_ms"] == {"p50": 2000.0, "p95": 2900.0, "p99": 2980.0}
    assert (
        found["rtf"]["p50"] == pytest.approx((0.75 + 2.125) / 2, abs=1e-4) and found["audio_s_per_s"] == 0.5
    )


def test_bandwidth_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every thread reads all of its block at every reading; the fastest reading counts."""
    assert 1e8 < read_bandwidth(1, 2**22) < 1e12
    blocks: list[int] = []

    def reading(pool: object, given: list[Any]) -> float:
        blocks.append(sum(block.nbytes for block in given))
        return 4.0 if len(blocks) == 1 else 2.0 if len(blocks) == 2 else 3.0

    monkeypatch.setattr(hardware, "timed_reading", reading)
    assert read_bandwidth(3, 1000) == 1500 and set(blocks) == {3000} and len(blocks) > 3


def test_a_reading_reads_every_byte() -> None:
    block = np.ones(1000, np.uint8)
    block[-1] = 7
    assert read(block) == 7


def test_threads_read_at_the_same_time() -> None:
    """The probe releases the interpreter lock, which no thread can take by force within this interval."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(60.0)
    try:
        block = np.ones(2**27, np.uint8)
        assert any(runs_meanwhile(lambda: read(block)) for _ in range(20))
        assert not any(runs_meanwhile(lambda: sum(range(200_000))) for _ in range(3))
    finally:
        sys.setswitchinterval(interval)


def runs_meanwhile(work: Callable[[], object]) -> bool:
    """Does this thread run while another one does this work?"""
    begun, done = threading.Event(), threading.Event()

    def other() -> None:
        begun.set()
        work()
        done.set()

    thread = threading.Thread(target=other)
    thread.start()
    begun.wait()
    meanwhile = not done.is_set()
    thread.join()
    return meanwhile
