"""`valle2 serve` in its own process against clients that hold connections, and HTTP that means two things."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from select import select
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the extra: serve")

import httpx
import uvicorn
from starlette.responses import PlainTextResponse
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from tests.runtime.server.conftest import LONG, wait_until
from valle2.benchmarks.serving.client import ServerProcess, get, listen, speech_body
from valle2.runtime.server.http.connections import (
    RESERVE,
    Connections,
    Listener,
    Place,
    WaitingProtocol,
    asks_state,
    refuse,
)
from valle2.runtime.server.run import HealthThread, open_listener

STALL, CONNECTIONS, PER_ADDRESS, RATE = 1.0, 24, 12, 24000
HEAD = "POST /v1/audio/speech HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
PAIRS = "Connection: Upgrade\r\nUpgrade: websocket\r\n"
UPGRADE = PAIRS + "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
STREAM = "GET /v1/audio/speech/stream HTTP/1.1\r\nHost: 127.0.0.1\r\n"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


@pytest.fixture(scope="module")
def served(bundle: Path) -> Iterator[ServerProcess]:
    made = ServerProcess(str(bundle), 2, 1)
    made.options += ["--stall-seconds", str(STALL), "--max-text", "300", "--connections", str(CONNECTIONS)]
    made.options += ["--connections-per-address", str(PER_ADDRESS), "--health-port", str(free_port())]
    with made:
        yield made


@pytest.fixture
def port(served: ServerProcess) -> Iterator[int]:
    """The server's port, at a time when the server holds no other connections."""
    usual = 6  # listeners, and a pair of each of the two event loops
    wait_until(lambda: served.sockets() <= usual, 20)
    yield served.port


def health_port(served: ServerProcess) -> int:
    return int(served.options[-1])


def opened(port: int, address: str = "127.0.0.1", data: str = "") -> socket.socket:
    """A connection from this address of the machine, over which so much was sent."""
    client = socket.create_connection(("127.0.0.1", port), 10, (address, 0))
    with suppress(ConnectionError):  # the server may have closed it already
        client.sendall(data.encode("latin-1"))
    return client


def rest(client: socket.socket) -> bytes:
    """What the server sends until it closes the connection.

    Raises:
        ConnectionError: it resets the connection.
    """
    said = b""
    while piece := client.recv(65_536):
        said += piece
    return said


def ask(port: int, request: str, address: str = "127.0.0.1") -> tuple[int, bytes]:
    """Status and whole answer of a request that closes the connection; 0 without an answer."""
    with opened(port, address, request) as client:
        said = rest(client)
    return int(said[9:12] or 0), said


