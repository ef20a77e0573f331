"""First audio and underruns under open load, at shares of the server's capacity.

Requests of mixed lengths arrive as a Poisson process, whether or not earlier ones have ended. Every client
plays what it hears in real time. Two servers are loaded in turns with the same requests: one as it is
(`FIRST_CHUNKS`), and one whose requests take turns (`IN_TURNS`, see `in_turns`).

- Capacity: what as many clients get as the server has rows, if each sends its next request after an answer.
- First audio: from the time at which a request was due to its first byte of audio.
- Underrun: a piece arrives after its audio is due in a player that started with the first piece.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import numpy as np

from valle2.benchmarks.options import need_positive
from valle2.benchmarks.report.provenance import measured_on
from valle2.benchmarks.report.statistics import percentiles, silences
from valle2.benchmarks.report.tables import markdown
from valle2.benchmarks.serving.client import (
    COMMAND_LINE,
    Answer,
    ServerProcess,
    address,
    listen,
    on_time,
    speech_body,
)
from valle2.engine.errors import Valle2Error
from valle2.runtime import Valle2

REPEATED, SHARES_OF_LENGTHS = (1, 2, 4, 8), (0.4, 0.3, 0.2, 0.1)
"""How often the text stands in a request, and the share of the requests for each."""
FIRST_CHUNKS, IN_TURNS = "first chunks first", "in turns"
MODULES = {IN_TURNS: "valle2.benchmarks.serving.in_turns", FIRST_CHUNKS: COMMAND_LINE}
"""What `python -m` runs for each order."""
REFUSED = (429, 503)


def load_at_shares(
    model: str,
    text: str,
    shares: Sequence[float],
    requests: int,
    slots: int,
    seed: int,
    threads: int,
    repeats: int,
    progress: Callable[[str], None] = lambda message: None,
) -> dict[str, Any]:
    """Measure both orders at every share of the capacity, in turns.

    Args:
        shares: of the capacity. requests: of each run. repeats: runs of each share and order.

    Returns:
        `capacity`, and `rows` with the medians over the repeats, one for each share and order.

    Raises:
        Valle2Error: a size is not positive, there are too few requests, or a server does not start.
    """
    need_positive(requests=requests, slots=slots, threads=threads, repeats=repeats)
    if requests <= slots:
        raise Valle2Error(f"--requests is {requests}; expected more than --slots, which is {slots}")
    tts = Valle2.load(model, threads=threads)
    samples, bodies = tts.need_codec().sample_rate, mixed_requests(text, requests, seed)
    found: dict[tuple[float, str], list[dict[str, Any]]] = {}
    with (
        ServerProcess(model, slots, threads, MODULES[IN_TURNS]) as in_turns,
        ServerProcess(model, slots, threads, MODULES[FIRST_CHUNKS]) as first_chunks,
    ):
        servers = {IN_TURNS: in_turns, FIRST_CHUNKS: first_chunks}
        progress("capacity")
        most = {order: capacity(server, bodies, slots, samples) for order, server in servers.items()}
        for repeat in range(repeats):
            for share in shares:
                rate = share * most[FIRST_CHUNKS]["requests_per_s"]
                progress(f"run {repeat + 1} of {repeats}: {100 * share:g} % of the capacity")
                due = np.cumsum(np.random.default_rng(seed + repeat).exponential(1 / rate, requests))
                for order, server in servers.items():
                    run = one_run(server, bodies, due, samples)
                    found.setdefault((share, order), []).append({"requests_per_s": rate} | run)
    return {
        "capacity": most[FIRST_CHUNKS],
        "requests": requests,
        "repeats": repeats,
        "slots": slots,
        "text": text,
        "rows": [{"share": share, "order": order} | medians(runs) for (share, order), runs in found.items()],
    } | measured_on(tts.manifest, seed, threads)


def mixed_requests(text: str, count: int, seed: int) -> list[bytes]:
    """Bodies of requests that repeat the text as `REPEATED` says."""
    drawn = np.random.default_rng(seed).choice(REPEATED, count, p=SHARES_OF_LENGTHS)
    return [speech_body(" ".join([text] * int(times)), seed + index) for index, times in enumerate(drawn)]


def capacity(server: ServerProcess, bodies: list[bytes], clients: int, samples: int) -> dict[str, float]:
    """Requests and audio seconds per second while every client is busy.

    The time ends when the last request has been sent, because rows are free after that.

    Raises:
        Valle2Error: a request failed.
    """
    left, heard = deque(enumerate(bodies)), list[Answer]()
    began = sent = time.perf_counter()

    def send_requests() -> None:
        nonlocal sent
        while left:
            index, body = left.popleft()
            sent = time.perf_counter()
            heard.append(listen(server.port, body, began, samples, address=address(index)))

    threads = [threading.Thread(target=send_requests) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if not all(one.whole for one in heard):
        statuses = sorted({one.status for one in heard})
        raise Valle2Error(f"the capacity cannot be measured: requests failed, with statuses {statuses}")
    total = sum(one.audio for one in heard)
    audio = sum(seconds for one in heard for when, seconds in one.pieces if when <= sent - began)
    rate = audio / (sent - began)
    return {"requests_per_s": round(rate * len(bodies) / total, 4), "audio_s_per_s": round(rate, 3)}


def one_run(server: ServerProcess, bodies: list[bytes], due: Any, samples: int) -> dict[str, Any]:
    """Send each request when it is due and say what its listeners heard."""
    began = time.perf_counter() + 0.1

    def ask(index: int, when: float) -> Answer:
        return listen(server.port, bodies[index], when, samples, address=address(index))

    heard = on_time(ask, began + due)
    server.wait_idle(10.0)
    return outcome(heard)


def outcome(heard: list[Answer]) -> dict[str, Any]:
    """First audio in ms, underruns and seconds of silence over all streams, and counts of the answers."""
    began = [one for one in heard if one.pieces]
    waits = [silence for one in began for silence in silences(one.pieces)]
    rejected = sum(one.status in REFUSED for one in heard)
    return {
        "first_audio_ms": percentiles([one.pieces[0][0] for one in began], 50, 95) if began else {},
        "underruns": len(waits),
        "silent_s": sum(waits),
        "rejected": rejected,
        "failed": sum(not one.whole for one in heard) - rejected,
        "total": len(heard),
    }


def medians(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of every figure over the runs."""
    found: dict[str, Any] = {}
    for name, value in runs[0].items():
        if isinstance(value, dict):
            points = {point for run in runs for point in run[name]}
            found[name] = medians([run[name] for run in runs if run[name]]) if points else {}
        else:
            found[name] = round(median(run[name] for run in runs), 3)
    return found


def table(result: dict[str, Any]) -> str:
    """One row for each share and order, as a Markdown table."""
    head = ["load", "order", "first audio p50 / p95, ms", "underruns", "silence, s", "rejected", "requests"]
    rows = [
        [
            f"{100 * row['share']:g} %",
            row["order"],
            " / ".join(f"{value:.0f}" for value in row["first_audio_ms"].values()),
            f"{row['underruns']:g}",
            f"{row['silent_s']:.2f}",
            f"{row['rejected']:g}",
            f"{row['total']:g}",
        ]
        for row in result["rows"]
    ]
    most = result["capacity"]
    said = f"Capacity: {most['requests_per_s']:.2f} requests/s, {most['audio_s_per_s']:.2f} audio seconds/s."
    return f"{said}\n\n{markdown(head, rows)}"
