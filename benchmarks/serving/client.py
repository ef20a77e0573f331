"""A server in its own process, and a client on plain sockets that records when audio arrives."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPResponse
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from valle2.benchmarks.process_memory import resident_bytes
from valle2.engine.errors import Valle2Error
from valle2.runtime.audio.io import BYTES_PER_SAMPLE

COMMAND_LINE = "valle2.runtime.cli"
READY_SECONDS = 120.0
CLIENT_SECONDS = 120.0
CLIENTS = 128
LOG_LINES = 1000
PARTIAL_REQUESTS = (
    b"",
    b"POST /v1/audio/spee",
    b"POST /v1/audio/speech HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 40\r\n",
    b"POST /v1/audio/speech HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 40\r\n\r\n{",
    b"POST /v1/audio/speech HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{",
    b"GET /v1/audio/speech/stream HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\n"
    b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
)
"""Incomplete requests: nothing, half a line, a header, half a body, half a chunk, a silent WebSocket."""
HOLDING_REQUESTS = (
    b"",
    PARTIAL_REQUESTS[3],
    PARTIAL_REQUESTS[5],
)
"""What connections are held with: nothing, a body without its rest, a WebSocket."""
RESET_ON_CLOSE = struct.pack("ii", 1, 0)
POLL_SECONDS = 0.001


@dataclass(slots=True)
class Answer:
    """What one client received.

    Args:
        status: the HTTP status; 0 without an answer. cut: the answer began and did not end cleanly.
        pieces: (seconds since the request was due, seconds of audio) of every piece, in order.
        half: the client sent an incomplete request.
        retry_after: seconds after which the server suggests to ask again.
    """

    status: int = 0
    cut: bool = False
    data: bytes = b""
    pieces: list[tuple[float, float]] = field(default_factory=list)
    half: bool = False
    retry_after: float = 0.0

    @property
    def whole(self) -> bool:
        return self.status == 200 and not self.cut and bool(self.pieces)

    @property
    def audio(self) -> float:
        return sum(seconds for _, seconds in self.pieces)


class ServerProcess:
    """`valle2 serve` on loopback, as a context manager. `restart` keeps its port.

    Args:
        module: what `python -m` runs; by default the command line.
        drain_seconds: for running streams after SIGTERM, 0 for the server's default.

    Attributes:
        health_port: of the listener for health checks alone. It is kept over a restart as well.
    """

    def __init__(
        self,
        model: str,
        slots: int,
        threads: int,
        module: str = COMMAND_LINE,
        drain_seconds: float = 0.0,
    ) -> None:
        self.module = module
        self.folder = tempfile.TemporaryDirectory()
        self.options = ["--model", model, "--slots", str(slots), "--threads", str(threads)]
        self.health_port, self.port = free_port(), 0
        self.options += ["--voices-dir", self.folder.name, "--health-port", str(self.health_port)]
        if drain_seconds:
            self.options += ["--drain-seconds", f"{drain_seconds:g}"]
        self.log: deque[str] = deque(maxlen=LOG_LINES)
        self.tracebacks = 0
        self.process: subprocess.Popen[str] | None = None
        self.reader: threading.Thread | None = None

    def __enter__(self) -> ServerProcess:
        self.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()
        self.folder.cleanup()

    def start(self) -> None:
        """Start the server and wait until it is ready.

        Raises:
            Valle2Error: it ended, or was not ready in time.
        """
        command = [sys.executable, "-m", self.module, "serve", "--port", str(self.port)]
        self.process = subprocess.Popen([*command, *self.options], stderr=subprocess.PIPE, text=True)
        assert self.process.stderr
        said = ""
        for line in self.process.stderr:
            said += line
            if found := re.search(r"serving on http://127\.0\.0\.1:(\d+)", line):
                self.port = int(found[1])
                break
        self.reader = threading.Thread(target=self.read_log, args=(self.process.stderr,), daemon=True)
        self.reader.start()
        end = time.perf_counter() + READY_SECONDS
        while time.perf_counter() < end and self.process.poll() is None:
            if get(self.port, "/ready")[0] == 200:
                return
            time.sleep(0.05)
        self.stop()
        raise Valle2Error(
            f"the server was not ready within {READY_SECONDS:.0f} s; its output: {said.strip()}"
        )

    def read_log(self, lines: Iterable[str]) -> None:
        """Keep the last lines of the log, and count the tracebacks in it."""
        for line in lines:
            self.log.append(line)
            self.tracebacks += line.startswith("Traceback ")

    def restart(self) -> None:
        """Stop and start again, on the same port."""
        self.stop()
        self.start()

    def stop(self) -> None:
        """Send SIGTERM, after which the server finishes its requests, and wait."""
        if self.process is None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(READY_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.reader:
            self.reader.join()
        assert self.process.stderr
        self.process.stderr.close()
        self.process = None

    @property
    def running(self) -> bool:
        """Does the server's process live?"""
        return self.process is not None and self.process.poll() is None

    def need_alive(self) -> None:
        """Refuse to go on without the server.

        Raises:
            Valle2Error: its process has ended.
        """
        assert self.process
        status = self.process.poll()
        if status is not None:
            raise Valle2Error(f"the server ended with status {status}; its log: {''.join(self.log)[-2000:]}")

    def metrics(self) -> dict[str, float]:
        """Metrics without labels from `/metrics`, by name without the prefix `valle2_`."""
        lines = get(self.port, "/metrics")[1].decode().splitlines()
        found = (re.fullmatch(r"valle2_(\w+) (\S+)", line) for line in lines)
        return {match[1]: float(match[2]) for match in found if match}

    def idle(self) -> bool:
        """Is no row in use, and no request queued?"""
        found = self.metrics()
        return not found["active_slots"] and not found["queue_depth"]

    def wait_idle(self, seconds: float) -> None:
        """Wait until the server is idle, for at most `seconds`."""
        wait(self.idle, seconds)

    def resident_bytes(self) -> int:
        """Resident memory of the server process."""
        assert self.process
        found = resident_bytes(self.process.pid)
        assert found
        return found

    def sockets(self) -> int:
        """Number of sockets that the server process has open."""
        assert self.process
        return sum(target.startswith("socket:") for target in self.descriptors())

    def descriptors(self) -> list[str]:
        """What the server process has open: a path, or a kind and a number."""
        assert self.process
        return [link_target(link) for link in Path(f"/proc/{self.process.pid}/fd").iterdir()]


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as made:
        return int(made.getsockname()[1])


