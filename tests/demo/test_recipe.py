"""The recipe's scripts fit together, and demo/README.md lists the commands of demo/make.py."""

from __future__ import annotations

import argparse
import io
import re
import runpy
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file
from torch import Tensor

from demo import make
from demo.model import assemble
from demo.speech import recording, sentences, shards, speak
from demo.studies import ceilings
from demo.training import batches, train
from valle2.engine.bundle.contract import EOS_CODE
from valle2.export.checkpoint import Checkpoint, read_checkpoint
from valle2.export.models.ar import ARModel
from valle2.export.models.config import Style
from valle2.export.models.nar import NARModel
from valle2.runtime import Valle2
from valle2.runtime.voices import read_prompt

DEMO = Path(__file__).parents[2] / "demo"
VOCABULARY = {symbol: 2 * number + 1 for number, symbol in enumerate(" .,abcdefgh")}
"""Symbol -> id. The ids have gaps, as in the teachers' table."""
VOICES = {"hibari": ("amber",), "kokoro": ("elm",), "mixed": ("mixed820", "mixed821")}
SECONDS = (3.2, 3.4)
Run = Callable[..., str]
"""Runs a script of demo/ with arguments and returns what it prints."""


@pytest.fixture(scope="module", autouse=True)
def vocabulary() -> Iterator[None]:
    """A small table of symbols in place of the teachers', which are not installed here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "vocabulary", lambda: VOCABULARY)
        yield


@pytest.fixture(scope="module")
def run() -> Iterator[Run]:
    """Runs `python -m demo.NAME ARGUMENTS` in this process."""
    with pytest.MonkeyPatch.context() as patch:

        def run(name: str, *args: object) -> str:
            patch.setattr(sys, "argv", [f"demo.{name}", *map(str, args)])
            with redirect_stdout(io.StringIO()) as printed:
                runpy.run_path(str(DEMO / f"{name.replace('.', '/')}.py"), run_name="__main__")
            return printed.getvalue()

        yield run


def write_speech(work: Path) -> None:
    """Two shards of each source: noise, and symbols of equal length. The first shard is held out."""
    rng = np.random.default_rng(0)
    (work / "speech").mkdir(parents=True)
    for source, voices in VOICES.items():
        for shard in range(2):
            items = [utterance(voice, seconds, rng) for voice in voices for seconds in SECONDS]
            speak.write_shard(work / "speech" / f"{source}-{shard:04d}.npz", items)


def utterance(voice: str, seconds: float, rng: np.random.Generator) -> dict[str, Any]:
    audio = (rng.standard_normal(int(seconds * 75) * 320) * 3000).astype(np.int16)
    ids = rng.choice(list(VOCABULARY.values()), 20).astype(np.int16)
    durations = np.full(20, len(audio) / 20, np.float32)
    return {"text": "a b.", "voice": voice, "ids": ids, "durations": durations, "audio": audio}


def weights(path: Path) -> dict[str, Tensor]:
    return dict(torch.load(path, weights_only=True)["model"])


@dataclass(frozen=True, slots=True)
class Trained:
    """A work folder after all trainings, the checkpoint made of it, and what the studies printed."""

    work: Path
    folder: Path
    checkpoint: Checkpoint
    phonetic: str
    timbre: str


@pytest.fixture(scope="module")
def trained(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The recipe from speech to checkpoint, with a few steps of every training."""
    work, out = tmp_path_factory.mktemp("work"), tmp_path_factory.mktemp("made") / "model"
    at = ("--work", work)
    write_speech(work)
    run("training.train_codec", *at, "--name", "codec-first", "--steps", 1)
    run("training.train_codec", *at, "--detail-of", work / "codec-first.pt", "--steps", 1)
    run("speech.perturb", *at)
    phonetic = run("studies.phonetic", *at)
    run("training.encode", *at)
    timbre = run("studies.timbre", *at, "--bundle", "demo", "--count", 2)
    run("training.train", "ar", *at, "--steps", 2, "--decay", 1)
    run("training.train", "nar", *at, "--steps", 2)
    run("training.train", "nar", *at, "--steps", 3)
    run("training.train_vocoder", *at, "--steps", 1)
    run("model.assemble", *at, "--out", out)
    return Trained(work, out, read_checkpoint(out), phonetic, timbre)


