"""Clients that want to bring a server down, run side by side in a process of their own.

Each kind of attack has one client or several with an address of their own. A client acts again and again
until it is told to stop, whatever the server answers. `hostile` has what they send.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from valle2.benchmarks.serving import hostile
from valle2.benchmarks.serving.client import (
    CLIENTS,
    HOLDING_REQUESTS,
    PARTIAL_REQUESTS,
    RESET_ON_CLOSE,
    Answer,
    address,
    listen,
    speech_body,
)

SPEECH, VOICES, STREAM = "/v1/audio/speech", "/v1/voices", "/v1/audio/speech/stream"
LENGTH = 4096
"""Characters of the longest text that a server takes."""
PAUSE_SECONDS = 0.05
"""Between two acts of a client."""
ACT_SECONDS = 2.0
"""How long an act may last, unless it is to hold something."""
HOLD_SECONDS = 30.0
READ_SECONDS = 0.2
"""After so long without data a client looks whether the attack is over."""
SWARM = 20
"""Longest texts that one client sends at once."""
HELD = 150
"""Connections that one client holds."""
OPENED = 100
"""Connections that one client opens at once."""
FIRST_ADDRESS = 10_000
UPGRADE = (
    f"GET {STREAM} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
).encode()
JSON = "application/json"
LOAD = "load"
NICE = 5
"""Attackers of another machine would not take the server's processor; these give way to it."""


@dataclass(slots=True)
class Attacker:
    """One client.

    Args:
        address: its own, empty for the usual one. stopped: says whether the attack is over.
        statuses: HTTP statuses of the answers; 0 where none came.
    """

    port: int
    address: str
    rng: np.random.Generator
    stopped: threading.Event
    acts: int = 0
    statuses: Counter[int] = field(default_factory=Counter)

    def run(self, act: Callable[[Attacker], None]) -> None:
        """Act until the attack is over."""
        while not self.stopped.wait(PAUSE_SECONDS):
            with suppress(OSError):
                act(self)
            self.acts += 1

    def choose(self, items: Any) -> Any:
        """One of the items."""
        return items[int(self.rng.integers(len(items)))]

    @contextmanager
    def connected(self, receive_bytes: int = 0) -> Iterator[socket.socket]:
        """A connection. receive_bytes: size of the kernel's buffer; 0 leaves it as it is."""
        with socket.socket() as made:
            if receive_bytes:
                made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
            made.settimeout(ACT_SECONDS)
            made.bind((self.address, 0))
            made.connect(("127.0.0.1", self.port))
            yield made

    def send(self, connected: socket.socket, path: str, body: bytes, kind: str = JSON) -> None:
        """Send a POST request."""
        head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Type: {kind}\r\n"
        connected.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode("latin-1") + body)

    def read(self, connected: socket.socket, seconds: float = ACT_SECONDS) -> None:
        """Note the status, and read on for at most so many seconds."""
        end, known = time.monotonic() + seconds, False
        connected.settimeout(READ_SECONDS)
        while time.monotonic() < end and not self.stopped.is_set():
            with suppress(TimeoutError):
                data = connected.recv(65_536)
                if not known:
                    self.statuses[int(data[9:12]) if data[:5] == b"HTTP/" else 0] += 1
                known = True
                if not data:
                    return

    def post(self, path: str, body: bytes, kind: str = JSON, seconds: float = ACT_SECONDS) -> None:
        """Send a POST request and read its answer for at most so many seconds."""
        with self.connected() as connected:
            self.send(connected, path, body, kind)
            self.read(connected, seconds)

    def speak(self, text: str, seconds: float = ACT_SECONDS, **more: Any) -> None:
        """Request speech."""
        self.post(
            SPEECH, json.dumps({"input": text, "response_format": "pcm"} | more).encode(), JSON, seconds
        )


# -- over HTTP -----------------------------------------------------------------------------------


def long_texts(attacker: Attacker) -> None:
    """Send one of the texts that are costly to prepare, and leave after a moment."""
    attacker.speak(attacker.choose(hostile.texts(LENGTH)), float(attacker.rng.uniform(0.1, ACT_SECONDS)))


