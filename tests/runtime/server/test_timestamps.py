"""Speed and times of words over HTTP and a WebSocket."""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file
from websockets.exceptions import ConnectionClosedError
from websockets.sync.client import connect

from tests.conftest import SYMBOLS
from tests.runtime.server.conftest import serving
from valle2.engine import hash_files, read_manifest, write_manifest
from valle2.runtime import Valle2
from valle2.runtime.generation.alignment import FILE
from valle2.runtime.server.limits import Limits
from valle2.runtime.server.worker import Worker

RATE = 24000
TEXT = "hello there. the fox, the apple."


@pytest.fixture(scope="module")
def timed_bundle(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy with a table for the times of words. Its numbers are random, as the toy's weights are."""
    folder = Path(shutil.copytree(bundle, tmp_path_factory.mktemp("timed") / "toy"))
    count = len(SYMBOLS)
    costs = np.random.default_rng(0).integers(60, 160, (count, 1024)).astype(np.uint8)
    table: dict[str, NDArray[Any]] = {
        "ids": np.arange(count, dtype=np.int32),
        "costs": costs,
        "frames": np.full(count, 4, np.float32),
    }
    save_file(table, str(folder / FILE))
    write_manifest(folder, replace(read_manifest(folder, check_hashes=False), files=hash_files(folder)))
    return folder


@pytest.fixture(scope="module")
def base(timed_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    worker = Worker(lambda slots: Valle2.load(timed_bundle, threads=1, slots=slots), Limits(slots=2))
    with serving(worker, tmp_path_factory.mktemp("uploaded")) as address:
        yield address


def speak(base: str, **fields: object) -> httpx.Response:
    body = {"input": TEXT, "voice": "amber", "seed": 3, "response_format": "pcm", "max_frames": 60} | fields
    return httpx.post(f"{base}/v1/audio/speech", json=body, timeout=60)


def events(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 200, answer.text
    return [json.loads(line.removeprefix("data: ")) for line in answer.text.split("\n\n") if line]


def words_of(messages: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [word for message in messages if message["type"] == kind for word in message["words"]]


def check_words(words: list[dict[str, Any]], seconds: float) -> None:
    """The first words of the text, in order, within the audio."""
    assert len(words) > 1 and TEXT.startswith(" ".join(word["word"] for word in words))
    times = [time for word in words for time in (word["start"], word["end"])]
    assert times == sorted(times) and times[0] >= 0 and times[-1] <= seconds + 0.001


@pytest.mark.parametrize("speed", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("audio_format", ["pcm", "mp3"])
def test_events_with_words(base: str, audio_format: str, speed: float) -> None:
    fields = {"stream_format": "sse", "speed": speed, "response_format": audio_format, "max_frames": 300}
    found = events(speak(base, timestamps=True, **fields))
    plain = events(speak(base, **fields))
    deltas = [event for event in found if event["type"] == "speech.audio.delta"]
    assert deltas == [event for event in plain if event["type"] == "speech.audio.delta"]
    assert found[-1] == plain[-1] and found[-1]["type"] == "speech.audio.done"
    assert not words_of(plain, "speech.audio.words")
    pcm = speak(base, **(fields | {"stream_format": "audio", "response_format": "pcm"})).content
    check_words(words_of(found, "speech.audio.words"), len(pcm) / 2 / RATE)
    assert any(base64.b64decode(event["audio"]) for event in deltas)


@pytest.mark.parametrize("speed", [0.25, 0.75, 1.5, 4])
def test_speed_of_audio(base: str, speed: float) -> None:
    usual, made = speak(base), speak(base, speed=speed)
    assert abs(len(made.content) * speed / len(usual.content) - 1) < 0.01
    assert speak(base, speed=1).content == usual.content


def socket_messages(base: str, first: dict[str, object]) -> tuple[list[dict[str, Any]], bytes]:
    with connect(base.replace("http", "ws") + "/v1/audio/speech/stream") as socket:
        socket.send(json.dumps(first | {"text": TEXT, "end": True}))
        received = list(socket)
    parsed = [json.loads(one) for one in received if isinstance(one, str)]
    return parsed, b"".join(one for one in received if isinstance(one, bytes))


@pytest.mark.parametrize("speed", [None, 1, 2.0])
def test_a_websocket_with_words(base: str, speed: float | None) -> None:
    """Times count from the beginning of all audio, over several sentences."""
    messages, audio = socket_messages(base, {"speed": speed, "timestamps": True})
    words = words_of(messages, "words")
    assert len(words) > 2 and TEXT.startswith(" ".join(word["word"] for word in words))
    times = [time for word in words for time in (word["start"], word["end"])]
    assert times == sorted(times) and times[-1] <= len(audio) / 2 / RATE + 0.001
    assert messages[-1]["type"] == "done" and not messages[-1]["warnings"]
    plain, usual = socket_messages(base, {})
    assert not words_of(plain, "words") and abs(len(audio) * (speed or 1) / len(usual) - 1) < 0.01


@pytest.mark.parametrize(
    ("first", "message"),
    [
        ({"speed": 9}, "speed is 9; expected a number from 0.25 to 4"),
        ({"speed": "fast"}, "speed is 'fast'; expected a number"),
        ({"timestamps": "yes"}, "timestamps is 'yes'; expected true or false"),
    ],
)
def test_a_websocket_refuses_wrong_values(base: str, first: dict[str, object], message: str) -> None:
    with connect(base.replace("http", "ws") + "/v1/audio/speech/stream") as socket:
        socket.send(json.dumps(first | {"text": "hello."}))
        error = json.loads(socket.recv())
        assert error["type"] == "error" and message in error["message"]
        with pytest.raises(ConnectionClosedError, match="1011"):
            socket.recv()