def test_a_run_goes_on_where_it_stopped(trained: Trained) -> None:
    assert torch.load(trained.work / "nar.pt", weights_only=True)["step"] == 3


def test_studies_judge_the_held_out_shard_of_each_source(trained: Trained) -> None:
    assert all(f"| {source} | 0." in trained.phonetic for source in VOICES)
    assert all(f"| {source} | 2 | " in trained.timbre for source in VOICES), "utterances that have a prompt"


def test_perturbed_shards_are_as_long_as_their_speed_says(trained: Trained) -> None:
    codes = shards.read_codes(trained.work / "codes" / "mixed-0.94-0001.npz")
    assert [len(c) for c in codes] == [int(int(s * 75) / 0.94) for s in SECONDS] * 2


def test_the_checkpoint_has_prompts_of_every_shipped_voice(trained: Trained) -> None:
    paths = (trained.folder / "voices").glob("*.safetensors")
    voices = {path.stem: read_prompt(path, path.stem) for path in paths}
    assert set(voices) == {f"{voice}{rank}" for voice in ("amber", "elm") for rank in range(2)}


def test_the_checkpoint_holds_what_was_trained(trained: Trained) -> None:
    config = trained.checkpoint.config
    assert config.vocab_size == len(VOCABULARY) and config.vector_width
    ar = weights(trained.work / "ar.pt")
    for name, value in trained.checkpoint.ar.state_dict().items():
        assert torch.equal(value, ar[name].half().float()), f"{name} is not what was trained"


def test_an_unpacked_checkpoint_is_assembled_to_the_same(trained: Trained, run: Run, tmp_path: Path) -> None:
    again, same, voices = tmp_path / "again", tmp_path / "same", trained.folder / "voices"
    run("training.unpack", trained.folder, "--work", again)
    run("model.assemble", "--work", again, "--out", same, "--voices", voices)
    expected, found = (load_file(folder / "model.safetensors") for folder in (trained.folder, same))
    vectors, rounded = (part.pop("nar.vectors").float() for part in (expected, found))
    distances, rounded_distances = torch.cdist(vectors, vectors), torch.cdist(rounded, rounded)
    torch.testing.assert_close(rounded_distances, distances, rtol=0, atol=0.02)
    assert set(found) == set(expected)
    for name, value in expected.items():
        assert torch.equal(found[name], value), f"{name} is not what was unpacked"
    assert {path.name for path in (same / "voices").iterdir()} == {path.name for path in voices.iterdir()}


def test_the_signs_of_a_decomposition_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    tables, decompose = torch.randn(8, 20, 6), torch.linalg.svd
    found = assemble.code_vectors(tables)

    def flipped(rows: Tensor, full_matrices: bool) -> tuple[Tensor, Tensor, Tensor]:
        left, sizes, axes = decompose(rows, full_matrices=full_matrices)
        signs = torch.tensor([1.0, -1.0] * 3)
        return left * signs, sizes, axes * signs[:, None]

    monkeypatch.setattr(torch.linalg, "svd", flipped)
    assert torch.equal(assemble.code_vectors(tables), found)


def test_another_group_size_starts_from_the_checkpoint(trained: Trained, run: Run, tmp_path: Path) -> None:
    out, voices = tmp_path / "g4", trained.folder / "voices"
    at = ("--work", shutil.copytree(trained.work, tmp_path / "work"))
    run("training.train", "ar", *at, "--group", 4, "--warm", trained.folder, "--name", "ar-g4", "--steps", 1)
    run("model.assemble", *at, "--ar", "ar-g4", "--group", 4, "--out", out, "--voices", voices)
    assert read_checkpoint(out).config.group_size == 4


@dataclass(frozen=True, slots=True)
class Old:
    """A work folder of smaller AR and NAR models with position tables, and their weights."""

    folder: Path
    states: dict[str, dict[str, Tensor]]


