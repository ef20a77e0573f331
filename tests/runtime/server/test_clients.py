"""Clients that misbehave, over plain sockets: one that reads nothing, and those that stop half way."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runtime.server.conftest import LONG, idle, serving, wait_until
from valle2.benchmarks.serving.client import PARTIAL_REQUESTS, listen, speech_body
from valle2.runtime import Valle2
from valle2.runtime.server.limits import Limits
from valle2.runtime.server.worker import Worker

STALL = 0.5
LAST_CHUNK = b"0\r\n\r\n"
HEAD = b"POST /v1/audio/speech HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
CLOSING = (1011).to_bytes(2, "big")
NO_ANSWER = re.compile(b"")
TIMEOUT = re.compile(rb"HTTP/1\.1 408 .*no part of the body came for 0\.5 s.*", re.S)
CLOSED_SOCKET = re.compile(b"HTTP/1.1 101 .*no message came for 0.5 s.*" + re.escape(CLOSING) + b".*", re.S)


@pytest.fixture(scope="module")
def server(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, Worker]]:
    limits = Limits(slots=2, queue=2, stall_seconds=STALL)
    worker = Worker(lambda slots: Valle2.load(bundle, threads=1, slots=slots), limits)
    with serving(worker, tmp_path_factory.mktemp("uploaded")) as address:
        yield int(address.rsplit(":", 1)[1]), worker


def said(port: int) -> bytes:
    """The audio of one seed."""
    heard = listen(port, speech_body("hello there", 3, voice="amber"), time.perf_counter(), 24000)
    assert heard.whole
    return heard.data


def rest(client: socket.socket) -> bytes:
    """What the server sends until it closes the connection, or the WebSocket in it."""
    client.settimeout(5.0)
    data = b""
    try:
        while CLOSING not in data and (piece := client.recv(65_536)):
            data += piece
    except ConnectionError:
        pass
    return data


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_client_that_reads_nothing_is_disconnected(server: tuple[int, Worker]) -> None:
    port, worker = server
    before = said(port)
    body = speech_body(LONG * 8, 3, voice="amber", latency=0.0)
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        client.connect(("127.0.0.1", port))
        client.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        assert client.recv(64).startswith(b"HTTP/1.1 200")
        assert worker.outstanding == 1
        wait_until(lambda: not worker.outstanding, 20 * STALL)
        assert idle(worker)
        assert not rest(client).endswith(LAST_CHUNK)
    assert said(port) == before


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts files in /proc")
@pytest.mark.parametrize(
    ("sent", "expected"),
    [*zip(PARTIAL_REQUESTS, (NO_ANSWER, NO_ANSWER, NO_ANSWER, TIMEOUT, TIMEOUT, CLOSED_SOCKET), strict=True)],
    ids=["nothing", "half a line", "half a header", "half a body", "half a chunk", "an idle WebSocket"],
)
def test_half_open_connections_are_closed_and_leave_nothing(
    server: tuple[int, Worker], sent: bytes, expected: re.Pattern[bytes]
) -> None:
    port, worker = server
    wait_until(lambda: not worker.outstanding)
    before, began = open_files(), time.perf_counter()
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(sent)
        answer = rest(client)
    assert time.perf_counter() - began < 10 * STALL
    assert expected.fullmatch(answer), answer
    wait_until(lambda: open_files() <= before)
    assert not worker.outstanding
