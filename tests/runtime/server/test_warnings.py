"""Warnings and finish reasons reach the client of each interface."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from websockets.sync.client import connect

from tests.runtime.server.conftest import serving
from valle2.runtime import Prompt, Request, Valle2
from valle2.runtime.generation.engine import EncodedRequest
from valle2.runtime.server.http.speak import MAX_WARNINGS, warnings_header
from valle2.runtime.server.limits import Limits
from valle2.runtime.server.worker import Worker
from valle2.runtime.types import MAX_FRAMES, REPETITION
from valle2.runtime.voices import read_prompt, store_prompt

WARNINGS = ("the recording is narrow", "\u4f60 is left out")


class Cautious(Valle2):
    """A model that warns about every text. A sentence has four frames, unless the request says otherwise."""

    def encode(self, request: Request, first_chunk_seconds: float = 0.0) -> EncodedRequest:
        encoded = super().encode(request, first_chunk_seconds)
        given = encoded.settings
        return replace(encoded, warnings=WARNINGS, settings=replace(given, max_frames=given.max_frames or 4))


@pytest.fixture(scope="module")
def server(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Worker]]:
    worker = Worker(lambda slots: Cautious.load(bundle, threads=1, slots=slots), Limits(slots=2))
    with serving(worker, tmp_path_factory.mktemp("uploaded")) as address:
        yield address, worker


def test_a_response_and_its_last_event_have_the_warnings(server: tuple[str, Worker]) -> None:
    body = {"input": "hello there", "response_format": "pcm", "first_chunk_seconds": 9}
    found = httpx.post(f"{server[0]}/v1/audio/speech", json=body, timeout=60)
    assert found.status_code == 200 and found.headers["x-warnings"].isascii()
    assert tuple(json.loads(found.headers["x-warnings"])) == WARNINGS
    events = httpx.post(f"{server[0]}/v1/audio/speech", json=body | {"stream_format": "sse"}, timeout=60)
    done = json.loads(events.text.strip().split("\n\n")[-1].removeprefix("data: "))
    assert (done["finish_reason"], tuple(done["warnings"])) == (MAX_FRAMES, WARNINGS)
    assert "valle2_max_frames_total 2.0" in server[1].metrics.text().decode()


def test_a_websocket_ends_with_the_warnings_of_all_sentences(server: tuple[str, Worker]) -> None:
    with connect(server[0].replace("http", "ws") + "/v1/audio/speech/stream") as socket:
        socket.send(json.dumps({"text": "hello there. hello again.", "end": True}))
        messages = [message for message in socket if isinstance(message, str)]
    done = json.loads(messages[-1])
    assert done == {"type": "done", "finish_reason": MAX_FRAMES, "warnings": list(WARNINGS)}


def test_a_loop_is_told_and_counted_with_its_retries(server: tuple[str, Worker]) -> None:
    address, worker = server
    loop = {"input": "hello there", "threshold": 1.0, "top_p": 0.6, "loop_frames": 1, "max_frames": 200}
    whole = {"response_format": "pcm", "first_chunk_seconds": 0}
    found = httpx.post(f"{address}/v1/audio/speech", json=loop | whole | {"retries": 2}, timeout=60)
    assert found.headers.get("x-finish-reason", REPETITION) == REPETITION
    sse = loop | whole | {"stream_format": "sse"}
    events = httpx.post(f"{address}/v1/audio/speech", json=sse, timeout=60)
    last = json.loads(events.text.strip().split("\n\n")[-1].removeprefix("data: "))
    assert last["finish_reason"] == REPETITION
    items = {"items": [loop | {"seed": 0, "response_format": "wav"}]}
    batch = httpx.post(f"{address}/v1/audio/speech/batch", json=items, timeout=60)
    assert batch.json()["results"][0]["finish_reason"] == REPETITION
    with connect(address.replace("http", "ws") + "/v1/audio/speech/stream") as socket:
        socket.send(
            json.dumps(
                {
                    "text": "hello there. a fox.",
                    "end": True,
                    "retries": 0,
                    "loop_frames": 1,
                    "max_frames": 200,
                }
            )
        )
        done = json.loads([message for message in socket if isinstance(message, str)][-1])
    assert done["finish_reason"] in (REPETITION, MAX_FRAMES)
    told = worker.metrics.text().decode()
    assert "valle2_retries_total 5.0" in told, "2 as asked, 3 without a seed, 0 with one"
    counted = re.search(r"valle2_repetition_total (\d+)", told)
    assert counted and int(counted[1]) >= 3 + (done["finish_reason"] == REPETITION)


def test_settings_of_guards_are_checked(server: tuple[str, Worker]) -> None:
    for field, value in (("retries", 5), ("retries", "2"), ("loop_frames", -1), ("loop_frames", 1.5)):
        found = httpx.post(f"{server[0]}/v1/audio/speech", json={"input": "a", field: value}, timeout=60)
        assert found.status_code == 400 and field in found.json()["error"]["message"]
    with connect(server[0].replace("http", "ws") + "/v1/audio/speech/stream") as socket:
        socket.send(json.dumps({"text": "hello.", "retries": "2", "end": True}))
        message = json.loads(socket.recv(20))
    assert message["type"] == "error" and "retries" in message["message"]


@pytest.mark.parametrize("count", [1, 3, 100])
def test_the_header_is_ascii_and_bounded(count: int) -> None:
    header = warnings_header(["\U0001f600" * 900] * count)
    assert header.isascii() and len(header) <= MAX_WARNINGS and json.loads(header)[0]


def test_a_voice_keeps_its_warnings(bundle: Path, tmp_path: Path) -> None:
    with Valle2.load(bundle, threads=1) as tts:
        voice = tts.voice("amber")
    store_prompt(tmp_path / "a.safetensors", replace(voice, warnings=WARNINGS))
    found: Prompt = read_prompt(tmp_path / "a.safetensors", "a")
    assert found.warnings == WARNINGS