@pytest.fixture
def old(trained: Trained, tmp_path: Path) -> Old:
    config = replace(trained.checkpoint.config, layers=1, nar_layers=1, vector_width=0, style=Style())
    states = {"ar": ARModel(config).state_dict(), "nar": NARModel(config).state_dict()}
    folder = tmp_path / "old"
    folder.mkdir()
    shutil.copy(trained.work / "codec.pt", folder)
    for name, state in states.items():
        torch.save({"model": state, "step": 0}, folder / f"{name}.pt")
    return Old(folder, states)


def test_old_weights_are_carried_to_deeper_models(
    trained: Trained, old: Old, run: Run, tmp_path: Path
) -> None:
    work, layers = tmp_path / "carried", trained.checkpoint.config.layers
    for folder in ("speech", "codes"):
        shutil.copytree(trained.work / folder, work / folder)
    shutil.copy(trained.work / "codec.pt", work)
    run("training.carry", "--old", old.folder, "--work", work)
    for name, state in old.states.items():
        after = weights(work / f"{name}.pt")
        kept = [key for key in state if "positions" not in key and key != "code_tables"]
        assert all(torch.equal(after[key], state[key]) for key in kept)
        assert not any(after[f"blocks.{number}.down.weight"].any() for number in range(1, layers))
    run("training.train", "ar", "--work", work, "--steps", 1)


def test_codes_of_a_new_codec_get_the_rows_of_their_frames(
    trained: Trained, old: Old, run: Run, tmp_path: Path
) -> None:
    work = tmp_path / "wide"
    shutil.copytree(trained.work / "speech", work / "speech")
    run("training.train_codec", "--work", work, "--from", trained.work / "codec.pt", "--steps", 201)
    run("training.encode", "--work", work)
    run("training.carry", "--old", old.folder, "--work", work)
    after, before = weights(work / "ar.pt")["code_table.weight"], old.states["ar"]["code_table.weight"]
    assert torch.equal(after[-1], before[-1]), "the row of <eos> stays"
    assert not torch.equal(after, before), "codebook 0 has moved, and the AR's rows with it"


def test_a_cut_prompt_ends_with_a_word_and_a_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    space, mark = (list(VOCABULARY).index(symbol) for symbol in " .")
    said, ends = np.array([3, 4, space, 5, space, 6, mark]), np.array([20.0, 30, 40, 60, 70, 150, 160])
    sample = batches.Example("elm", said, ends, np.arange(160 * 8).reshape(160, 8))
    monkeypatch.setattr(batches, "CUT_ERROR", (0, 1))
    found = batches.cut_end(sample, np.random.default_rng(0))
    assert found.ids.tolist() == [3, 4, space, 5, mark], "the only word that ends late enough"
    assert np.array_equal(found.codes, sample.codes[:60]) and found.ends.tolist() == [20, 30, 40, 60, 60]
    assert found.prompted and not sample.prompted
    short = batches.Example("elm", said[:3], ends[:3], sample.codes[:40])
    assert batches.cut_end(short, np.random.default_rng(0)) is short
    monkeypatch.setattr(batches, "CUT_ERROR", (5, 6))
    found = batches.cut_end(sample, np.random.default_rng(0))
    assert np.array_equal(found.codes, sample.codes[:65]) and found.ends.tolist() == [20, 30, 40, 60, 65]
    monkeypatch.setattr(batches, "CUT_ERROR", (-3, -2))
    found = batches.cut_end(sample, np.random.default_rng(0))
    assert np.array_equal(found.codes, sample.codes[:57]) and found.ends.tolist() == [20, 30, 40, 57, 57]


def test_a_cut_prompt_begins_with_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    space, mark = (list(VOCABULARY).index(symbol) for symbol in " .")
    said, ends = np.array([3, space, 5, space, 6, mark]), np.array([90.0, 100, 120, 125, 150, 160])
    sample = batches.Example("elm", said, ends, np.arange(160 * 8).reshape(160, 8))
    for error in (-3, 0, 5):
        monkeypatch.setattr(batches, "CUT_ERROR", (error, error + 1))
        found = batches.cut_start(sample, np.random.default_rng(0))
        assert found.ids.tolist() == [5, space, 6, mark] and found.prompted
        assert np.array_equal(found.codes, sample.codes[100 - error :])
        assert (found.ends - error).tolist() == [20, 25, 50, 60]
    short = batches.Example("elm", said, ends / 4, sample.codes[:40])
    assert batches.cut_start(short, np.random.default_rng(0)) is short