def asked(port: int, path: str, address: str = "127.0.0.1") -> int:
    return ask(port, f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n", address)[0]


def answers_all(port: int, address: str = "127.0.0.1") -> bool:
    began = time.perf_counter()
    found = [asked(port, path, address) for path in ("/health", "/ready", "/metrics")]
    seconds = time.perf_counter() - began
    assert found == [200] * 3 and seconds < 1, f"statuses {found} after {seconds:.2f} s"
    return True


SLOW_BODY = f"{HEAD}Content-Length: 100\r\n\r\n{{"


@pytest.mark.parametrize(
    "sent", ["", "GET /hea", SLOW_BODY, f"{HEAD}Transfer-Encoding: chunked\r\n\r\n5\r\n{{"]
)
@pytest.mark.parametrize("addresses", [["127.0.0.1"], [f"127.0.0.{index}" for index in range(2, 12)]])
def test_connections_that_wait_hold_up_nobody(port: int, sent: str, addresses: list[str]) -> None:
    with ExitStack() as stack:
        for index in range(100):
            stack.enter_context(opened(port, addresses[index % len(addresses)], sent))
            if index % 25 == 24:
                assert answers_all(port) and asked(port, "/v1/models") == 200
        heard = listen(port, speech_body("hello there", 3), time.perf_counter(), RATE)
        assert heard.whole


def test_a_kept_connection_is_closed_first(port: int) -> None:
    own = "127.0.0.30"  # it has opened no other connection in the last second

    def kept() -> socket.socket:
        client = opened(port, own, "GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        said = b""
        while not said.endswith(b"}"):
            said += client.recv(4096)
        return client

    with ExitStack() as stack:
        half = [stack.enter_context(opened(port, own, "GET /hea")) for _ in range(PER_ADDRESS - 2)]
        first, second = stack.enter_context(kept()), stack.enter_context(kept())
        assert asked(port, "/v1/models", own) == 200
        assert first.recv(1) == b""
        for client in (*half, second):
            client.setblocking(False)
            with pytest.raises(BlockingIOError):
                client.recv(1)


def test_connections_of_one_address_are_not_closed_for_those_of_another(port: int) -> None:
    """A client that has waited longest keeps its connection while others hold as many as they can."""
    with ExitStack() as stack:
        client = stack.enter_context(opened(port, "127.0.0.5", "GET /v1/models HTTP/1.1\r\n"))
        for index in range(3 * CONNECTIONS):
            stack.enter_context(opened(port, f"127.0.0.{10 + index % 3}"))
            time.sleep(0.005)
        client.sendall(b"Host: 127.0.0.1\r\nConnection: close\r\n\r\n")
        assert rest(client).startswith(b"HTTP/1.1 200")


class Waiting(WaitingProtocol, asyncio.Protocol):
    """A protocol whose connection waits as it is told."""

    rank: tuple[int, float] | None = (1, 0.0)

    def waiting(self) -> tuple[int, float] | None:
        return self.rank


class Transport(asyncio.Transport):
    """A transport that is only closed."""

    def __init__(self, rank: tuple[int, float] | None) -> None:
        super().__init__()
        self.protocol = Waiting()
        self.protocol.rank, self.aborted = rank, False

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self.protocol

    def abort(self) -> None:
        self.aborted = True


def placed(
    connections: Connections, address: str, rank: tuple[int, float] | None, read: bool = True
) -> Place:
    """A place with a connection of this rank, whose first bytes were `read` long ago or not at all."""
    place = connections.admit(address)
    place.transport = Transport(rank)
    place.read_since = 0.0 if read else None
    return place


def test_a_connection_is_not_closed_before_its_request_could_be_read() -> None:
    """Bodies that wait are of a later class; a promotion closed a new connection before one of them."""
    connections = Connections(4, 4, 1.0)
    bodies = [placed(connections, "a", (2, float(index))) for index in range(3)]
    new = placed(connections, "a", (1, 9.0), read=False)
    other = placed(connections, "a", None)  # joins in the place of the first body
    assert [place in connections for place in (*bodies, new, other)] == [False, True, True, True, True]
    slow = placed(connections, "a", (2, 9.0))
    assert not slow.reserved and bodies[1] not in connections
    full = [placed(connections, "a", None) for _ in range(2)]  # in place of the other two bodies
    assert not any(place.reserved for place in full) and new in connections
    last = placed(connections, "a", (2, 9.0))
    assert last.reserved and not connections.promote(last, whole=False) and new in connections
    assert connections.promote(last, whole=True) and new not in connections


def test_the_reserve_takes_a_connection_whatever_it_holds() -> None:
    for rank, read in (((1, 0.0), False), (None, True)):
        connections = Connections(2, 2, 1.0)
        held = [placed(connections, "a", None) for _ in range(2)]
        held.append(placed(connections, "c", rank, read))
        reserve = [placed(connections, "a", rank, read) for _ in range(RESERVE - 1)]
        last = placed(connections, "b", (1, 0.0), read=False)
        assert all(place in connections for place in (*held, *reserve[1:], last))
        assert last.reserved and reserve[0] not in connections and reserve[0].transport.aborted  # type: ignore


def test_the_crowded_address_pays() -> None:
    connections = Connections(6, 4, 1.0)
    one = placed(connections, "one", (0, 0.0))
    many = [placed(connections, "many", (2, 1.0 + index)) for index in range(4)]
    few = placed(connections, "few", (0, 0.5))
    placed(connections, "new", (1, 9.0))
    assert [place in connections for place in (one, few, *many)] == [True, True, False, True, True, True]
    for place in list(connections):
        place.close()
        place.close()
    assert not connections.served and not connections.reserve and not connections.served.by_address


def test_a_flood_is_refused_while_others_wait() -> None:
    """An address may open `per_address` connections at once and as many each second, if others wait."""
    with socket.socket() as listening:
        listener = Listener(listening, Connections(100, 4, 1.0), lambda place: asyncio.Protocol())
        assert not any(listener.floods("flood") for _ in range(1000))  # nobody waits
        listener.behind, listener.due = True, {}
        found = [listener.floods("flood") for _ in range(10)]
        assert found == [False] * 4 + [True] * 6 and not listener.floods("other")
        time.sleep(0.3)
        assert [listener.floods("flood") for _ in range(2)] == [False, True]
        listener.due = {str(index): 0.0 for index in range(5000)}
        assert not listener.floods("new") and len(listener.due) == 1
        os.close(listener.spare)


def test_a_refused_connection_gets_503_and_a_health_check_is_seen() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with opened(port, data="GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n") as client:
            taken = server.accept()[0]
            taken.setblocking(False)
            assert not asks_state(taken)
            refuse(taken)
            assert rest(client).startswith(b"HTTP/1.1 503")
        for sent, seen in (("GET /health HTTP/1.1\r\n", True), ("", None), ("GET /healthy", False)):
            with opened(port, data=sent), server.accept()[0] as taken:
                taken.setblocking(False)
                wait_until(lambda taken=taken, sent=sent: not sent or select([taken], [], [], 0)[0])  # type: ignore[misc]
                assert asks_state(taken) is seen


@pytest.mark.parametrize("others", [0, 50, 200])
def test_a_health_check_in_a_flood_may_send_its_request_late(
    others: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its request comes a moment after its connection; the flood's others send nothing or ask for speech."""

    class Answers(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            assert isinstance(self.transport, asyncio.Transport)
            self.transport.write(b"HTTP/1.1 200 OK\r\n\r\n")
            self.transport.close()

    def client(sent: str, after: float) -> bytes:
        with opened(port) as made:
            time.sleep(after)
            with suppress(ConnectionError):
                made.sendall(sent.encode())
                return rest(made)[:12]
        return b""

    async def run() -> None:
        listener.start()
        with ExitStack() as stack:
            many = [asyncio.to_thread(opened, port) for _ in range(others)]
            for made in await asyncio.gather(*many):
                stack.enter_context(made)
            late = asyncio.to_thread(client, "GET /health HTTP/1.1\r\n\r\n", 0.005)
            speech = asyncio.to_thread(client, "GET /v1/models HTTP/1.1\r\n\r\n", 0.005)
            health, refused = await asyncio.gather(late, speech)
            assert (health, refused) == (b"HTTP/1.1 200", b"HTTP/1.1 503")
        await asyncio.sleep(0.1)
        assert not listener.silent
        last = await asyncio.to_thread(opened, port)
        await asyncio.sleep(0.005)
        listener.close()
        assert not listener.silent and (await asyncio.to_thread(rest, last)).startswith(b"HTTP/1.1 503")
        last.close()

    monkeypatch.setattr("valle2.runtime.server.http.connections.NEW_SECONDS", 0.5)
    listening = open_listener("127.0.0.1", 0, 1.0)
    port = listening.getsockname()[1]
    listener = Listener(listening, Connections(100, 4, 1.0), lambda place: Answers())
    monkeypatch.setattr(listener, "floods", lambda address: True)
    asyncio.run(run())


@pytest.mark.parametrize("sent", ["", "GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", SLOW_BODY])
def test_a_flood_of_one_address_leaves_the_others_their_answers(port: int, sent: str) -> None:
    stopped = threading.Event()

    def flood() -> None:
        held: deque[socket.socket] = deque()
        while not stopped.wait(0.001):
            with suppress(OSError):
                held.append(opened(port, "127.0.0.9", sent))
            if len(held) > 100:
                held.popleft().close()
        for one in held:
            one.close()

    threads = [threading.Thread(target=flood) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(10):
            assert asked(port, "/health") == 200 and asked(port, "/v1/models") == 200
            time.sleep(2 / PER_ADDRESS)
    finally:
        stopped.set()
        for thread in threads:
            thread.join()


def sockets(port: int, stack: ExitStack, count: int, address: str) -> list[bytes]:
    """Open WebSockets that stay; returns the first bytes of each answer."""
    made = [stack.enter_context(opened(port, address, f"{STREAM}{UPGRADE}\r\n")) for _ in range(count)]
    return [client.recv(12) for client in made]


def test_websockets_count_and_leave_half_to_others(port: int, served: ServerProcess) -> None:
    with ExitStack() as stack:
        own = sockets(port, stack, PER_ADDRESS, "127.0.0.1")
        assert own == [b"HTTP/1.1 101"] * (PER_ADDRESS // 2) + [b"HTTP/1.1 503"] * (PER_ADDRESS // 2)
        others = [*sockets(port, stack, 6, "127.0.0.2"), *sockets(port, stack, 6, "127.0.0.3")]
        assert others.count(b"HTTP/1.1 101") == (CONNECTIONS - PER_ADDRESS) // 2
        assert answers_all(port) and asked(port, "/v1/models") == 200
        assert served.sockets() < CONNECTIONS + 10


def test_busy_connections_leave_the_reserve_to_health_checks(port: int, served: ServerProcess) -> None:
    """The address's whole bound is busy: half WebSockets, half bodies that are answered slowly."""
    body = speech_body(LONG * 3, 3, first_chunk_seconds=9, response_format="mp3").decode()
    speech = f"{HEAD}Content-Length: {len(body)}\r\n\r\n{body}"
    with ExitStack() as stack:
        sockets(port, stack, PER_ADDRESS // 2, "127.0.0.1")
        for _ in range(PER_ADDRESS // 2):
            stack.enter_context(opened(port, data=speech))
        for _ in range(50):
            stack.enter_context(opened(port))
        assert answers_all(port) and answers_all(health_port(served))
        status, said = ask(port, "GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert status == 503 and b"connection: close" in said.lower() and b"retry-after" in said.lower()
        assert asked(port, "/v1/models", "127.0.0.9") == 200


def test_the_health_port_has_no_other_paths(port: int, served: ServerProcess) -> None:
    own = health_port(served)
    with ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(opened(own))
        assert answers_all(own) and asked(own, "/v1/models") == 503
        assert ask(own, f"{STREAM}{UPGRADE}\r\n")[0] == 503


def test_health_checks_do_not_wait_for_the_event_loop_of_the_server() -> None:
    """Here that loop never turns, as if other connections kept it busy. Closing frees port and thread."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await PlainTextResponse("ok")(scope, receive, send)

    config = uvicorn.Config(app, http="h11", ws="none", lifespan="off", log_config=None)
    config.load()
    health = HealthThread(open_listener("127.0.0.1", 0, 5.0), config, 5.0)
    own = int(health.listener.listening.getsockname()[1])
    health.start()
    try:
        with ExitStack() as stack:
            for _ in range(50):
                stack.enter_context(opened(own))
            assert asked(own, "/health") == 200 and asked(own, "/v1/models") == 503
    finally:
        health.close()
    assert not health.thread.is_alive() and not list(health.connections)
    with pytest.raises(ConnectionRefusedError):
        opened(own)


def test_a_slow_body_has_a_total_time(port: int) -> None:
    with opened(port, data=SLOW_BODY) as client:
        began, said = time.perf_counter(), b""
        client.settimeout(0.2)
        while not said and time.perf_counter() - began < 10:
            client.sendall(b" ")
            with suppress(TimeoutError):
                said = client.recv(4096)
        assert b" 408 " in said.split(b"\r\n")[0] and time.perf_counter() - began < 3 * STALL


def test_a_slow_header_has_a_total_time(port: int) -> None:
    with opened(port, data="GET /health HTTP/1.1\r\nX: ") as client:
        began = time.perf_counter()
        with pytest.raises(ConnectionError):
            while time.perf_counter() - began < 10:
                client.sendall(b"a")
                time.sleep(0.1)
        assert time.perf_counter() - began < 3 * STALL


@pytest.mark.parametrize("message", [{"text": ""}, {"text": " "}, {}, {"flush": True}, {"cancel": True}])
def test_messages_without_text_are_no_progress(port: int, message: dict[str, object]) -> None:
    with connect(f"ws://127.0.0.1:{port}/v1/audio/speech/stream") as client:
        began, found = time.perf_counter(), []
        with pytest.raises(ConnectionClosed, match="1011"):
            while time.perf_counter() - began < 10:
                client.send(json.dumps(message))
                with suppress(TimeoutError):
                    found.append(client.recv(0.2))
        assert time.perf_counter() - began < 3 * STALL
        with suppress(ConnectionClosed):  # sending fails before everything has been read
            while True:
                found.append(client.recv(0.2))
        assert "no message came" in found[-1]


def test_answers_on_a_kept_connection_do_not_wait_for_acknowledgements(port: int) -> None:
    with opened(port) as client:
        times = []
        for _ in range(20):
            began = time.perf_counter()
            client.sendall(b"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            said = b""
            while b"gpt-4o-mini-tts" not in said:
                said += client.recv(4096)
            times.append(time.perf_counter() - began)
        assert sorted(times)[len(times) // 2] < 0.03


def test_the_listener_sets_nodelay() -> None:

    with open_listener("127.0.0.1", 0, 1.0) as listener:
        assert listener.proto == socket.IPPROTO_TCP


BODY = '{"input": "hello"}'
GET = "GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
AMBIGUOUS = {
    "both lengths": f"{HEAD}Content-Length: 18\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "both, the other way": f"{HEAD}Transfer-Encoding: chunked\r\nContent-Length: 18\r\n\r\n{BODY}",
    "two lengths": f"{HEAD}Content-Length: 18\r\nContent-Length: 19\r\n\r\n{BODY}",
    "a list of lengths": f"{HEAD}Content-Length: 18, 19\r\n\r\n{BODY}",
    "a signed length": f"{HEAD}Content-Length: +18\r\n\r\n{BODY}",
    "a negative length": f"{HEAD}Content-Length: -1\r\n\r\n{BODY}",
    "a long length": f"{HEAD}Content-Length: {'9' * 40}\r\n\r\n{BODY}",
    "another coding": f"{HEAD}Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunked twice": f"{HEAD}Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked in 1.0": HEAD.replace("1.1", "1.0") + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a space before the colon": f"{HEAD}Content-Length : 18\r\n\r\n{BODY}",
    "a folded header": f"{GET}X: a\r\n b\r\n\r\n",
    "a folded first header": "GET /health HTTP/1.1\r\n Host: 127.0.0.1\r\n\r\n",
    "a bare LF": "GET /health HTTP/1.1\nHost: 127.0.0.1\n\n",
    "one bare LF": f"{GET}X: a\n\r\n",
    "a bare CR": f"{GET}X: a\rY: b\r\n\r\n",
    "a NUL in a value": f"{GET}X: a\0b\r\n\r\n",
    "a NUL in a name": f"{GET}X\0: a\r\n\r\n",
    "no host": "GET /health HTTP/1.1\r\n\r\n",
    "two hosts": f"{GET}Host: 127.0.0.1\r\n\r\n",
    "two hosts that differ": f"{GET}Host: evil.com\r\n\r\n",
    "a long chunk extension": f"{HEAD}Transfer-Encoding: chunked\r\n\r\n1;a={'a' * 500}\r\n",
    "an endless chunk header": f"{HEAD}Transfer-Encoding: chunked\r\n\r\n{'0' * 500}",
    "a bad chunk": f"{HEAD}Transfer-Encoding: chunked\r\n\r\nzz\r\n",
    "a negative chunk": f"{HEAD}Transfer-Encoding: chunked\r\n\r\n-1\r\n",
    "a chunk that ends with LF": f"{HEAD}Transfer-Encoding: chunked\r\n\r\n1\n{{\n",
    "a trailer with LF": f"{HEAD}Transfer-Encoding: chunked\r\n\r\n0\r\nX: a\n\r\n",
    "long trailers": f"{HEAD}Transfer-Encoding: chunked\r\n\r\n0\r\n" + "X: aaaaaaaa\r\n" * 4000,
    "long headers": GET + "X: aaaaaaaa\r\n" * 4000 + "\r\n",
    "HTTP/2 by guess": "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "no version": "GET /health\r\n\r\n",
    "TLS": "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
}


@pytest.mark.parametrize("sent", AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_a_request_that_means_two_things_is_refused_and_the_connection_closed(port: int, sent: str) -> None:
    with opened(port) as client:
        try:
            client.sendall(sent.encode("latin-1"))
            said = rest(client)
        except ConnectionError:  # it was refused before all of it was read
            return
    assert said.startswith(b"HTTP/1.1 4") and said.count(b"HTTP/1.1") == 1, said


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("LOCALHOST:80", 200),
        ("[::1]:8000", 200),
        ("evil.com@localhost", 400),
        ("localhost@evil.com", 400),
        ("[x", 400),
        ("[::1", 400),
        ("[]", 400),
        ("localhost:80:80", 400),
        ("localhost:99999", 400),
        ("localhost:a", 400),
        ("localhost/", 400),
        ("localhost, evil.com", 400),
        ("localhost\\evil.com", 400),
        ("localh\u00f6st", 400),
        ("", 400),
        ("evil.com", 403),
        ("localhost.evil.com", 403),
        ("127.0.0.1.evil.com", 403),
    ],
)
def test_hosts(port: int, host: str, status: int) -> None:
    for path in ("/health", "/v1/models"):
        request = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        assert ask(port, request)[0] == status


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("http://127.0.0.1/health", 200),
        ("HTTP://localhost:80/health?a=b", 200),
        ("http://evil.com/health", 403),
        ("http://evil.com@localhost/health", 400),
        ("http://[x/health", 400),
        ("http:///health", 400),
        ("*", 404),
        ("//health", 404),
        ("/health/../v1", 404),
        ("/%00", 404),
        ("/%ff%fe", 404),
    ],
)
def test_targets(port: int, target: str, status: int) -> None:
    assert ask(port, f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")[0] == status


def test_http_1_0_needs_no_host(port: int) -> None:
    assert ask(port, "GET /health HTTP/1.0\r\n\r\n")[0] == 200


def test_pipelined_requests_are_answered_in_turn(port: int) -> None:
    one = "GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    post = f"{HEAD}Content-Length: 2\r\n\r\n[]"
    status, said = ask(port, one * 20 + post + one + GET + "\r\n")
    assert status == 200 and said.count(b"HTTP/1.1 200") == 22 and said.count(b"HTTP/1.1 400") == 1


@pytest.mark.parametrize(("length", "first"), [(18, b"HTTP/1.1 100"), (10**9, b"HTTP/1.1 413")])
def test_a_client_that_asks_before_its_body(port: int, length: int, first: bytes) -> None:
    with opened(port, data=f"{HEAD}Expect: 100-continue\r\nContent-Length: {length}\r\n\r\n") as client:
        assert client.recv(12) == first


def test_chunks_of_one_byte_are_bounded(port: int) -> None:
    head = f"{HEAD}Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    assert (
        ask(port, head + "".join(f"1\r\n{char}\r\n" for char in "[" + " " * 900 + "]") + "0\r\n\r\n")[0]
        == 400
    )
    with opened(port, data=head) as client:
        try:
            client.sendall(b"1\r\n \r\n" * 60_000)
            said = rest(client)
        except ConnectionError:
            return
        assert said.startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (f"{STREAM}{PAIRS}\r\n", 426),
        (f"{STREAM}{UPGRADE.replace('13', '12')}\r\n", 426),
        (f"{STREAM}{UPGRADE.replace('dGhlIHNhbXBsZSBub25jZQ==', 'x')}\r\n", 400),
        (STREAM.replace("GET", "POST") + f"{UPGRADE}\r\n", 400),
        (STREAM.replace("GET", "POST") + f"{UPGRADE}Content-Length: 3\r\n\r\nabc", 400),
        (STREAM.replace("1.1", "1.0") + f"{UPGRADE}\r\n", 400),
        (f"{STREAM}{UPGRADE}Origin: http://evil.com\r\n\r\n", 403),
        (STREAM.replace("127.0.0.1", "evil.com") + f"{UPGRADE}\r\n", 403),
        (STREAM.replace("127.0.0.1", "[x") + f"{UPGRADE}\r\n", 400),
        (STREAM.replace("/stream", "/nowhere") + f"{UPGRADE}\r\n", 403),
        (f"{STREAM}Connection: close, Upgrade\r\nUpgrade: h2c\r\n\r\n", 404),
    ],
)
def test_upgrades_that_are_none(port: int, request_: str, status: int) -> None:
    with opened(port, data=request_) as client:
        found = int(client.recv(12)[9:])
    assert 400 <= found < 500 and found in (status, 404, 405, 400, 426), found


def frame(data: bytes, opcode: int = 0x81) -> bytes:
    """A masked frame of a client."""
    size = bytes([0x80 | len(data)]) if len(data) < 126 else bytes([0xFE]) + len(data).to_bytes(2, "big")
    return bytes([opcode]) + size + bytes(4) + data


@pytest.mark.parametrize(
    "frames",
    [
        frame(b"\xff\xfe"),
        frame(b"{}", 0x82),
        frame(b"x", 0x83),
        frame(b"x", 0xC1),
        frame(b"x", 0x80),
        frame(b"x" * 200, 0x89),
        b"\x81\x02{}",
        bytes([0x81, 0xFF]) + (2**62).to_bytes(8, "big"),
        frame(b"\x03", 0x88),
    ],
    ids=[
        "bad UTF-8",
        "binary",
        "opcode 3",
        "RSV",
        "no start",
        "long ping",
        "no mask",
        "huge",
        "half a close",
    ],
)
def test_bad_frames_close_the_connection(port: int, frames: bytes) -> None:
    with opened(port, data=f"{STREAM}{UPGRADE}\r\n") as client:
        client.recv(4096)
        client.sendall(frames)
        assert client.recv(1) in (b"\x88", b"\x81")  # a close, or an error and a close
    assert asked(port, "/health") == 200


@pytest.mark.parametrize("flood", [frame(b""), frame(b"", 0x89), frame(b"", 0x8A), frame(b"{}")])
def test_a_flood_of_small_frames_delays_nobody(port: int, flood: bytes) -> None:
    stop = threading.Event()

    def attack() -> None:
        with opened(port, "127.0.0.2", f"{STREAM}{UPGRADE}\r\n") as client:
            client.settimeout(0.5)
            try:
                while not stop.is_set():
                    client.sendall(flood * 10_000)
            except OSError:
                stop.wait(3)

    threads = [threading.Thread(target=attack) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        slowest = 0.0
        for _ in range(20):
            began = time.perf_counter()
            assert asked(port, "/health") == 200
            slowest = max(slowest, time.perf_counter() - began)
            time.sleep(0.02)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert slowest < 0.5


# -- servers of their own ------------------------------------------------------------------------


def test_descriptors_that_run_out(bundle: Path, tmp_path: Path) -> None:
    """The server lowers its bound to what the limit allows; nothing fails and nothing fills the log."""
    log = tmp_path / "log"
    command = f"ulimit -n 200; exec {sys.executable} -m valle2.runtime.cli serve --port 0 --model {bundle} "
    command += (
        f"--voices-dir {tmp_path} --threads 1 --slots 1 --connections-per-address 1000 --connections 1000"
    )
    with log.open("w") as errors:
        process = subprocess.Popen(["bash", "-c", command], stderr=errors)
        try:
            wait_until(lambda: "serving on" in log.read_text() or process.poll() is not None, 60)
            found = re.search(r"127\.0\.0\.1:(\d+)", log.read_text())
            assert found, log.read_text()
            port = int(found[1])
            wait_until(lambda: get(port, "/ready")[0] == 200, 60)
            with ExitStack() as stack:
                for index in range(400):
                    stack.enter_context(opened(port, data="" if index % 2 else SLOW_BODY))
                assert answers_all(port)
                assert listen(port, speech_body("hello", 3), time.perf_counter(), RATE).whole
            assert len(log.read_text()) < 5000, log.read_text()[:5000]
        finally:
            process.kill()
            process.wait()


def test_a_log_that_nobody_reads_stops_nothing(bundle: Path, tmp_path: Path) -> None:
    """A pipe takes 64 KiB; then a server that writes its log itself would wait for ever."""
    port = free_port()
    command = [sys.executable, "-m", "valle2.runtime.cli", "serve", "--model", str(bundle)]
    command += ["--port", str(port), "--voices-dir", str(tmp_path), "--slots", "1", "--threads", "1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as process:
        try:
            wait_until(lambda: ready(port), 60)
            with httpx.Client(timeout=10) as client:
                for _ in range(1500):
                    found = client.get(f"http://127.0.0.1:{port}/v1/models")
                    assert found.status_code == 200
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) in (0, -signal.SIGTERM)
            assert process.stderr and b"/v1/models" in process.stderr.read()
        finally:
            process.kill()


def ready(port: int) -> bool:
    with suppress(OSError):
        return asked(port, "/ready") == 200
    return False


def test_no_descriptor_at_all(bundle: Path, tmp_path: Path) -> None:
    """Other files have taken what the listener needs: one line in the log, and it goes on afterwards."""
    import asyncio
    import logging
    import resource

    async def run() -> None:
        listening = open_listener("127.0.0.1", 0, 1.0)
        port = listening.getsockname()[1]
        made: list[asyncio.Protocol] = []

        def protocol(place: object) -> asyncio.Protocol:
            made.append(asyncio.Protocol())
            return made[-1]

        listener = Listener(listening, Connections(10, 10, 1.0), protocol)
        listener.start()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        clients = [socket.socket() for _ in range(20)]
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 2, hard))
        others: list[int] = []
        with suppress(OSError):
            while True:
                others.append(os.open(os.devnull, os.O_RDONLY))
        try:
            for client in clients:
                client.setblocking(False)
                client.connect_ex(("127.0.0.1", port))
            await asyncio.sleep(0.5)
            assert not made
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for other in others:
                os.close(other)
        await asyncio.sleep(0.5)
        assert made
        listener.close()
        for client in clients:
            client.close()

    records: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())  # type: ignore[method-assign]
    for name in ("valle2.server", "asyncio"):
        logging.getLogger(name).addHandler(handler)
    try:
        asyncio.run(run())
    finally:
        for name in ("valle2.server", "asyncio"):
            logging.getLogger(name).removeHandler(handler)
    assert 1 <= len(records) <= 10 and all("no connection can be accepted" in one for one in records)


def test_sigterm_lets_websockets_end(bundle: Path, tmp_path: Path) -> None:
    with ServerProcess(str(bundle), 2, 1) as own:
        with connect(f"ws://127.0.0.1:{own.port}/v1/audio/speech/stream") as client:
            client.send(json.dumps({"text": LONG * 2 + "and the last", "seed": 3}))
            assert json.loads(client.recv())["type"] == "format"
            assert isinstance(client.recv(), bytes)
            assert own.process
            own.process.send_signal(signal.SIGTERM)
            found = []
            refused = False
            with pytest.raises(ConnectionClosed, match="1012"):
                while True:
                    found.append(client.recv())
                    if isinstance(found[-1], str) and json.loads(found[-1])["type"] == "draining":
                        client.send(json.dumps({"text": "too late."}))
                        refused = True
        kinds = [json.loads(one)["type"] for one in found if isinstance(one, str)]
        assert refused and kinds[0] == "draining" and "refused" in kinds and kinds[-1] == "done"
        assert sum(len(one) for one in found if isinstance(one, bytes)) > RATE
        assert own.process.wait(20) in (0, -signal.SIGTERM)


def test_sigterm_does_not_wait_for_silent_websockets(bundle: Path) -> None:
    with ServerProcess(str(bundle), 1, 1) as own, ExitStack() as stack:
        url = f"ws://127.0.0.1:{own.port}/v1/audio/speech/stream"
        silent, waits = stack.enter_context(connect(url)), stack.enter_context(connect(url))
        waits.send(json.dumps({"text": "hello there. "}))
        while not isinstance(waits.recv(), bytes):
            pass
        time.sleep(0.5)
        assert own.process
        own.process.send_signal(signal.SIGTERM)
        with pytest.raises(ConnectionClosed, match="1012"):
            while True:
                silent.recv()
        with pytest.raises(ConnectionClosed, match="1012"):
            while True:
                waits.recv()
        assert own.process.wait(15) in (0, -signal.SIGTERM)


def test_a_key_is_needed_for_a_websocket(bundle: Path, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("k" * 32)
    own = ServerProcess(str(bundle), 1, 1)
    own.options += ["--api-key-file", str(key)]
    with own:
        url = f"ws://127.0.0.1:{own.port}/v1/audio/speech/stream"
        with pytest.raises(InvalidStatus, match="401"), connect(url):
            pass
        for scheme in ("Bearer", "bearer", "BEARER"):
            with connect(url, additional_headers={"Authorization": f"{scheme} {'k' * 32}"}) as client:
                client.send(json.dumps({"text": "hello.", "end": True}))
                assert json.loads(list(client)[-1])["type"] == "done"
