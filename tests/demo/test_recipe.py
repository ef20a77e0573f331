"""The recipe's scripts fit together: each takes what those before it left, a few steps on noise."""

from __future__ import annotations

import runpy
import shutil
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from valle2.export.checkpoint import read_checkpoint
from valle2.export.models.ar import ARModel
from valle2.export.models.config import Style
from valle2.export.models.nar import NARModel
from valle2.runtime.voices import read_prompt

DEMO = Path(__file__).parents[2] / "demo"
VOCABULARY = {symbol: 2 * number + 1 for number, symbol in enumerate(" .,abcdefgh")}
"""With holes, as the teachers' table has them."""
VOICES = {"hibari": ("amber",), "kokoro": ("elm",), "mixed": ("mixed820", "mixed821")}
SECONDS = (3.2, 3.4)


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> object:
    """Scripts of demo/ as their command lines run them, with a table of symbols in place of the teachers'."""
    monkeypatch.syspath_prepend(str(DEMO))
    before = set(sys.modules)
    monkeypatch.setattr(import_module("data"), "vocabulary", lambda: VOCABULARY)

    def run(name: str, *args: object) -> None:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, args)])
        runpy.run_path(str(DEMO / f"{name}.py"), run_name="__main__")

    yield run
    for name in set(sys.modules) - before:
        if (file := getattr(sys.modules[name], "__file__", None)) and Path(file).parent == DEMO:
            del sys.modules[name]


def speak(work: Path) -> None:
    """Two shards of each source, the first of which is held out: noise, symbols of equal length."""
    write_shard, rng = import_module("speak").write_shard, np.random.default_rng(0)
    (work / "speech").mkdir()
    for source, voices in VOICES.items():
        for shard in range(2):
            items = []
            for voice in voices:
                for seconds in SECONDS:
                    frames = int(seconds * 75)
                    ids = rng.choice(list(VOCABULARY.values()), 20).astype(np.int16)
                    audio = (rng.standard_normal(frames * 320) * 3000).astype(np.int16)
                    durations = np.full(20, len(audio) / 20, np.float32)
                    items.append(
                        {"text": "a b.", "voice": voice, "ids": ids, "durations": durations, "audio": audio}
                    )
            write_shard(work / "speech" / f"{source}-{shard:04d}.npz", items)


