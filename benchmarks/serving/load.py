"""`bench serve`: speech over HTTP under load. It starts a server and sends requests over real sockets.

First audio is the time from the moment a request was due to its first byte of audio. HTTP's part of it is
that time minus the time of the server's engine thread for the same request. The engine without a server is
timed in turns. A disconnect is timed from the client's close until `/metrics` shows the row as free.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from statistics import mean, median
from typing import Any

import numpy as np

from valle2.benchmarks.options import need_positive
from valle2.benchmarks.report.provenance import measured_on
from valle2.benchmarks.report.statistics import (
    UNDERRUN_SECONDS,
    longest_wait,
    percentiles,
    ratio_percentiles,
)
from valle2.benchmarks.report.tables import joined, markdown, open_loop_rows
from valle2.benchmarks.serving.chaos import chaos, soak
from valle2.benchmarks.serving.chaos import table as chaos_table
from valle2.benchmarks.serving.client import Answer, ServerProcess, listen, on_time, speech_body
from valle2.runtime import Settings, Valle2
from valle2.runtime.server.limits import Limits

POINTS = (50, 95, 99)
DISCONNECT_SECONDS = 10.0


def serve(
    model: str,
    text: str,
    requests: int,
    slots: int,
    rate: float,
    seed: int,
    threads: int,
    repeats: int,
    chaos_seconds: float = 0.0,
    soak_requests: int = 0,
    progress: Callable[[str], None] = lambda message: None,
) -> dict[str, Any]:
    """Measure a server.

    Args:
        requests: of the open loop. rate: requests per second of it; 0 is 70 % of the measured capacity.
        chaos_seconds: time under attack, 0 for none. soak_requests: see `chaos.soak`.

    Raises:
        Valle2Error: a size is not positive, or the server does not start.
    """
    need_positive(requests=requests, slots=slots, threads=threads, repeats=repeats)
    tts = Valle2.load(model, threads=threads)
    samples = tts.need_codec().sample_rate
    progress("starting the server")
    # clients that do not read hold up a restart as long as it may take
    drain_seconds = min(chaos_seconds, Limits().drain_seconds)
    with ServerProcess(model, slots, threads, drain_seconds=drain_seconds) as server:
        progress("first audio and disconnects")
        first = first_audio(server, tts, text, seed, repeats)
        gone = disconnects(server, text, seed, repeats, samples)
        progress("capacity")
        capacity = closed_loop(server, text, seed, 2 * slots, slots, samples)
        progress(f"open loop of {requests} requests")
        found = open_loop(server, text, requests, rate or 0.7 * capacity, seed, samples)
        result = {"first_audio": first, "disconnect": gone, "capacity_per_s": round(capacity, 3)}
        result |= {"open_loop": found, "slots": slots, "text": text}
        if chaos_seconds:
            progress(f"chaos for {chaos_seconds:g} s")
            result["chaos"] = chaos(server, text, seed, 4 * capacity, chaos_seconds, samples)
        if soak_requests:
            progress(f"soak of {soak_requests} requests")
            result["soak"] = soak(server, seed, soak_requests, samples)
    return result | measured_on(tts.manifest, seed, threads)


def first_audio(server: ServerProcess, tts: Valle2, text: str, seed: int, repeats: int) -> dict[str, float]:
    """Median milliseconds of the first audio: of the engine alone, over HTTP, and HTTP's part of it."""
    voice, rate = tts.voice(tts.default_voice()), tts.need_codec().sample_rate
    settings = Settings(seed=seed)
    alone, over, extra = [], [], []
    for _ in range(repeats + 1):  # the first is the warm-up
        began = time.perf_counter()
        with tts.stream(text, voice, settings) as stream:
            next(stream)
            alone.append(time.perf_counter() - began)
        before, began = server.metrics(), time.perf_counter()
        over.append(listen(server.port, speech_body(text, seed), began, rate, leave=0.0).pieces[0][0])
        server.wait_idle(DISCONNECT_SECONDS)
        extra.append(over[-1] - average(before, server.metrics(), "first_audio_seconds"))
    figures = {"engine_ms": alone, "http_ms": over, "http_part_ms": extra}
    return {name: round(1000 * median(values[1:]), 2) for name, values in figures.items()}


