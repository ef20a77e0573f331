"""A sentence without speech is made once more; then it is an error, never a silent success."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.runtime.server.conftest import serving
from valle2.runtime import Request, Speech, Valle2
from valle2.runtime.cli.main import main
from valle2.runtime.errors import SynthesisError
from valle2.runtime.generation import engine
from valle2.runtime.generation.utterance import Utterance
from valle2.runtime.server.limits import Limits
from valle2.runtime.server.worker import Worker
from valle2.runtime.types import Settings

TEXT = "Mind the step."
VARIED = Settings(top_p=0.9, threshold=1.0, retries=1)
ANY = 10.0
"""A level that no audio reaches."""


@pytest.fixture(scope="module")
def tts() -> Iterator[Valle2]:
    with Valle2.load("demo", threads=1, slots=4) as model:
        yield model


def silent_below(monkeypatch: pytest.MonkeyPatch, level: float) -> None:
    """Make every sentence count as silent whose samples are all below this."""
    monkeypatch.setattr(engine, "SILENT", level)


def peak(speech: Speech) -> float:
    return float(np.abs(speech.audio).max())


def test_the_retry_is_given_out_and_is_the_same_in_any_company(
    tts: Valle2, monkeypatch: pytest.MonkeyPatch
) -> None:
    voice = tts.voice("elm")
    for seed in range(10):
        settings = replace(VARIED, seed=seed)
        first = tts.synthesize(TEXT, voice, settings)
        silent_below(monkeypatch, peak(first) * 1.0001)
        try:
            second = tts.synthesize(TEXT, voice, settings)
            break
        except SynthesisError:
            silent_below(monkeypatch, 0.0)
    else:
        raise AssertionError("no seed has a louder second attempt")
    assert peak(second) > peak(first) and second.finish_reason == "eos"
    assert (first.timings.retries, second.timings.retries) == (0, 1)
    assert second.timings.steps > len(second.codes) // 2, "the steps of both attempts count"
    assert np.array_equal(tts.synthesize(TEXT, voice, settings).codes, second.codes)
    other = Request("I agree with you, and so does everybody else here.", voice, replace(VARIED, seed=1))
    together = tts.synthesize_batch([other, Request(TEXT, voice, settings)])
    assert np.array_equal(together[1].codes, second.codes)
    streamed = b"".join(audio.tobytes() for audio in tts.stream(TEXT, voice, settings, first_chunk_seconds=0))
    assert streamed == second.audio.tobytes()
    timed = tts.synthesize(TEXT, voice, settings, speed=2.0, timestamps=True)
    assert [word.text for word in timed.words] == TEXT.split() and timed.words[-1].end <= timed.timings.audio


def test_silence_to_the_last_attempt_is_an_error_of_that_request_alone(
    tts: Valle2, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent_below(monkeypatch, ANY)
    voice = tts.voice("elm")
    with pytest.raises(SynthesisError, match="try another seed"):
        tts.synthesize(TEXT, voice)
    with pytest.raises(SynthesisError), tts.stream(TEXT, voice) as stream:
        for _ in stream:
            pass
    silent_below(monkeypatch, 0.0)
    assert len(tts.synthesize(TEXT, voice).audio)
    assert not tts.engine.busy


def test_a_loop_with_speech_is_better_than_a_silent_attempt(
    tts: Valle2, monkeypatch: pytest.MonkeyPatch
) -> None:
    voice, kept = tts.voice("elm"), list[int]()
    looping = replace(VARIED, loop_frames=4)
    first = tts.synthesize(TEXT, voice, replace(looping, retries=0))
    assert first.finish_reason == "repetition"

    def rejected(utterance: Utterance) -> bool:
        kept.append(utterance.kept)
        return usual(utterance)

    usual = Utterance.reject_silence
    monkeypatch.setattr(Utterance, "reject_silence", rejected)
    monkeypatch.setattr(Utterance, "cut_off", property(lambda self: self.kept == 0))
    silent_below(monkeypatch, ANY)
    with pytest.raises(SynthesisError):
        tts.synthesize(TEXT, voice, looping)
    assert kept == [1, 0], "the second attempt is silent; then the first one is tried"


def test_frames_that_a_text_needs(tts: Valle2) -> None:
    layout = tts.model.layout
    assert layout.fewest_frames(30, 10) == 40 and layout.fewest_frames(30, None) == 1
    other = replace(layout, fewest_per_token=0)
    assert other.fewest_frames(30, 10) == 1
    assert other.fewest_frames(30, 10, 40) == 20, "a quarter of the prompt's pace"
    assert other.fewest_frames(30, 10, 4000) == 40, "a prompt of silence has no pace"
    assert other.fewest_frames(30, 0, 40) == 1


def test_say_fails_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    silent_below(monkeypatch, ANY)
    assert main(["say", TEXT, "-o", str(tmp_path / "o.wav"), "--threads", "1"]) == 1
    assert "no speech" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_server_answers_before_the_first_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    silent_below(monkeypatch, ANY)
    worker = Worker(lambda slots: Valle2.load("demo", threads=1, slots=slots), Limits(slots=1))
    with serving(worker, tmp_path) as address:
        body = {"input": TEXT, "first_chunk_seconds": 0, "response_format": "mp3"}
        found = httpx.post(f"{address}/v1/audio/speech", json=body, timeout=120)
    error = found.json()["error"]
    assert found.status_code == 500 and error["code"] == "no_speech" and error["type"] == "server_error"
    assert worker.restarts == 0
