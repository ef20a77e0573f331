"""A server with misbehaving clients, and its memory over many requests.

Chaos: requests come at a rate above capacity. Clients disconnect, read slowly, stop in the middle of a
request or send malformed requests, others hold as many connections as they can, and the server is restarted
half way. Health checks are timed meanwhile. Afterwards no row and no connection
may be in use, and a seed must give the same audio as before. Soak: many short requests, to see whether memory
grows.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np

from valle2.benchmarks.report.statistics import growth
from valle2.benchmarks.serving.client import (
    HOLDING_REQUESTS,
    PARTIAL_REQUESTS,
    Answer,
    ServerProcess,
    get,
    listen,
    on_time,
    send_partial,
    speech_body,
    wait,
)

SHORT_TEXT = "Hello."
SETTLE_SECONDS = 60.0
HOLDERS, HELD, HOLD_PAUSE = 6, 150, 0.01
"""Attackers that hold connections, connections of each, and seconds between two that it opens."""
POLL_PAUSE = 0.1
MALFORMED = (
    b"",
    b"{",
    b"[]",
    b"\xff\xfe",
    b'{"input": 3}',
    b'{"input": ""}',
    b'{"input": "a", "voice": "../../etc/passwd"}',
    b'{"input": "a", "seed": 1e400}',
    json.dumps({"input": "a" * 200_000}).encode(),
)


def chaos(
    server: ServerProcess, text: str, seed: int, rate: float, seconds: float, samples: int
) -> dict[str, Any]:
    """Send `rate` requests per second for `seconds`; count the answers, then check the server's state.

    samples: sample rate of the audio.
    """
    wanted, sockets = reference(server, text, seed, samples), server.sockets()
    rng = np.random.default_rng(seed)
    count = max(1, round(rate * seconds))
    due = np.sort(rng.uniform(0, seconds, count))
    began = time.perf_counter()
    plans = [client(rng, text, seed + index) for index in range(count)]

    stop = threading.Event()
    polls: list[tuple[int, float]] = []
    others = [threading.Thread(target=hold, args=(server, index, stop)) for index in range(HOLDERS)]
    others.append(threading.Thread(target=poll_health, args=(server, polls, stop)))
    for other in others:
        other.start()
    restarter = threading.Timer(seconds / 2, server.restart)
    restarter.start()
    heard = on_time(lambda index, when: plans[index](server.port, when, samples), began + due)
    restarter.join()
    stop.set()
    for other in others:
        other.join()
    return health(polls) | verdict(
        server, heard, wanted == reference_after(server, text, seed, samples), sockets
    )


def hold(server: ServerProcess, index: int, stop: threading.Event) -> None:
    """Hold connections of one kind from an address of one's own, and open new ones for those that close."""
    held: list[socket.socket] = []
    while not stop.is_set():
        with suppress(OSError):
            address = f"127.0.0.{index + 2}" if sys.platform == "linux" else "127.0.0.1"
            made = socket.create_connection(("127.0.0.1", server.port), 1.0, (address, 0))
            held.append(made)
            made.sendall(HOLDING_REQUESTS[index % len(HOLDING_REQUESTS)])
        if len(held) > HELD:
            held.pop(0).close()
        stop.wait(HOLD_PAUSE)
    for one in held:
        one.close()


def poll_health(server: ServerProcess, polls: list[tuple[int, float]], stop: threading.Event) -> None:
    """Note the status and the seconds of each health check; status 0 while the server restarts."""
    while not stop.wait(POLL_PAUSE):
        began = time.perf_counter()
        status = get(server.port, "/health")[0]
        polls.append((status, time.perf_counter() - began))


def health(polls: list[tuple[int, float]]) -> dict[str, Any]:
    """Counts of the health checks, and the slowest that was answered."""
    return {
        "health_polls": len(polls),
        "health_other_than_200": sum(status not in (0, 200) for status, _ in polls),
        "health_unanswered": sum(not status for status, _ in polls),
        "health_slowest_ms": round(1000 * max((took for status, took in polls if status), default=0.0), 1),
    }


def client(rng: np.random.Generator, text: str, seed: int) -> Callable[[int, float, int], Answer]:
    """A client of random behaviour: half listen to the end, others leave, read slowly or send bad data."""
    kind, leave = rng.random(), float(rng.uniform(0, 2))
    bad, half = (
        MALFORMED[int(rng.integers(len(MALFORMED)))],
        PARTIAL_REQUESTS[int(rng.integers(len(PARTIAL_REQUESTS)))],
    )
    if kind > 0.9:
        return lambda port, due, rate: send_partial(port, half, leave)
    body = bad if kind > 0.8 else speech_body(text, seed)
    gone = leave if kind > 0.5 and kind <= 0.7 else 5.0 if kind > 0.7 else 1e9
    pause = 0.2 if 0.7 < kind <= 0.8 else 0.0
    return lambda port, due, rate: listen(port, body, due, rate, gone, pause)


def reference(server: ServerProcess, text: str, seed: int, samples: int) -> bytes:
    """The audio of a seed, requested alone."""
    return listen(server.port, speech_body(text, seed), time.perf_counter(), samples).data


def reference_after(server: ServerProcess, text: str, seed: int, samples: int) -> bytes:
    """The audio of a seed, requested once the server is idle."""
    server.wait_idle(SETTLE_SECONDS)
    return reference(server, text, seed, samples)


def verdict(server: ServerProcess, heard: list[Answer], same: bool, sockets: int) -> dict[str, Any]:
    """Counts of the answers, and what must hold afterwards. sockets: how many the server had open before."""
    server.wait_idle(SETTLE_SECONDS)
    wait(lambda: server.sockets() <= sockets, SETTLE_SECONDS)
    left = max(0, server.sockets() - sockets)
    statuses = Counter(one.status for one in heard if not one.half)
    found = server.metrics()
    return {
        "requests": len(heard),
        "half_open": sum(one.half for one in heard),
        "statuses": {str(status): count for status, count in sorted(statuses.items())},
        "cut": sum(one.cut for one in heard),
        "other_5xx": sum(count for status, count in statuses.items() if status >= 500 and status != 503),
        "leaked_slots": int(found["active_slots"] + found["queue_depth"]),
        "connections_left": left,
        "worker_restarts": int(found["worker_restarts_total"]),
        "next_request_identical": same,
    }


def soak(server: ServerProcess, seed: int, count: int, samples: int) -> dict[str, Any]:
    """Growth of the server's resident memory over `count` short requests, one after another."""
    sizes, whole = [], 0
    for index in range(count):
        body = speech_body(SHORT_TEXT, seed + index)
        whole += listen(server.port, body, time.perf_counter(), samples).whole
        sizes.append(server.resident_bytes() / 2**20)
    return {"requests": count, "whole": whole} | growth(sizes)