def wait(done: Callable[[], bool], seconds: float) -> None:
    """Poll until `done` is true, for at most `seconds`."""
    end = time.perf_counter() + seconds
    while not done() and time.perf_counter() < end:
        time.sleep(POLL_SECONDS)


def link_target(link: Path) -> str:
    """What an open file of a process links to; empty if it was closed meanwhile."""
    try:
        return os.readlink(link)
    except OSError:
        return ""


def send_partial(port: int, half: bytes, seconds: float) -> Answer:
    """Send an incomplete request, wait, and reset the connection."""
    try:
        with socket.create_connection(("127.0.0.1", port), CLIENT_SECONDS) as client:
            client.sendall(half)
            time.sleep(seconds)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    except OSError:
        pass
    return Answer(half=True)


def on_time(ask: Callable[[int, float], Answer], due: NDArray[np.float64]) -> list[Answer]:
    """Call `ask(index, when)` at each of these clock times, whether or not earlier calls have ended."""

    def one(index: int) -> Answer:
        when = float(due[index])
        time.sleep(max(0.0, when - time.perf_counter()))
        return ask(index, when)

    with ThreadPoolExecutor(min(len(due), CLIENTS)) as pool:
        return list(pool.map(one, range(len(due))))


def get(port: int, path: str) -> tuple[int, bytes]:
    """Status and body of a GET request; (0, b"") without an answer."""
    connection = HTTPConnection("127.0.0.1", port, timeout=CLIENT_SECONDS)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    except (OSError, HTTPException):
        return 0, b""
    finally:
        connection.close()


def address(index: int) -> str:
    """An address of this machine for a client of its own: the server bounds what one client may have.

    Only Linux has all of 127.0.0.0/8; elsewhere all clients share one address.
    """
    number = 256 + index % (2**24 - 512)
    return f"127.{number >> 16}.{number >> 8 & 255}.{number & 255}" if sys.platform == "linux" else ""


def post(
    port: int, body: bytes, address: str = ""
) -> tuple[Answer, HTTPResponse | None, socket.socket | None]:
    """Request speech, from an address if one is given.

    Returns:
        The answer; its response and socket too if the status is 200.
    """
    source = (address, 0) if address else None
    connection = HTTPConnection("127.0.0.1", port, timeout=CLIENT_SECONDS, source_address=source)
    try:
        connection.connect()
        connected = connection.sock
        headers = {"Content-Type": "application/json", "Connection": "close"}
        connection.request("POST", "/v1/audio/speech", body, headers)
        response = connection.getresponse()
    except (OSError, HTTPException):
        connection.close()
        return Answer(), None, None
    heard = Answer(response.status, retry_after=float(response.headers.get("Retry-After", 0)))
    if response.status == 200:
        return heard, response, connected
    response.close()
    connection.close()
    return heard, None, None


def speech_body(text: str, seed: int, **more: Any) -> bytes:
    """The body of a request for raw PCM."""
    return json.dumps({"input": text, "seed": seed, "response_format": "pcm"} | more).encode()


def listen(
    port: int,
    body: bytes,
    due: float,
    rate: int,
    leave: float = 1e9,
    pause: float = 0.0,
    address: str = "",
) -> Answer:
    """Request speech and read the answer.

    Args:
        due: clock time from which arrival times are counted. rate: samples per second of the audio.
        leave: seconds after `due` at which the client disconnects.
        pause: seconds between two small reads, for a client that reads slowly.
        address: of the client; see `address`.
    """
    heard, response, connected = post(port, body, address)
    if response is None or connected is None:
        return heard
    try:
        while data := response.read1(512 if pause else 65_536):
            now = time.perf_counter() - due
            heard.pieces.append((now, len(data) / BYTES_PER_SAMPLE / rate))
            heard.data += data
            if now > leave:
                break
            time.sleep(pause)
    except (OSError, HTTPException):
        heard.cut = True
    finally:
        response.close()
        connected.close()
    return heard