def test_a_prompt_of_several_utterances_may_be_cut_in_any(monkeypatch: pytest.MonkeyPatch) -> None:
    """The target after it is whole, and alone is learnt."""
    space, mark = (list(VOCABULARY).index(symbol) for symbol in " .")
    said, ends = np.array([3, space, 4, mark]), np.array([60.0, 70, 100, 110])
    parts = [batches.Example("elm", said, ends, np.full((110, 8), number)) for number in range(4)]
    monkeypatch.setattr(batches, "CUT_END_SHARE", 1.0)
    monkeypatch.setattr(batches, "CUT_START_SHARE", 0.5)
    rng, lengths = np.random.default_rng(0), set()
    for _ in range(100):
        row = batches.clipped(batches.join(batches.prompt_of(parts[:3], rng, 2), parts[3], 2), 2)
        assert row.split % 2 == 0 and set(row.codes[row.split :, 0]) == {3} and row.prompted
        assert len(row.ids) == len(row.ends) and (np.diff(row.ends) >= 0).all() and row.ends[0] >= 0
        assert row.ids[-5:].tolist() == [space, *said] and row.ids[-6] == mark
        targets = train.ar_batch([row], len(VOCABULARY), 2)["target"][0, :, 0]
        assert set(targets[targets >= 0].tolist()) == {3, EOS_CODE}
        lengths.add(row.split)
    assert min(lengths) < 70 and max(lengths) > 240 and len(lengths) > 20


