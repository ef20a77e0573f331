"""A server among bad clients, and over many requests.

Chaos: at a rate above capacity clients go away, read slowly, stop in the middle of a request, send nonsense,
and the server is restarted half way. Afterwards no slot and no connection may be held, and a seed must sound
as before. Soak: does memory grow?
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np

from valle2.benchmarks.report.report import growth
from valle2.benchmarks.serving.client import HALVES, Heard, Served, hang, listen, on_time, speech_body, wait

SHORT_TEXT = "Hello."
SETTLE_SECONDS = 60.0
BAD = (
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


def chaos(served: Served, text: str, seed: int, rate: float, seconds: float, samples: int) -> dict[str, Any]:
    """`rate` requests a second for `seconds`; what came of them, and how the server stands afterwards."""
    wanted, sockets = reference(served, text, seed, samples), served.sockets()
    rng = np.random.default_rng(seed)
    count = max(1, round(rate * seconds))
    due = np.sort(rng.uniform(0, seconds, count))
    began = time.perf_counter()
    plans = [client(rng, text, seed + index) for index in range(count)]

    restarter = threading.Timer(seconds / 2, served.restart)
    restarter.start()
    heard = on_time(lambda index, when: plans[index](served.port, when, samples), began + due)
    restarter.join()
    return verdict(served, heard, wanted == reference_after(served, text, seed, samples), sockets)


def client(rng: np.random.Generator, text: str, seed: int) -> Callable[[int, float, int], Heard]:
    """Half ask and listen; the others leave, read slowly, send nonsense, or half of a request."""
    kind, leave = rng.random(), float(rng.uniform(0, 2))
    bad, half = BAD[int(rng.integers(len(BAD)))], HALVES[int(rng.integers(len(HALVES)))]
    if kind > 0.9:
        return lambda port, due, rate: hang(port, half, leave)
    body = bad if kind > 0.8 else speech_body(text, seed)
    gone = leave if kind > 0.5 and kind <= 0.7 else 5.0 if kind > 0.7 else 1e9
    pause = 0.2 if 0.7 < kind <= 0.8 else 0.0
    return lambda port, due, rate: listen(port, body, due, rate, gone, pause)


def reference(served: Served, text: str, seed: int, samples: int) -> bytes:
    """A seed's audio, asked for alone."""
    return listen(served.port, speech_body(text, seed), time.perf_counter(), samples).data


def reference_after(served: Served, text: str, seed: int, samples: int) -> bytes:
    """The same once nothing is under way any more."""
    served.wait_idle(SETTLE_SECONDS)
    return reference(served, text, seed, samples)


def verdict(served: Served, heard: list[Heard], same: bool, sockets: int) -> dict[str, Any]:
    """Counts, and what must hold. sockets: that the server had open before."""
    served.wait_idle(SETTLE_SECONDS)
    wait(lambda: served.sockets() <= sockets, SETTLE_SECONDS)
    left = max(0, served.sockets() - sockets)
    statuses = Counter(one.status for one in heard if not one.half)
    found = served.metrics()
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


def soak(served: Served, seed: int, count: int, samples: int) -> dict[str, Any]:
    """`count` short requests one after another: does resident memory grow?"""
    sizes, whole = [], 0
    for index in range(count):
        body = speech_body(SHORT_TEXT, seed + index)
        whole += listen(served.port, body, time.perf_counter(), samples).whole
        sizes.append(served.resident_bytes() / 2**20)
    return {"requests": count, "whole": whole} | growth(sizes)