def swarm(attacker: Attacker) -> None:
    """Send many of the longest texts at once, and listen to all of them."""
    text = ("The quick brown fox jumps over the lazy dog. " * LENGTH)[:LENGTH]

    def listen() -> None:
        with suppress(OSError):
            attacker.speak(text, HOLD_SECONDS)

    threads = [threading.Thread(target=listen) for _ in range(SWARM)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def odd_fields(attacker: Attacker) -> None:
    """Send fields at their bounds, or a body that is none."""
    if attacker.rng.random() < 0.5:
        return attacker.post(SPEECH, attacker.choose(hostile.BODIES))
    attacker.speak("Hello.", **attacker.choose(hostile.FIELDS))


def recordings(attacker: Attacker) -> None:
    """Upload a recording that is costly to read, or a form that is."""
    if attacker.rng.random() < 0.5:
        kind, body = attacker.choose(FORMS)
        return attacker.post(VOICES, body, kind)
    name, data = attacker.choose(RECORDINGS)
    attacker.post(VOICES, hostile.upload(name, data), "multipart/form-data; boundary=b")


def slow_readers(attacker: Attacker) -> None:
    """Request a long MP3 and read a byte in half a second."""
    with attacker.connected(receive_bytes=1024) as connected:
        body = {"input": "Hello there. " * 20, "response_format": attacker.choose(["mp3", "flac", "pcm"])}
        attacker.send(connected, SPEECH, json.dumps(body).encode())
        end = time.monotonic() + HOLD_SECONDS
        connected.settimeout(READ_SECONDS)
        while time.monotonic() < end and not attacker.stopped.wait(0.5):
            with suppress(TimeoutError):
                if not connected.recv(1):
                    return


def leavers(attacker: Attacker) -> None:
    """Request speech and reset the connection while the request waits."""
    with attacker.connected() as connected:
        attacker.send(connected, SPEECH, json.dumps({"input": "Hello there. " * 20}).encode())
        time.sleep(float(attacker.rng.uniform(0, 0.3)))
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)


def pipelines(attacker: Attacker) -> None:
    """Send many requests on one connection without reading, or one of endless headers."""
    many = b"GET /v1/voices HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 500
    endless = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n" + b"X: y\r\n" * 50_000
    with attacker.connected() as connected:
        connected.sendall(attacker.choose([many, endless]))
        attacker.read(connected, 1.0)


def half_requests(attacker: Attacker) -> None:
    """Send an incomplete request and leave."""
    with attacker.connected() as connected:
        connected.sendall(attacker.choose(PARTIAL_REQUESTS))
        time.sleep(float(attacker.rng.uniform(0, 0.5)))
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)


def holders(attacker: Attacker) -> None:
    """Hold as many connections as the server allows."""
    held: list[socket.socket] = []
    sent, end = attacker.choose(HOLDING_REQUESTS), time.monotonic() + HOLD_SECONDS
    while time.monotonic() < end and not attacker.stopped.wait(0.01):
        with suppress(OSError):
            made = socket.create_connection(("127.0.0.1", attacker.port), 1.0, (attacker.address, 0))
            held.append(made)
            made.sendall(sent)
        if len(held) > HELD:
            held.pop(0).close()
    for one in held:
        one.close()


