"""WebSocket sessions: flush, cancel, text by tokens, the bound on waiting text; and a cut HTTP/1.0 answer."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the extra: serve")

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.runtime.server.conftest import LONG, serving, wait_until
from valle2.benchmarks.serving.client import speech_body
from valle2.runtime import Valle2
from valle2.runtime.server.limits import Limits
from valle2.runtime.server.reply import Reply
from valle2.runtime.server.worker import Worker
from valle2.runtime.types import Request


@pytest.fixture(scope="module")
def server(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Worker]]:
    limits = Limits(slots=2, queue=2, text=600, stall_seconds=1.0)
    worker = Worker(lambda slots: Valle2.load(bundle, threads=1, slots=slots), limits)
    with serving(worker, tmp_path_factory.mktemp("uploaded")) as address:
        yield address, worker


def opened(base: str) -> ClientConnection:
    return connect(base.replace("http", "ws") + "/v1/audio/speech/stream")


def until(client: ClientConnection, kind: str) -> tuple[int, list[dict[str, Any]]]:
    """Bytes of audio and the messages up to one of this type."""
    size, found = 0, list[dict[str, Any]]()
    while not found or found[-1]["type"] != kind:
        message = client.recv(20)
        if isinstance(message, bytes):
            size += len(message)
        else:
            found.append(json.loads(message))
    return size, found


def send(client: ClientConnection, **message: object) -> None:
    client.send(json.dumps(message))


def test_flush_speaks_at_once_and_the_connection_goes_on(server: tuple[str, Worker]) -> None:
    with opened(server[0]) as client:
        for text in ("hello", "hello there", "a fox"):
            send(client, text=text, flush=True)
            size, found = until(client, "flushed")
            assert size > 1000 and found[-1]["finish_reason"]
        send(client, flush=True)
        assert until(client, "flushed")[0] == 0
        send(client, text="the end", end=True)
        assert until(client, "done")[0] > 1000


def test_text_by_tokens(server: tuple[str, Worker], monkeypatch: pytest.MonkeyPatch) -> None:
    base, worker = server
    submit, asked = worker.submit, list[str]()

    def noted(request: Request, **more: Any) -> Reply:
        asked.append(request.text)
        return submit(replace(request, text="hello"), **more)

    monkeypatch.setattr(worker, "submit", noted)
    with opened(base) as client:
        for token in ("He", "llo", " the", "re", ".", " A", " fo", "x", " j", "umps", "."):
            send(client, text=token)
        wait_until(lambda: asked == ["Hello there."])
        send(client, flush=True)
        until(client, "flushed")
        send(client, text="Ne")
        send(client, text="xt", end=True)
        until(client, "done")
    assert asked == ["Hello there.", "A fox jumps.", "Next"]


def test_cancel_drops_what_is_not_spoken(server: tuple[str, Worker]) -> None:
    base, worker = server
    with opened(base) as client:
        send(client, text=LONG * 5)
        assert isinstance((client.recv(20), client.recv(20))[1], bytes)
        send(client, cancel=True)
        until(client, "cancelled")
        wait_until(lambda: not worker.outstanding)
        send(client, text="hello", end=True)
        size, found = until(client, "done")
        assert size > 1000 and len(found) == 1


def test_text_is_bounded_while_it_waits_and_not_for_ever(server: tuple[str, Worker]) -> None:
    with opened(server[0]) as client:
        for _ in range(5):
            send(client, text="the fox is there. " * 10, flush=True)
            until(client, "flushed")
        send(client, text="a" * 601)
        with pytest.raises(ConnectionClosed, match="1011"):
            until(client, "never")


def test_a_session_outlives_the_stall_while_it_speaks(server: tuple[str, Worker]) -> None:
    with opened(server[0]) as client:
        send(client, text=LONG * 3, flush=True)
        assert until(client, "flushed")[0] > 1000
        began = time.perf_counter()
        with pytest.raises(ConnectionClosed, match="1011"):
            until(client, "never")
        assert 0.5 < time.perf_counter() - began < 5


def test_an_answer_that_is_cut_is_reset_over_http_1_0(
    server: tuple[str, Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    base, worker = server
    submit = worker.submit

    def fails_late(request: Request, *more: Any, **options: Any) -> Reply:
        reply = submit(request, *more, **options)
        put = reply.put

        def put_and_fail(*audio: Any) -> None:
            put(*audio)
            reply.error = RuntimeError("it broke")

        monkeypatch.setattr(reply, "put", put_and_fail)
        return reply

    monkeypatch.setattr(worker, "submit", fails_late)
    body = speech_body(LONG * 3, 3, first_chunk_seconds=0.0)
    head = b"POST /v1/audio/speech HTTP/1.0\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", int(base.rsplit(":", 1)[1])), 20) as client:
        client.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        with pytest.raises(ConnectionResetError):
            while client.recv(65_536):
                pass
