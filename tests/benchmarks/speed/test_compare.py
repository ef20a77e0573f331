"""The comparison with eager PyTorch: figures that follow from the times, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from valle2.runtime.cli.main import main


def test_compare_prints_ratios(
    bundle: Path, checkpoint_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["bench", "compare", str(checkpoint_folder), "--model", str(bundle), "--repeats", "2"]
    assert main([*args, "--threads", "1", "--text", "hello there", "--table"]) == 0
    out = capsys.readouterr().out
    assert "| fp32 | nar |" in out
    result = json.loads(out[out.index("result: ") + 8 :])
    assert set(result["ratios"]) == {"ar_step", "nar_pass", "end_to_end"}
    assert set(result["ratios_group_1"]) == set(result["ratios"])
    assert 0 <= result["host_fraction"] < 1 and 0 < result["bound_fraction"] < 1
    assert result["nar_peak_fraction"] > 0 and set(result["precisions"]) == {"fp32"}
    for row in result["stages"].values():
        assert row["ratio"] == pytest.approx(row["eager_ms"] / row["ours_ms"], abs=0.03, rel=0.05)
    assert result["same_codes"] == 1
    for key, group in (("ratios", "own_group"), ("ratios_group_1", "group_1")):
        ratio = result["eager_rtf"][group] / result["rtf"]
        assert result[key]["end_to_end"] == pytest.approx(ratio, abs=0.02, rel=0.02)
    assert result["rtf"] == pytest.approx(
        result["stages"]["total"]["ours_ms"] / 1000 / result["audio_seconds"], rel=0.02
    )


def test_another_checkpoint_is_refused(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.conftest import toy_checkpoint, write_toy

    other = write_toy(tmp_path, toy_checkpoint(4, 400))
    args = ["bench", "compare", str(other), "--model", str(bundle), "--repeats", "1", "--text", "hello"]
    assert main(args) == 1
    assert "was not exported from" in capsys.readouterr().err


def test_an_unknown_precision_is_refused(
    bundle: Path, checkpoint_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["bench", "compare", str(checkpoint_folder), "--model", str(bundle), "--precision", "fp32,int3"]
    assert main(args) == 1
    assert "int3" in capsys.readouterr().err


def test_a_size_is_instead_of_a_model(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "compare", "--size", "full", "--model", str(bundle)]) == 1
    assert "leave --model" in capsys.readouterr().err


def test_a_device_is_refused_before_a_model_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["bench", "compare", "--size", "full", "--device", "cuda"]) == 1
    assert "the baseline needs a torch with cuda" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_operations_of_a_nar_pass() -> None:
    from valle2.benchmarks.speed.hardware import nar_operations

    sizes = {"d_model": 4, "ffn": 8, "layers": 2}
    weights = 2 * (4 * 16 + 2 * 32)
    attention = 2 * 2 * 4 * 10 * 10  # scores and their sum over values, each N x N x d a layer
    assert nar_operations(sizes, 10, 6) == 2 * (weights * 10 + attention + 1024 * 4 * 6)
