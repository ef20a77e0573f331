"""The comparison with eager PyTorch: figures that follow from the times, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import toy_checkpoint
from valle2.benchmarks.speed import rivals
from valle2.benchmarks.speed.eager import EagerTimes, synthesize
from valle2.runtime import Prompt, Settings, Speech, Valle2
from valle2.runtime.cli.main import main

NOTHING = (np.zeros(1, np.int64), np.zeros((2, 8), np.int64), Settings())


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
    from tests.conftest import write_toy

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


def test_prefill_codebooks_and_rivals_are_in_the_table(
    bundle: Path,
    checkpoint_folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`torch.compile` takes a minute, so here it returns the module that it gets."""
    asked: list[int] = []

    def speak(tts: Valle2, text: str, voice: Prompt, settings: Settings) -> Speech:
        asked.append(settings.codebooks)
        return whole(tts, text, voice, settings)

    whole = Valle2.synthesize
    monkeypatch.setattr(Valle2, "synthesize", speak)
    monkeypatch.setattr(torch, "compile", lambda module, **_: module)
    monkeypatch.setattr(rivals, "compiler", lambda: "c++")
    monkeypatch.setattr(rivals, "bf16_instructions", lambda: "")
    args = ["bench", "compare", str(checkpoint_folder), "--model", str(bundle), "--repeats", "1"]
    more = ["--against", "compile,bf16", "--codebooks", "2,8", "--threads", "1", "--text", "hello there"]
    assert main([*args, *more, "--table"]) == 0
    out = capsys.readouterr().out
    result = json.loads(out[out.index("result: ") + 8 :])
    compiled = result["rivals"]["compile"]
    assert compiled["same_codes"] == 1 and set(compiled["stages"]) == set(result["stages"])
    assert result["rivals"]["bf16"] == {"about": "no bfloat16 instructions"}
    for bounds in (result["bounds"], result["eager_bounds"], compiled["bounds"]):
        assert set(bounds) == {"prefill", "ar", "nar"} and all(share > 0 for share in bounds.values())
    first = result["first_audio_ms"]
    assert first["streamed_2_codebooks"] > 0 and set(first) == {"whole", "streamed", "streamed_2_codebooks"}
    assert set(result["codebooks"]) == {"2", "8"}
    assert asked == [0, 2, 8] * 2, "a turn to warm up, and one that is timed"
    assert all(times["nar_ms"] > 0 and times["rtf"] > 0 for times in result["codebooks"].values())
    for row in ("| fp32 | prefill |", "| torch.compile fp32 | ar |", "| no bfloat16 instructions | – |"):
        assert row in out
    assert "| fp32 | first audio, streamed 2 codebooks |" in out and "| fp32 | 2 |" in out


def test_rivals_are_for_a_cpu_in_float32(
    bundle: Path, checkpoint_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ["bench", "compare", str(checkpoint_folder), "--model", str(bundle), "--against", "bf16"]
    assert main([*args, "--eager-precision", "fp16"]) == 1
    assert "--against is for a CPU" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*args[:-1], "jax"])
    assert "expected of compile, bf16, got jax" in capsys.readouterr().err


def test_why_a_rival_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx2": True})
    made = rivals.rivals(("compile", "bf16"), toy_checkpoint(2), *NOTHING)
    assert [one.about for one in made.values()] == ["no C++ compiler", "no bfloat16 instructions"]
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx512_bf16": True, "amx_bf16": True})
    assert rivals.rivals(("bf16",), toy_checkpoint(2), *NOTHING)["bf16"].about == "eager bf16 (AMX)"


def test_a_rival_that_draws_other_codes_says_how_many() -> None:
    codes = np.arange(16).reshape(4, 4)
    other = codes.copy()
    other[3, 0] = 99
    one = rivals.Rival("", lambda steps: (other, EagerTimes(1, 1, 1, 1, steps)))
    one.turn(4, codes)
    one.turn(4, other)
    assert one.same == 0.75 and len(one.times) == 2


def test_bfloat16_and_a_static_cache_say_what_eager_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda module, **_: module)
    monkeypatch.setattr(rivals, "compiler", lambda: "c++")
    monkeypatch.setattr(rivals, "bf16_instructions", lambda: "AVX512_BF16")
    checkpoint, rng = toy_checkpoint(2), np.random.default_rng(0)
    text = np.append(rng.integers(0, checkpoint.config.vocab_size, 9), checkpoint.config.vocab_size)
    prompt, settings = rng.integers(0, 1024, (20, 8)), Settings(top_p=0.0, threshold=1.0)
    wanted, _ = synthesize(checkpoint, text, prompt, settings, 6)
    made = rivals.rivals(("compile", "bf16"), checkpoint, text, prompt, settings)
    for one in made.values():
        one.turn(6, wanted)
    assert made["compile"].run and np.array_equal(made["compile"].run(6)[0], wanted)
    assert made["compile"].same == 1 and made["bf16"].same > 0
    assert next(checkpoint.ar.parameters()).dtype == torch.float32, "eager stays as it is"


def test_operations_of_a_prefill() -> None:
    from valle2.benchmarks.speed.hardware import prefill_operations

    sizes = {"d_model": 4, "heads": 2, "ffn": 8, "layers": 2, "group_size": 2}
    weights = 2 * (4 * 16 + 2 * 32) + 2 * 16
    attention = 2 * 4 * 10 * 10  # scores and their sum over values, half of N x N x d each a layer
    assert prefill_operations(sizes, 10) == 2 * (weights * 10 + attention)