@pytest.mark.parametrize("seed", range(8))
def test_a_worn_recording_keeps_its_timing(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sound = np.zeros(24000, np.float32)
    sound[8000:12000] = rng.standard_normal(4000) * 0.1
    found = recording.worn(sound, rng)
    assert found.shape == sound.shape and np.isfinite(found).all()
    loud = np.convolve(found**2, np.ones(2000), "same")
    assert 9000 < np.argmax(loud) < 12500


@pytest.mark.parametrize(("kind", "subtype"), recording.LOSSY)
def test_lossy_formats_do_not_delay(kind: str, subtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recording, "LOSSY", ((kind, subtype),))
    rng = np.random.default_rng(1)
    sound = np.cumsum(rng.standard_normal(24000)) * 0.01
    sound -= np.convolve(sound, np.ones(200) / 200, "same")
    found = recording.compressed(sound.astype(np.float32), rng)
    near = [float(np.dot(np.roll(found, shift), sound)) for shift in range(-40, 41)]
    assert np.argmax(near) == 40


def test_a_recorded_prompt_is_no_target_of_the_ar() -> None:
    """It is heard, and the utterance after it is spoken with clean codes."""
    space = list(VOCABULARY).index(" ")
    first, second = (
        batches.Example(
            "elm",
            np.array([3, space, 4]),
            np.array([10.0, 12, 20]),
            np.full((20, 8), number),
            worn=np.full((20, 8), number + 100),
        )
        for number in (1, 2)
    )
    joined = batches.clipped(batches.join(batches.as_recorded(first), second, 2), 2)
    assert joined.split == 20 and set(joined.codes[:20, 0]) == {101} and set(joined.codes[20:, 0]) == {2}
    batch = train.ar_batch([joined], len(VOCABULARY), 2)
    targets, heard = batch["target"][0, :, 0].tolist(), batch["heard"][0]
    assert [value for value in targets if value >= 0] == [2] * 10 + [EOS_CODE] and heard.sum() == 20
    plain = train.ar_batch([batches.clipped(batches.join(first, second, 2), 2)], len(VOCABULARY), 2)
    assert (plain["target"][0, :, 0] >= 0).sum() == 21


def shown(command: list[str]) -> str:
    """A command of make.py as the README writes it."""
    text = shlex.join(command).replace(str(DEMO), "demo").replace(shlex.quote(sys.executable), "python")
    return text.replace("python -m valle2.runtime.cli", "valle2")


def test_the_readme_lists_the_commands_of_make() -> None:
    """Every step with its exact numbers, in the same order, and no other."""
    table = re.findall(r"^\| `([\w-]+)` \| `([^`]+)` \|", (DEMO / "README.md").read_text("utf-8"), re.M)
    steps = make.steps(Path("W"), Path("VOICES"), shards=60)
    assert table == [(name, shown(command)) for name, command in steps]


def test_make_takes_the_numbers_of_shards_that_the_readme_shows(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["make", "--list", "--work", "W", "--styles", "VOICES"])
    make.main()
    lines = capsys.readouterr().out.splitlines()
    steps = make.steps(Path("W"), Path("VOICES"), shards=60)
    assert lines == [f"== {name}: {shlex.join(command)}" for name, command in steps]


def test_every_script_that_the_readme_names_exists() -> None:
    text = (DEMO / "README.md").read_text("utf-8")
    names = set(re.findall(r"python -m demo\.([\w.]+)|`demo\.([\w.]+)`", text))
    assert len(names) > 15
    for name in (one or other for one, other in names):
        assert (DEMO / f"{name.replace('.', '/')}.py").is_file(), f"demo.{name}"


def test_the_readme_counts_the_written_sentences() -> None:
    text = (DEMO / "README.md").read_text("utf-8")
    written = len(sentences.PLAIN.read_text("utf-8").splitlines())
    assert f"{sentences.PLAIN_SHARE:.0%}".replace("%", " %") in text and f"{written:,} written ones" in text


def test_ceilings_count_the_words_of_each_form_and_of_each_category() -> None:
    pytest.importorskip("jiwer")
    heard = {"a b": ("a b", "a b", "a c", "d c"), "e f": ("e f", "e", "e f", "e f")}
    found = [
        {
            way: ceilings.Judged(said, words, (1.0, 0.5, 100.0, 3.0))
            for way, words in zip(ceilings.WAYS, forms, strict=True)
        }
        for said, forms in heard.items()
    ]
    with redirect_stdout(io.StringIO()):
        rows = ceilings.rows_of("lines", found)
    assert [row[:3] for row in rows] == [
        ["lines", way, wrong] for way, wrong in zip(ceilings.WAYS, (0.0, 25.0, 25.0, 50.0), strict=True)
    ]
    assert rows[0][3:] == [1.0, 0.5, 100.0, 3.0]
    assert ceilings.by_category(["one", "two"], found) == [
        ["all", 0.0, 25.0, 25.0, 50.0],
        ["one", 0.0, 0.0, 50.0, 100.0],
        ["two", 0.0, 50.0, 0.0, 0.0],
    ]
    assert ceilings.rows_of("none", []) == []


def test_a_folder_without_styles_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        argparse.ArgumentTypeError, match=r"has no am_michael\.bin; expected the folder voices/"
    ):
        speak.styles_folder(str(tmp_path))
    for voice in (*speak.KOKORO.values(), *speak.OTHERS, *speak.UNSEEN):
        (tmp_path / f"{voice}.bin").touch()
    assert speak.styles_folder(str(tmp_path)) == tmp_path


def test_two_speakers_are_told_where_recordings_are_joined(run: Run, tmp_path: Path) -> None:
    with Valle2.load("demo", threads=1) as tts:
        for name in ("elm", "flint", "dune"):
            sound = tts.need_codec().decode(tts.voice(name).codes)
            (tmp_path / name).mkdir()
            for number, gain in enumerate((0.5, 1.0)):
                soundfile.write(tmp_path / name / f"{number}.flac", gain * sound, tts.sample_rate)
    printed = run("studies.two_speakers", "--people", tmp_path, "--joined", 4).splitlines()
    limit = next(place for place, cell in enumerate(printed[0].split("|")) if "above 9" in cell)
    rows = [[cell.strip() for cell in line.split("|")] for line in printed[2:]]
    assert [(row[2], row[3], row[limit]) for row in rows[1:]] == [
        ("the same, two files", "4", "0.0"),
        ("A B", "4", "100.0"),
        ("A B A", "4", "100.0"),
    ]
    assert rows[0][2] == "one speaker" and rows[0][limit] == "0.0"