def disconnects(server: ServerProcess, text: str, seed: int, repeats: int, rate: int) -> dict[str, Any]:
    """Milliseconds from a client's close until its row is free, and of the steps in that time."""
    freed: list[float] = []
    steps: list[float] = []
    for index in range(repeats):
        before = server.metrics()
        body = speech_body(" ".join([text] * 8), seed + index, first_chunk_seconds=0.0)
        listen(server.port, body, time.perf_counter(), rate, leave=0.0)
        closed = time.perf_counter()
        server.wait_idle(DISCONNECT_SECONDS)
        took, after = time.perf_counter() - closed, server.metrics()
        if after["cancelled_total"] > before["cancelled_total"]:  # the request had not ended before
            freed.append(took)
            steps.append(average(before, after, "step_seconds"))
    if not freed:
        return {"requests": 0}
    step = round(1000 * mean(steps), 2)
    return {"requests": len(freed), "step_ms": step, "freed_ms": percentiles(freed, 50, 95, 100)}


def average(before: dict[str, float], after: dict[str, float], name: str) -> float:
    """Mean of the values that a histogram of `/metrics` recorded between two readings."""
    count = after[f"{name}_count"] - before[f"{name}_count"]
    return (after[f"{name}_sum"] - before[f"{name}_sum"]) / max(1.0, count)


def closed_loop(server: ServerProcess, text: str, seed: int, count: int, clients: int, rate: int) -> float:
    """Completed requests per second of `clients` clients that send the next request after each answer."""
    began = time.perf_counter()
    with ThreadPoolExecutor(clients) as pool:
        bodies = [speech_body(text, seed + index) for index in range(count)]
        heard = list(pool.map(lambda body: listen(server.port, body, time.perf_counter(), rate), bodies))
    return max(1, sum(one.whole for one in heard)) / (time.perf_counter() - began)


def open_loop(
    server: ServerProcess, text: str, count: int, rate: float, seed: int, samples: int
) -> dict[str, Any]:
    """Requests arrive as a Poisson process of `rate` per second, whether or not earlier ones are done."""
    due = np.cumsum(np.random.default_rng(seed).exponential(1 / rate, count))
    began = time.perf_counter()

    def ask(index: int, when: float) -> Answer:
        return listen(server.port, speech_body(text, seed + index), when, samples)

    heard = on_time(ask, began + due)
    return summary(heard, rate, time.perf_counter() - began)


def summary(heard: list[Answer], rate: float, took: float) -> dict[str, Any]:
    """Percentiles over the complete streams, and the number of answers by status."""
    whole = [one for one in heard if one.whole]
    result: dict[str, Any] = {
        "requests_per_s": round(rate, 3),
        "requests": len(heard),
        "statuses": {str(status): count for status, count in Counter(one.status for one in heard).items()},
        "cut": sum(one.cut for one in heard),
        "audio_s_per_s": round(sum(one.audio for one in whole) / took, 3),
        "underruns": sum(longest_wait(one.pieces) > UNDERRUN_SECONDS for one in whole),
    }
    if whole:
        ratios = [one.pieces[-1][0] / one.audio for one in whole]
        result["first_audio_ms"] = percentiles([one.pieces[0][0] for one in whole], *POINTS)
        result["rtf"] = ratio_percentiles(ratios, *POINTS)
    return result


def table(result: dict[str, Any]) -> str:
    """One line per figure, as a Markdown table; then the tables of the chaos."""
    first, gone, loop = result["first_audio"], result["disconnect"], result["open_loop"]
    rows: list[list[object]] = [
        ["first audio: engine / HTTP / HTTP's part, ms", joined(first)],
        ["disconnect to row free p50 / p95 / max, ms", joined(gone.get("freed_ms", {}))],
        ["AR step in that time, ms", gone.get("step_ms", "")],
        *open_loop_rows(loop),
        ["answers by status", named(loop["statuses"])],
    ]
    rows += [[f"soak: {name}", value] for name, value in result.get("soak", {}).items()]
    tables = [markdown(["", "value"], rows)]
    if "chaos" in result:
        tables.append(chaos_table(result["chaos"]))
    return "\n\n".join(tables)


def named(values: dict[str, int]) -> str:
    return ", ".join(f"{name}: {value}" for name, value in sorted(values.items()))
