"""`bench endings`: random requests are the same each time, results are counted and continued."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from valle2.benchmarks import endings
from valle2.benchmarks.endings import COLUMNS, NO_SPEECH, Ending, ending_of, longest_run, random_text
from valle2.engine.errors import Valle2Error
from valle2.runtime import Speech, Valle2
from valle2.runtime.cli.main import main
from valle2.runtime.generation import engine
from valle2.runtime.generation.repetition import LoopDetector
from valle2.runtime.types import EOS, MAX_FRAMES, REPETITION, Timings

LINES = ["hello there", "the fox and the apple", "a fox there"]


@pytest.fixture(scope="module")
def tts(bundle: Path) -> Iterator[Valle2]:
    with Valle2.load(bundle, threads=1, slots=8) as model:
        yield model


@pytest.fixture
def sentences(tmp_path: Path) -> Path:
    path = tmp_path / "lines.txt"
    path.write_text("\n".join(LINES), encoding="utf-8")
    return path


def test_texts_are_random_and_the_same_each_time() -> None:
    made = [random_text(random.Random(str(n)), LINES) for n in range(300)]
    assert made == [random_text(random.Random(str(n)), LINES) for n in range(300)]
    assert all(text.strip() for text in made) and len(set(made)) > 120
    assert set(LINES) < set(made) and any(text.isdigit() for text in made)


@pytest.mark.parametrize("seed", range(5))
def test_the_longest_run_is_that_of_the_detector(seed: int) -> None:
    codes = np.random.default_rng(seed).integers(0, (3, 40, 80, 300, 1024)[seed], 600).tolist()
    run = longest_run(codes)
    assert not any(map(LoopDetector(run + 1).add, codes))
    assert run == 0 or any(map(LoopDetector(run).add, codes))


def test_silence_that_counts_as_a_success_is_found() -> None:
    codes, none = np.zeros((40, 8), np.int64), np.zeros((0, 8), np.int64)
    loud = np.random.default_rng(0).normal(0, 0.1, 12000).astype(np.float32)
    quiet = (loud / 1000).astype(np.float32)
    assert not ending_of(Speech(loud, 24000, codes, EOS, Timings()), 1, 9, 40).silent
    assert ending_of(Speech(quiet, 24000, codes, EOS, Timings()), 1, 9, 40).silent
    nothing = ending_of(Speech(loud[:0], 24000, none, EOS, Timings()), 1, 9, 40)
    assert nothing.silent and (nothing.frames, nothing.run) == (0, 0)
    assert not Ending(NO_SPEECH, 1, 1, 0, 9, 40, -200.0, 0).silent, "an error is no success"


def test_reasons_are_counted(tts: Valle2, monkeypatch: pytest.MonkeyPatch) -> None:
    voices, settings = [tts.voice(tts.default_voice())], replace(tts.settings(), retries=1)
    requests = [endings.random_request(settings, LINES, voices, 0, number) for number in range(6)]
    found = endings.spoken(tts, requests)
    assert {one.reason for one in found} <= {EOS, MAX_FRAMES, REPETITION} and all(one.frames for one in found)
    assert all(bool(one.text) == (one.reason != EOS or one.silent) for one in found)
    monkeypatch.setattr(engine, "SILENT", 10.0)
    assert {one.reason for one in endings.spoken(tts, requests)} == {NO_SPEECH}


def test_a_file_is_continued_and_one_of_other_inputs_refused(
    bundle: Path,
    sentences: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(endings, "BATCH", 2)
    monkeypatch.setattr(endings, "model_hash", lambda model: "toy")
    out = tmp_path / "e.json"
    args = ["bench", "endings", "--model", str(bundle), "--sentences", str(sentences), "--threads", "1"]
    args += ["--out", str(out), "--table"]
    assert main([*args, "--requests", "3"]) == 0
    told = capsys.readouterr().out
    assert "| fp32 | 3 |" in told
    first = json.loads(out.read_text())
    assert first["columns"] == COLUMNS and len(first["rows"]["fp32"]) == 3
    assert main([*args, "--requests", "5"]) == 0
    second = json.loads(out.read_text())
    assert second["rows"]["fp32"][:3] == first["rows"]["fp32"] and len(second["rows"]["fp32"]) == 5
    whole = tmp_path / "whole.json"
    assert main([*args, "--requests", "5", "--out", str(whole)]) == 0
    assert json.loads(whole.read_text())["rows"] == second["rows"]
    assert main([*args, "--requests", "5", "--seed", "7"]) == 1
    assert "results of another model, text, seed, prompts or codebooks" in capsys.readouterr().err
    few = tmp_path / "few.json"
    assert main([*args, "--requests", "5", "--codebooks", "2", "--out", str(few)]) == 0
    kept = [COLUMNS.index(name) for name in ("reason", "retries", "frames", "run")]
    fewer, all_books = json.loads(few.read_text())["rows"]["fp32"], second["rows"]["fp32"]
    assert [[row[at] for at in kept] for row in fewer] == [[row[at] for at in kept] for row in all_books]
    assert main([*args, "--requests", "5", "--codebooks", "9", "--out", str(tmp_path / "nine.json")]) == 1
    assert "codebooks" in capsys.readouterr().err
    out.write_text("{}")
    with pytest.raises(Valle2Error, match="no file of"):
        endings.resumed(out, {})


def test_the_sentences_are_needed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "endings"]) == 1
    assert "--sentences FILE" in capsys.readouterr().err
