"""The comparison with eager PyTorch: same codes on both sides, figures that follow from the times."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from valle2.runtime.cli import main


def test_compare_prints_ratios(
    bundle: Path, checkpoint_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["bench", "compare", str(checkpoint_folder), "--model", str(bundle), "--repeats", "2"]
    assert main([*args, "--text", "hello there", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result["ratios"]) == {"ar_step", "nar_pass", "end_to_end"}
    for row in result["stages"].values():
        assert row["ratio"] == pytest.approx(row["eager_ms"] / row["ours_ms"], abs=0.03, rel=0.05)
    assert result["rtf"] == pytest.approx(
        result["stages"]["total"]["ours_ms"] / 1000 / result["audio_seconds"], rel=0.02
    )
    assert main([*args, "--table"]) == 0
    assert "| nar |" in capsys.readouterr().out


def test_another_checkpoint_is_refused(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.conftest import toy_checkpoint, write_toy

    other = write_toy(tmp_path, toy_checkpoint(4, 400))
    args = ["bench", "compare", str(other), "--model", str(bundle), "--repeats", "1", "--text", "hello"]
    assert main(args) == 1
    assert "was not exported from" in capsys.readouterr().err