def test_recipe_from_speech_to_checkpoint_and_back(  # type: ignore[no-untyped-def]
    tmp_path: Path, recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    work, out = tmp_path / "work", tmp_path / "model"
    work.mkdir()
    at = ("--work", work)
    speak(work)
    recipe("train_codec", *at, "--name", "codec-first", "--steps", 1)
    recipe("train_codec", *at, "--detail-of", work / "codec-first.pt", "--steps", 1)
    recipe("perturb", *at)
    recipe("phonetic", *at)
    recipe("encode", *at)
    recipe("timbre", *at, "--bundle", "demo", "--count", 2)
    recipe("train", "ar", *at, "--steps", 2, "--decay", 1)
    recipe("train", "nar", *at, "--steps", 2)
    recipe("train", "nar", *at, "--steps", 3)
    recipe("train_vocoder", *at, "--steps", 1)
    recipe("assemble", *at, "--out", out)

    assert torch.load(work / "nar.pt", weights_only=True)["step"] == 3, "a run goes on where it stopped"
    table = capsys.readouterr().out
    assert all(f"| {source} | 0." in table for source in VOICES), "the held-out shard of each source"
    assert all(f"| {source} | 2 | " in table for source in VOICES), "utterances of each that have a prompt"
    codes = import_module("data").read_codes(work / "codes" / "mixed-0.94-0001.npz")
    assert [len(c) for c in codes] == [int(int(s * 75) / 0.94) for s in SECONDS] * 2
    checkpoint = read_checkpoint(out)
    voices = {path.stem: read_prompt(path, path.stem) for path in (out / "voices").glob("*.safetensors")}
    assert set(voices) == {f"{voice}{rank}" for voice in ("amber", "elm") for rank in range(2)}
    assert checkpoint.config.vocab_size == len(VOCABULARY) and checkpoint.config.vector_width
    trained = torch.load(work / "ar.pt", weights_only=True)["model"]
    for name, value in checkpoint.ar.state_dict().items():
        assert torch.equal(value, trained[name].half().float()), f"{name} is not what was trained"

    again, same = tmp_path / "again", tmp_path / "same"
    recipe("unpack", out, "--work", again)
    recipe("assemble", "--work", again, "--out", same, "--voices", out / "voices")
    weights, those_of = load_file(out / "model.safetensors"), load_file(same / "model.safetensors")
    vectors, rounded = weights.pop("nar.vectors").float(), those_of.pop("nar.vectors").float()
    torch.testing.assert_close(
        torch.cdist(rounded, rounded), torch.cdist(vectors, vectors), rtol=0, atol=0.02
    )
    assert set(weights) == set(those_of)
    for name, value in weights.items():
        assert torch.equal(those_of[name], value), f"{name} is not what was unpacked"
    assert {path.name for path in (same / "voices").iterdir()} == {f"{name}.safetensors" for name in voices}

    recipe("train", "ar", *at, "--group", 4, "--warm", out, "--name", "ar-g4", "--steps", 1)
    recipe(
        "assemble", *at, "--ar", "ar-g4", "--group", 4, "--out", tmp_path / "g4", "--voices", out / "voices"
    )
    assert read_checkpoint(tmp_path / "g4").config.group_size == 4

    old, carried = tmp_path / "old", tmp_path / "carried"
    config = replace(checkpoint.config, layers=1, nar_layers=1, vector_width=0, style=Style())
    before = {"ar": ARModel(config).state_dict(), "nar": NARModel(config).state_dict()}
    old.mkdir()
    shutil.copy(work / "codec.pt", old)
    for name, state in before.items():
        torch.save({"model": state, "step": 0}, old / f"{name}.pt")
    for folder in ("speech", "codes"):
        shutil.copytree(work / folder, carried / folder)
    shutil.copy(work / "codec.pt", carried)
    recipe("carry", "--old", old, "--work", carried)
    for name, state in before.items():
        after = torch.load(carried / f"{name}.pt", weights_only=True)["model"]
        kept = [key for key in state if "positions" not in key and key != "code_tables"]
        assert all(torch.equal(after[key], state[key]) for key in kept)
        assert not any(
            after[f"blocks.{number}.down.weight"].any() for number in range(1, checkpoint.config.layers)
        )
    recipe("train", "ar", "--work", carried, "--steps", 1)

    wide = tmp_path / "wide"
    shutil.copytree(work / "speech", wide / "speech")
    recipe("train_codec", "--work", wide, "--from", work / "codec.pt", "--steps", 201)
    recipe("encode", "--work", wide)
    recipe("carry", "--old", old, "--work", wide)
    rows = torch.load(wide / "ar.pt", weights_only=True)["model"]["code_table.weight"]
    those_before = before["ar"]["code_table.weight"]
    assert torch.equal(rows[-1], those_before[-1]), "the end's row stays"
    assert not torch.equal(rows, those_before), "codebook 0 has moved, and the AR's rows with it"


def test_a_cut_utterance_ends_with_a_word_and_a_mark(recipe) -> None:  # type: ignore[no-untyped-def]
    batches = import_module("batches")
    space, mark = (list(VOCABULARY).index(symbol) for symbol in " .")
    said, ends = np.array([3, 4, space, 5, space, 6, mark]), np.array([20.0, 30, 40, 60, 70, 150, 160])
    sample = batches.Sample("elm", said, ends, np.arange(160 * 8).reshape(160, 8))
    found = batches.cut(sample, np.random.default_rng(0))
    assert found.ids.tolist() == [3, 4, space, 5, mark], "the only word that ends late enough"
    assert np.array_equal(found.codes, sample.codes[:60]) and found.ends.tolist() == [20, 30, 40, 60, 60]
    short = batches.Sample("elm", said[:3], ends[:3], sample.codes[:40])
    assert batches.cut(short, np.random.default_rng(0)) is short
