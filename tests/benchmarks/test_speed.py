"""Latency and throughput: figures that follow from each other, streams that are listened to."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from valle2.benchmarks.bandwidth import read_bandwidth
from valle2.benchmarks.report import step_bytes
from valle2.benchmarks.throughput import Listener, longest_wait
from valle2.runtime import Valle2
from valle2.runtime.cli import main


def measured(capsys: pytest.CaptureFixture[str], bundle: Path, *args: str) -> dict[str, object]:
    assert main(["bench", *args, "--model", str(bundle), "--text", "hello there", "--json"]) == 0
    return dict(json.loads(capsys.readouterr().out))


def test_latency(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found: dict[str, object] = measured(capsys, bundle, "latency", "--repeats", "2", "--threads", "1")
    stages, first = found["stages"], found["first_audio"]
    assert isinstance(stages, dict) and isinstance(first, dict)
    parts = sum(stages[name]["p50"] for name in ("prefill", "ar", "nar", "codec"))
    assert 0 < parts <= stages["total"]["p95"] * 1.05
    assert 0 < first["streamed"]["p50"] < first["whole"]["p50"]
    assert isinstance(found["bound_fraction"], float) and 0 < found["bound_fraction"] < 1


def test_an_engine_is_for_latency(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "throughput", "--model", str(bundle), "--engine", "tensorrt"]) == 1
    assert "--device and --engine are for bench latency" in capsys.readouterr().err
    words = ["bench", "latency", "--model", str(bundle), "--engine", "ort-tensorrt", "--device", "cpu"]
    assert main(words) == 1
    assert "has the lowering ort; ort-tensorrt takes portable" in capsys.readouterr().err


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
    assert found["at_once"] and found["one_at_a_time"]
    assert loop["first_audio_ms"]["p50"] <= loop["first_audio_ms"]["p99"]
    assert main(["bench", *args, "--model", str(bundle), "--text", "hello", "--table"]) == 0
    assert "| ratio |" in capsys.readouterr().out


@pytest.mark.parametrize(
    "args", [["latency", "--repeats", "0"], ["throughput", "--requests", "0"], ["compare"]]
)
def test_bad_sizes(bundle: Path, capsys: pytest.CaptureFixture[str], args: list[str]) -> None:
    assert main(["bench", *args, "--model", str(bundle)]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_step_reads_every_weight_that_it_uses(tts: Valle2) -> None:
    from tests.conftest import toy_checkpoint

    model = toy_checkpoint(2).ar
    used = [
        *model.blocks.parameters(),
        model.group_embed.weight,
        model.group_predict.weight,
        model.code_table.weight,
    ]
    matrices = sum(weight.numel() for weight in used if weight.dim() > 1)
    assert step_bytes(tts.manifest.sizes, 0) == 4 * matrices
    per_position = step_bytes(tts.manifest.sizes, 1) - step_bytes(tts.manifest.sizes, 0)
    assert per_position == tts.manifest.sizes["layers"] * 2 * tts.manifest.sizes["d_model"] * 4
    for positions in (0, 1):
        assert (
            step_bytes(tts.manifest.sizes, positions, "fp16") == step_bytes(tts.manifest.sizes, positions) / 2
        )
    assert step_bytes(tts.manifest.sizes, 0, "int4") == matrices * (4 / 8 + 4 / 32)


def test_listeners_notice_a_pause() -> None:
    listener = Listener(SimpleNamespace(), arrived=1.0)  # type: ignore[arg-type]
    listener.heard = [(2.0, 1.0), (2.5, 1.0), (4.25, 0.5)]  # two seconds from 2.0, then 0.25 s of silence
    assert listener.first == 1.0 and listener.took == 3.25 and listener.audio == 2.5
    assert longest_wait(listener.heard) == pytest.approx(0.25)


def test_bandwidth_is_measured() -> None:
    assert 1e8 < read_bandwidth(1, 2**22) < 1e13