def openers(attacker: Attacker) -> None:
    """Open connections one after the other, each with a request, and read nothing."""
    opened: list[socket.socket] = []
    for _ in range(OPENED):
        if attacker.stopped.is_set():
            break
        with suppress(OSError):
            made = socket.create_connection(("127.0.0.1", attacker.port), 1.0, (attacker.address, 0))
            opened.append(made)
            made.sendall(b"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    for one in opened:
        one.close()


# -- over a WebSocket ----------------------------------------------------------------------------


def frame(data: bytes, head: int = 0x81) -> bytes:
    """A masked frame of a client. head: its first byte; 0x81 is a whole text message."""
    size = len(data)
    length = bytes([0x80 | size]) if size < 126 else b"\xfe" + struct.pack(">H", size)
    return bytes([head]) + length + bytes(4) + data


def message(**values: Any) -> bytes:
    """A message of JSON."""
    return frame(json.dumps(values).encode())


MESSAGES: dict[str, tuple[bytes, ...]] = {
    "characters": tuple(message(text=character) for character in "Hello there, who are you? "),
    "nothing": (message(text=""),),
    "spaces": (message(text=" "), message(flush=True)),
    "flushes": (message(flush=True),) * 50,
    "cancels": (message(text="Hello there. "), message(cancel=True)),
    "open markup": (message(text="<speak>" + "<p>" * 200), message(text="<break time='10s'/>" * 50)),
    "digits": (message(text="1" * 500),),
    "long texts": (message(text="etc. " * 800),),
    "binary": (frame(b"\x00\xff", 0x82),),
    "pings": (frame(b"x" * 100, 0x89),) * 50,
    "fragments": (frame(b'{"text": "', 0x01), *[frame(b"a", 0x00)] * 50, frame(b'"}', 0x80)),
    "odd JSON": (frame(b"[" * 60_000), frame(b'{"text": 1}'), frame(b'{"text": "\\ud800"}')),
    "settings": (message(text="Hello. ", speed=1e-300), message(text="", voice="\x00" * 1000)),
}
"""What a client sends over and over on one WebSocket."""


def websockets(attacker: Attacker) -> None:
    """Open a WebSocket and repeat one kind of message on it, reading what comes."""
    with attacker.connected() as connected:
        connected.sendall(UPGRADE)
        if b" 101 " not in connected.recv(4096):
            return
        messages, end = attacker.choose(list(MESSAGES.values())), time.monotonic() + HOLD_SECONDS / 3
        connected.settimeout(0.02)
        while time.monotonic() < end and not attacker.stopped.wait(0.02):
            for sent in messages:
                connected.sendall(sent)
                with suppress(TimeoutError):
                    if not connected.recv(65_536):
                        return


ATTACKS: dict[str, tuple[int, Callable[[Attacker], None]]] = {
    "long texts": (2, long_texts),
    "twenty texts of one client": (1, swarm),
    "odd fields": (2, odd_fields),
    "recordings and forms": (2, recordings),
    "slow readers": (8, slow_readers),
    "leavers": (2, leavers),
    "pipelines": (1, pipelines),
    "half requests": (2, half_requests),
    "openers": (1, openers),
    "holders": (6, holders),
    "WebSockets": (8, websockets),
}
"""How many clients there are of each kind, and what one act of them is."""
RECORDINGS = list(hostile.recordings().items())
FORMS = hostile.forms()


@dataclass(frozen=True, slots=True)
class Load:
    """Requests beside the attacks. Half of the clients listen to the end, the others leave or read slowly.

    Args:
        rate: requests per second. samples: sample rate of the audio in Hz.
    """

    text: str
    rate: float
    samples: int


def send_load(port: int, load: Load, rng: np.random.Generator, stopped: threading.Event) -> list[Answer]:
    """Send requests as a Poisson process until the attack is over. Each comes from an address of its own."""
    asked: list[Future[Answer]] = []
    with ThreadPoolExecutor(CLIENTS) as pool:
        while not stopped.wait(rng.exponential(1 / load.rate)):
            kind, leave, index = rng.random(), float(rng.uniform(0, 2)), len(asked)
            slow = 0.5 < kind <= 0.75
            after, pause = (1e9, 0.0) if kind <= 0.5 else (5.0, 0.2) if slow else (leave, 0.0)
            body, due = speech_body(load.text, index), time.perf_counter()
            client = (load.samples, after, pause, address(index))
            asked.append(pool.submit(listen, port, body, due, *client))
        return [one.result() for one in asked]


class Attack:
    """All attackers in a process of their own, as a context manager. `result` is there after its end.

    Threads of this process would delay what is measured here.
    """

    def __init__(self, port: int, load: Load, seed: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.here, there = context.Pipe()
        self.process = context.Process(target=attack, args=(port, load, seed, there), daemon=True)
        self.result: dict[str, Any] = {}

    def __enter__(self) -> Attack:
        self.process.start()
        self.here.recv()
        return self

    def __exit__(self, *error: object) -> None:
        self.here.send("stop")
        self.result = self.here.recv()
        self.process.join()


def attack(port: int, load: Load, seed: int, other: Connection) -> None:
    """Run all attackers and the load until a message comes; answer with what they did and got."""
    with suppress(AttributeError, OSError):
        os.nice(NICE)
    stopped = threading.Event()
    attackers = {
        kind: [
            Attacker(
                port,
                address(FIRST_ADDRESS + 100 * index + number),
                np.random.default_rng([seed, index, number]),
                stopped,
            )
            for number in range(count)
        ]
        for index, (kind, (count, _)) in enumerate(ATTACKS.items())
    }
    threads = [
        threading.Thread(target=one.run, args=(ATTACKS[kind][1],), daemon=True)
        for kind, group in attackers.items()
        for one in group
    ]
    for thread in threads:
        thread.start()
    with ThreadPoolExecutor(1) as pool:
        loading = pool.submit(send_load, port, load, np.random.default_rng(seed), stopped)
        other.send("started")
        other.recv()
        stopped.set()
    for thread in threads:
        thread.join(HOLD_SECONDS)
    found = {kind: summary(group) for kind, group in attackers.items()}
    other.send({LOAD: load_summary(loading.result())} | found)


def load_summary(heard: list[Answer]) -> dict[str, Any]:
    """Requests of the load and the statuses they got."""
    return {"acts": len(heard), "statuses": by_status(Counter(one.status for one in heard))}


def by_status(counts: Counter[int]) -> dict[str, int]:
    """Counts by status, as JSON has them."""
    return {str(status): count for status, count in sorted(counts.items())}


def summary(group: list[Attacker]) -> dict[str, Any]:
    """Acts and statuses of the attackers of one kind."""
    statuses = sum((one.statuses for one in group), Counter[int]())
    return {
        "acts": sum(one.acts for one in group),
        "statuses": by_status(statuses),
    }
