"""`POST /v1/audio/speech/batch`: results and errors by item, bounds, and clients that leave."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

pytest.importorskip("fastapi", reason="needs the extra: serve")
import soundfile
from starlette.requests import Request as HttpRequest

from tests.runtime.server.conftest import LONG, idle, serving, wait_until
from valle2.runtime import Valle2
from valle2.runtime.server.admission import Ratio
from valle2.runtime.server.http.batch import MAX_ITEMS, Batches, BatchRequest, written
from valle2.runtime.server.http.errors import HttpError
from valle2.runtime.server.http.guard import CLIENT
from valle2.runtime.server.http.speak import PIECE_BYTES
from valle2.runtime.server.keys import Client
from valle2.runtime.server.limits import Limits, RefusedError, TooLongError
from valle2.runtime.server.worker import Worker

PCM = {"voice": "amber", "seed": 3, "response_format": "pcm"}


@pytest.fixture(scope="module")
def server(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Worker]]:
    worker = Worker(
        lambda slots: Valle2.load(bundle, threads=1, slots=slots), Limits(slots=2, queue=2, text=2000)
    )
    with serving(worker, tmp_path_factory.mktemp("uploaded")) as address:
        yield address, worker


def ask(base: str, items: object, **more: object) -> httpx.Response:
    return httpx.post(f"{base}/v1/audio/speech/batch", json={"items": items, **more}, timeout=120)


def alone(base: str, **fields: object) -> bytes:
    return httpx.post(f"{base}/v1/audio/speech", json=PCM | fields, timeout=60).content


def test_each_item_is_what_the_speech_endpoint_says_in_order(server: tuple[str, Worker]) -> None:
    """More items than the server takes requests at once, and bad ones among them."""
    base, worker = server
    texts = ["hello there", "a fox", "the apple", "a fox there", "hello", "the end"]
    items: list[Any] = [{"input": text, **PCM} for text in texts]
    items.insert(2, {"input": "hello", "voice": "nobody"})
    items.insert(4, "no object")
    items.insert(5, {"input": "???", **PCM})
    items.append({"input": "hello", "stream_format": "sse"})
    items.append({"input": "hello", "top_p": 7})
    answer = ask(base, items)
    assert answer.status_code == 200 and answer.headers["content-type"] == "application/json"
    results = answer.json()["results"]
    good = [result for result in results if "error" not in result]
    assert [base64.b64decode(result["audio"]) for result in good] == [alone(base, input=t) for t in texts]
    assert all(result["finish_reason"] and result["warnings"] == [] for result in good)
    assert all(result["format"] == "pcm" and result["sample_rate"] == 24000 for result in good)
    bad = {index: result["status"] for index, result in enumerate(results) if "error" in result}
    assert bad == {2: 404, 4: 400, 5: 400, 9: 400, 10: 400}
    single = httpx.post(f"{base}/v1/audio/speech", json={"input": "hello", "voice": "nobody"}).json()
    assert results[2]["error"] == single["error"]
    wait_until(lambda: idle(worker))
    assert not worker.metrics.rejected._value.get()


def test_formats(server: tuple[str, Worker]) -> None:
    kinds = ("wav", "flac", "mp3", "opus")
    results = ask(
        server[0], [{"input": "a fox", "seed": 3, "response_format": kind} for kind in kinds]
    ).json()
    for result in results["results"]:
        audio, rate = soundfile.read(BytesIO(base64.b64decode(result["audio"])))
        assert rate and len(audio) > 1000


@pytest.mark.parametrize(
    "body",
    [
        {},
        [],
        {"items": []},
        {"items": {}},
        {"items": [{"input": "a"}] * (MAX_ITEMS + 1)},
        {"items": [{"input": "a"}], "other": 1},
    ],
)
def test_a_body_that_is_no_batch(server: tuple[str, Worker], body: object) -> None:
    found = httpx.post(f"{server[0]}/v1/audio/speech/batch", json=body, timeout=60)
    assert found.status_code == 400 and found.json()["error"]["message"]


def test_the_audio_of_a_batch_is_bounded(server: tuple[str, Worker], monkeypatch: pytest.MonkeyPatch) -> None:
    """Before by its estimate; and what was estimated too low, once it is made."""
    base, worker = server
    long = [{"input": LONG, **PCM}] * 4
    monkeypatch.setattr(worker, "limits", Limits(slots=2, queue=2, audio_seconds=10))
    found = ask(base, long)
    assert found.status_code == 413 and "at most 10 s" in found.json()["error"]["message"]
    assert found.json()["error"]["code"] == "text_too_long"
    seconds = len(alone(base, input="a fox")) / 2 / 24000
    monkeypatch.setattr(worker, "limits", Limits(slots=2, queue=2, audio_seconds=3.5 * seconds))
    monkeypatch.setattr(worker.admission, "per_character", Ratio(1e-6, 1e9, 1e9))
    results = ask(base, [{"input": "a fox", **PCM}] * 8).json()["results"]
    statuses = [result.get("status", 200) for result in results]
    assert 200 in statuses and 413 in statuses and set(statuses) == {200, 413}
    wait_until(lambda: idle(worker))


def test_many_batches_at_once_are_refused(worker: Worker) -> None:
    batches = Batches(worker, None)  # type: ignore[arg-type]
    other = BatchRequest(worker, None, Client(), [])  # type: ignore[arg-type]
    other.seconds = 4 * worker.limits.audio_seconds
    batches.under_way.add(other)
    scope = {"type": "http", "headers": [(b"content-type", b"application/json")], CLIENT: Client()}
    data = json.dumps({"items": [{"input": "a fox"}]}).encode()
    with pytest.raises(RefusedError, match="other batches") as refused:
        asyncio.run(batches.respond(HttpRequest(scope), data))
    assert refused.value.code == "batches_full" and refused.value.retry_after >= 1
    with pytest.raises(HttpError):
        asyncio.run(batches.respond(HttpRequest(scope), b"{}"))
    worker.admission.limits = Limits()
    with pytest.raises(TooLongError):
        data = json.dumps({"items": [{"input": "a" * 90_000}]}).encode()
        asyncio.run(batches.respond(HttpRequest(scope), data))


def test_a_client_that_leaves_cancels_every_item(server: tuple[str, Worker]) -> None:
    base, worker = server
    before = worker.metrics.completed._value.get()
    body = json.dumps({"items": [{"input": LONG * 2, **PCM}] * 8}).encode()
    head = b"POST /v1/audio/speech/batch HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", int(base.rsplit(":", 1)[1])), 20) as client:
        client.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        wait_until(lambda: worker.running)
    wait_until(lambda: idle(worker))
    time.sleep(0.2)
    assert idle(worker) and worker.metrics.completed._value.get() - before < 8


def test_the_answer_is_written_in_small_pieces() -> None:
    audio = bytes(np.random.default_rng(0).integers(0, 256, 300_000, np.uint8))
    results: list[dict[str, Any]] = [
        {"audio": audio, "format": "pcm"},
        {"error": {"message": "no"}},
        {"audio": b"", "format": "pcm"},
    ]

    async def collect() -> list[bytes]:
        return [piece async for piece in written(results)]

    pieces = asyncio.run(collect())
    assert max(map(len, pieces)) <= PIECE_BYTES * 4 // 3
    found = json.loads(b"".join(pieces))["results"]
    assert base64.b64decode(found[0]["audio"]) == audio and found[1] == results[1] and found[2]["audio"] == ""
