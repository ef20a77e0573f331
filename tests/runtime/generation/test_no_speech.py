"""A sentence with too little speech is decoded once more; then it is an error, never an empty success."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.runtime.server.conftest import serving
from valle2.runtime import Request, Valle2
from valle2.runtime.cli.main import main
from valle2.runtime.errors import SynthesisError
from valle2.runtime.generation.token_layout import TokenLayout
from valle2.runtime.server.limits import Limits
from valle2.runtime.server.worker import Worker
from valle2.runtime.types import Settings

TEXT = "Mind the step."
VARIED = Settings(top_p=0.9, threshold=1.0, retries=1)
NEVER = 10**6


@pytest.fixture(scope="module")
def tts() -> Iterator[Valle2]:
    with Valle2.load("demo", threads=1, slots=4) as model:
        yield model


def need(monkeypatch: pytest.MonkeyPatch, frames: int) -> None:
    """Make every sentence need so many frames."""
    monkeypatch.setattr(TokenLayout, "fewest_frames", lambda *_: frames)


def frames_of_both(tts: Valle2, monkeypatch: pytest.MonkeyPatch, settings: Settings) -> tuple[int, int]:
    """The frames of the first attempt at TEXT and of the second."""
    voice = tts.voice("elm")
    with monkeypatch.context() as patch:
        need(patch, 1)
        first = len(tts.synthesize(TEXT, voice, settings).codes)
        need(patch, NEVER)
        with pytest.raises(SynthesisError) as failed:
            tts.synthesize(TEXT, voice, settings)
    found = re.search(r"made (\d+) frames", str(failed.value))
    assert found
    return first, int(found[1])


def test_the_retry_is_given_out_and_is_the_same_in_any_company(
    tts: Valle2, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(10):
        settings = replace(VARIED, seed=seed)
        first, second = frames_of_both(tts, monkeypatch, settings)
        if first < second:
            break
    assert first < second, "no seed has a longer second attempt"
    voice = tts.voice("elm")
    need(monkeypatch, second)
    alone = tts.synthesize(TEXT, voice, settings)
    assert len(alone.codes) == second and alone.finish_reason == "eos"
    assert np.array_equal(tts.synthesize(TEXT, voice, settings).codes, alone.codes)
    need(monkeypatch, second)
    other = Request("I agree with you, and so does everybody else here.", voice, replace(VARIED, seed=1))
    together = tts.synthesize_batch([other, Request(TEXT, voice, settings)])
    assert np.array_equal(together[1].codes, alone.codes)
    streamed = b"".join(audio.tobytes() for audio in tts.stream(TEXT, voice, settings, first_chunk_seconds=0))
    assert streamed == alone.audio.tobytes()


def test_twice_too_short_is_an_error_of_that_request_alone(
    tts: Valle2, monkeypatch: pytest.MonkeyPatch
) -> None:
    need(monkeypatch, NEVER)
    voice = tts.voice("elm")
    with pytest.raises(SynthesisError, match="try another seed"):
        tts.synthesize(TEXT, voice)
    with pytest.raises(SynthesisError), tts.stream(TEXT, voice) as stream:
        for _ in stream:
            pass
    need(monkeypatch, 1)
    assert len(tts.synthesize(TEXT, voice).audio)
    assert not tts.engine.busy


def test_the_longest_candidate_counts_where_others_are_too_short(
    tts: Valle2, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, voice = replace(VARIED, candidates=3), tts.voice("elm")
    lengths = []
    need(monkeypatch, 1)
    for frames in range(60, 200, 20):
        need(monkeypatch, frames)
        try:
            lengths.append((frames, len(tts.synthesize(TEXT, voice, settings).codes)))
        except SynthesisError:
            break
        if lengths[-1][1] > lengths[0][1]:
            break
    assert all(found >= frames for frames, found in lengths)


def test_frames_that_a_text_needs(tts: Valle2) -> None:
    layout = tts.model.layout
    assert layout.fewest_frames(30, 10) == 40 and layout.fewest_frames(30, None) == 1
    assert replace(layout, fewest_per_token=0).fewest_frames(30, 10) == 1


def test_say_fails_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    need(monkeypatch, NEVER)
    assert main(["say", TEXT, "-o", str(tmp_path / "o.wav"), "--threads", "1"]) == 1
    assert "frames of speech" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_server_answers_before_the_first_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need(monkeypatch, NEVER)
    worker = Worker(lambda slots: Valle2.load("demo", threads=1, slots=slots), Limits(slots=1))
    with serving(worker, tmp_path) as address:
        body = {"input": TEXT, "first_chunk_seconds": 0, "response_format": "mp3"}
        found = httpx.post(f"{address}/v1/audio/speech", json=body, timeout=120)
    error = found.json()["error"]
    assert found.status_code == 500 and error["code"] == "no_speech" and error["type"] == "server_error"
    assert worker.restarts == 0
