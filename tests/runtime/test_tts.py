"""The pipeline on a toy model: codes, seeds, candidates, streaming, tokens, limits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from tests.conftest import edit_manifest, shared
from valle2.export import read_checkpoint
from valle2.export.models.reference import generate, refine
from valle2.runtime import Prompt, Request, Settings, Valle2
from valle2.runtime.audio.io import write_audio
from valle2.runtime.audio.prepare import PAUSE_SECONDS
from valle2.runtime.errors import ModelError, PromptError, SettingsError, TextError
from valle2.runtime.generation import utterance
from valle2.runtime.generation.sampling import best_candidate

SHORT = Settings(top_p=0.5, max_frames=20)


def test_synthesize_shapes_and_timings(tts: Valle2, voice: Prompt) -> None:
    speech = tts.synthesize("hello there", voice, SHORT)
    assert speech.codes.shape[1] == 8 and speech.codes.dtype == np.int64
    assert len(speech.audio) == len(speech.codes) * 320 and speech.sample_rate == 24000
    assert speech.finish_reason in ("eos", "max_frames")
    times = speech.timings
    stages = times.prefill + times.ar + times.nar + times.codec
    assert 0 < stages <= times.total and times.steps >= 1 and times.rtf > 0


def test_codes_equal_eager_pytorch(tts: Valle2, voice: Prompt, checkpoint_folder: Path) -> None:
    checkpoint = read_checkpoint(checkpoint_folder)
    assert tts.front is not None
    ids = tts.front.encode("hello fox")
    found = tts.generate_codes(ids, voice.codes, Settings(top_p=0.0, threshold=1.0, max_frames=30))
    text = np.append(ids, checkpoint.config.vocab_size)
    first, ended = generate(checkpoint.ar, text, voice.codes[:, 0], 15)
    assert found.finish_reason == ("eos" if ended else "max_frames")
    assert np.array_equal(found.codes, refine(checkpoint.nar, text, voice.codes, first))


@pytest.mark.parametrize("typed", ["hello fox", "hello fox, ", " hello fox.\n"])
def test_a_transcript_may_lack_its_full_stop(tts: Valle2, voice: Prompt, typed: str) -> None:
    """The embedded model spoke nothing, or the end of the prompt, without one."""
    said = tts.synthesize("hello there", replace(voice, transcript=typed), SHORT)
    asked = tts.synthesize("hello there", replace(voice, transcript="hello fox"), SHORT)
    texts = [
        tts.encode(Request("hello there", replace(voice, transcript=transcript), SHORT)).sentences[0].text
        for transcript in (typed, "hello fox.")
    ]
    assert np.array_equal(said.codes, asked.codes)
    assert np.array_equal(texts[0].ids, texts[1].ids) and texts[0].prompt_length == texts[1].prompt_length


def test_seeds(tts: Valle2, voice: Prompt) -> None:
    one, again, other = (
        tts.synthesize("hello there", voice, replace(SHORT, seed=seed)).codes for seed in (1, 1, 2)
    )
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_stream_joined_is_synthesize(tts: Valle2, voice: Prompt) -> None:
    text = "hello there. the fox! a apple?"
    chunks = list(tts.stream(text, voice, SHORT, latency=0))
    assert len(chunks) == 5  # three sentences and two pauses
    assert np.array_equal(np.concatenate(chunks), tts.synthesize(text, voice, SHORT).audio)


def test_an_abandoned_stream_leaves_the_model_usable(tts: Valle2, voice: Prompt) -> None:
    stream = tts.stream("hello. there. fox.", voice, SHORT)
    next(stream)
    stream.close()
    assert len(tts.synthesize("hello", voice, SHORT).audio)


def test_batch_is_each_alone(tts: Valle2, voice: Prompt) -> None:
    requests = [Request(text, voice, SHORT) for text in ("hello", "the fox")]
    for request, speech in zip(requests, tts.synthesize_batch(requests), strict=True):
        assert np.array_equal(speech.codes, tts.synthesize(request.text, voice, SHORT).codes)


def test_the_best_candidate_is_kept(tts: Valle2, voice: Prompt, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = replace(SHORT, candidates=4, top_p=1.0, threshold=1.0)

    def codes() -> np.ndarray:
        return tts.synthesize("hello", voice, settings).codes

    chosen: list[int] = []

    def noted(*found: list[Any]) -> int:
        chosen.append(best_candidate(*found))
        return chosen[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utterance, "best_candidate", noted)
        kept = codes()
    each = []
    for index in range(4):
        monkeypatch.setattr(utterance, "best_candidate", lambda *found, index=index: index)
        each.append(codes())
    assert np.array_equal(kept, each[chosen[-1]])
    assert not any(np.array_equal(kept, codes) for index, codes in enumerate(each) if index != chosen[-1])


@pytest.mark.parametrize(
    ("lengths", "ended", "scores", "expected"),
    [
        ([10, 10, 10], [True, True, True], [-3, -1, -2], 1),
        ([10, 10, 10], [True, False, True], [-3, -1, -2], 2),
        ([10, 30, 11], [True, True, True], [-3, -1, -2], 2),
        ([10, 10], [False, False], [-1, -1], 0),
    ],
)
def test_selection_rule(lengths: list[int], ended: list[bool], scores: list[float], expected: int) -> None:
    assert best_candidate(lengths, ended, scores) == expected


def test_an_odd_prompt_is_clipped_at_its_start(tts: Valle2, voice: Prompt) -> None:
    ids = np.array([5, 6, 7])
    odd = tts.generate_codes(ids, voice.codes[1:], SHORT)
    even = tts.generate_codes(ids, voice.codes[2:], SHORT)
    assert np.array_equal(odd.codes, even.codes)


def test_no_prompt_at_all(tts: Valle2) -> None:
    assert tts.generate_codes(np.array([5, 6]), np.zeros((0, 8), np.int64), SHORT).codes.shape[1] == 8


def test_max_frames_is_exact(tts: Valle2, voice: Prompt) -> None:
    for frames in (1, 6, 7):  # of groups of two
        settings = Settings(top_p=1.0, threshold=1.0, max_frames=frames, seed=4)
        found = tts.generate_codes(np.array([5, 6, 7]), voice.codes, settings)
        assert len(found.codes) == frames and found.finish_reason == "max_frames"


def test_real_encodec_codes_as_a_prompt(tts: Valle2) -> None:
    with np.load(shared("fixtures/encodec-codes/vctk_1.npz")) as file:
        codes = file["audio_tokens"][0].astype(np.int64)
    found = tts.generate_codes(np.array([5, 6, 7]), codes[:100], SHORT)
    assert found.codes.shape[1] == 8


def test_a_prompt_from_a_recording(tts: Valle2, tmp_path: Path) -> None:
    audio, rate = soundfile.read(shared("prompts/libritts_5142_33396_000002_000004.wav"), dtype="float32")
    assert len(audio) >= 3 * rate, "the toy model takes 2.67 s"
    for seconds in (2, 3):
        write_audio(str(tmp_path / f"{seconds}.wav"), audio[: seconds * rate], rate)
    prompt = tts.prompt(tmp_path / "2.wav", "some words")
    assert prompt.codes.shape == (round((2 + PAUSE_SECONDS) * 75), 8) and prompt.transcript == "some words"
    assert len(np.unique(prompt.codes)) > 10
    with pytest.raises(PromptError, match=r"lasts 3\.00 s; expected 0\.5 to 2\.66"):
        tts.prompt(tmp_path / "3.wav", "some words")


def test_the_encoder_is_loaded_for_recordings_alone(broken: Path, tmp_path: Path) -> None:
    recording = tmp_path / "prompt.wav"
    write_audio(str(recording), np.sin(np.arange(24000, dtype=np.float32) / 20), 24000)

    def prompt(tts: Valle2) -> Prompt:
        return tts.prompt(recording, "some words")

    one, other = Valle2.load(broken), Valle2.load(broken)
    one.synthesize("hello", one.voice("amber"), SHORT)
    assert "encoder" not in vars(one.need_codec())
    codes = prompt(one).codes
    edit_manifest(broken, lambda values: values.update(name="another"))
    assert np.array_equal(prompt(one).codes, codes)
    with pytest.raises(ModelError, match="has changed since it was loaded"):
        prompt(other)


@pytest.mark.parametrize(
    ("ids", "codes", "error", "message"),
    [
        (
            np.zeros(0, np.int64),
            np.zeros((2, 8), np.int64),
            TextError,
            r"int64 \(0,\); expected integers of 1 to",
        ),
        (np.array([999]), np.zeros((2, 8), np.int64), TextError, r"span 999\.\.999; expected 0\.\."),
        (np.array([-1]), np.zeros((2, 8), np.int64), TextError, r"span -1\.\.-1; expected 0\.\."),
        (np.array([0.5]), np.zeros((2, 8), np.int64), TextError, "float64"),
        (np.array([1]), np.zeros((2, 7), np.int64), PromptError, r"\(2, 7\); expected integers \(P, 8\)"),
        (np.array([1]), np.full((2, 8), 1024), PromptError, r"span 1024\.\.1024; expected 0\.\.1023"),
        (np.array([1]), np.zeros((401, 8), np.int64), PromptError, "400 frames fills the model's 400"),
        (np.arange(200) % 5, np.zeros((2, 8), np.int64), TextError, r"\(200,\); expected integers of 1 to"),
    ],
)
def test_bad_tokens(
    tts: Valle2, ids: np.ndarray, codes: np.ndarray, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        tts.generate_codes(ids, codes)


@pytest.mark.parametrize(
    "change",
    [
        {"top_p": float("nan")}, {"top_p": -0.1}, {"top_p": 1.1}, {"top_p": "x"}, {"window": 0},
        {"window": 2.5}, {"threshold": float("inf")}, {"seed": -1}, {"seed": 2**63}, {"candidates": 0},
        {"candidates": True}, {"max_frames": -1},
    ],
)  # fmt: skip
def test_bad_settings(change: dict[str, float]) -> None:
    with pytest.raises(SettingsError, match=f"{next(iter(change))} is .*expected"):
        Settings(**change)  # type: ignore[arg-type]


@pytest.mark.parametrize("lowering", ["portable", "primitive"])
def test_other_lowerings_speak_the_same_codes(
    tts: Valle2, voice: Prompt, fixed_bundles: dict[str, Path], lowering: str
) -> None:
    portable = Valle2.load(fixed_bundles[lowering])
    settings = Settings(top_p=0.6, max_frames=24, seed=3)
    assert np.array_equal(
        portable.synthesize("hello", voice, settings).codes, tts.synthesize("hello", voice, settings).codes
    )
