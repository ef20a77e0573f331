"""`bench batch`: throughput of 1, 2, 4, 8 requests that share the AR steps, against one at a time.

The same requests are spoken one after another and together. If their codes differ, nothing is reported. They
are also streamed, all at once, to measure the first audio of each. `bound` is the most that sharing can gain.
It assumes that a shared AR step costs as much as a step of one row, and that other work is done per request.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np

from valle2.benchmarks.options import need_positive
from valle2.benchmarks.report.plots import Line, Panel
from valle2.benchmarks.report.provenance import measured_on
from valle2.benchmarks.report.statistics import UNDERRUN_SECONDS, longest_wait, percentiles
from valle2.benchmarks.report.tables import joined, markdown
from valle2.benchmarks.speed.throughput import listen, make_requests
from valle2.benchmarks.stages import load_model
from valle2.engine.errors import Valle2Error
from valle2.runtime import Request, Speech, Valle2

COUNTS = (1, 2, 4, 8)
Result = dict[str, Any]


def batch(
    model: str,
    text: str,
    repeats: int,
    seed: int,
    threads: int,
    frames: int = 0,
    counts: Sequence[int] = COUNTS,
    **load_options: Any,
) -> Result:
    """Time every number of requests, in turns.

    Args:
        frames: length of each request, for a model that never draws `<eos>`; 0 lets `<eos>` end it.
        counts: numbers of requests at once. load_options: other arguments of `Valle2.load`.

    Raises:
        Valle2Error: a request has other codes in a batch than alone.
    """
    need_positive(repeats=repeats, threads=threads, slots=min(counts))
    tts = load_model(model, threads=threads, slots=max(counts), **load_options)
    requests = make_requests(tts, text, max(counts), seed, frames)
    speak(tts, requests[:1])  # warm-up
    times: dict[int, list[float]] = {count: [] for count in (0, *counts)}
    for _ in range(repeats):
        alone, took = one_by_one(tts, requests)
        times[0].append(took)
        for count in counts:
            began = time.perf_counter()
            need_same(alone, speak(tts, requests[:count]))
            times[count].append(time.perf_counter() - began)
    audio = [speech.timings.audio for speech in alone]
    single = sum(audio) / median(times[0])
    rows = [row(count, sum(audio[:count]) / median(times[count]), single) for count in counts]
    for found in rows:
        found |= streamed(tts, requests[: found["requests"]])
    shared = sum(speech.timings.ar for speech in alone) / sum(speech.timings.total for speech in alone)
    return {
        "one_at_a_time": round(single, 3),
        "ar_share": round(shared, 3),
        "batch": [found | {"bound": round(bound(shared, found["requests"]), 2)} for found in rows],
        "same_codes": True,
        "text": text,
        "repeats": repeats,
        **load_options,
    } | measured_on(tts.manifest, seed, threads)


def bound(shared: float, count: int) -> float:
    """The greatest gain of `count` requests that share this part of their time and nothing else."""
    return 1 / (1 - shared + shared / count)


def speak(tts: Valle2, requests: list[Request]) -> list[Speech]:
    return tts.synthesize_batch(requests)


def one_by_one(tts: Valle2, requests: list[Request]) -> tuple[list[Speech], float]:
    """Speak every request alone. Returns them, and the seconds of all."""
    began = time.perf_counter()
    found = [speak(tts, [request])[0] for request in requests]
    return found, time.perf_counter() - began


def need_same(alone: list[Speech], together: list[Speech]) -> None:
    """Refuse to compare the times of unequal work."""
    for index, speech in enumerate(together):
        if not np.array_equal(speech.codes, alone[index].codes):
            raise Valle2Error(
                f"request {index} has other codes in a batch of {len(together)} than alone, so "
                "the times do not compare; report this with the model and the command"
            )


def row(count: int, together: float, single: float) -> Result:
    """Throughput of one number of requests."""
    return {
        "requests": count,
        "audio_s_per_s": round(together, 3),
        "ratio": round(together / single, 3),
    }


def streamed(tts: Valle2, requests: list[Request]) -> Result:
    """Listen to all requests as streams that begin at the same time."""
    listeners, _ = listen(tts, requests, [0.0] * len(requests))
    return {
        "first_audio_ms": percentiles([listener.first for listener in listeners], 50, 95),
        "underruns": sum(longest_wait(listener.heard) > UNDERRUN_SECONDS for listener in listeners),
    }


def table(result: Result) -> str:
    """One line per number of requests."""
    head = [
        "requests at once",
        "audio s/s",
        "to one at a time",
        "bound",
        "first audio p50 / p95, ms",
        "underruns",
    ]
    rows = [
        [
            found["requests"],
            found["audio_s_per_s"],
            found["ratio"],
            found["bound"],
            joined(found["first_audio_ms"]),
            found["underruns"],
        ]
        for found in result["batch"]
    ]
    return markdown(head, rows)


def panels(result: Result) -> list[Panel]:
    """Throughput and first audio against the number of requests."""
    rows = result["batch"]
    x = [found["requests"] for found in rows]
    gained = Line("to one at a time", x, [found["ratio"] for found in rows])
    most = Line("bound", x, [found["bound"] for found in rows], dashed=True)
    waits = [
        Line(f"first audio {name}", x, [found["first_audio_ms"][name] for found in rows])
        for name in ("p50", "p95")
    ]
    return [
        Panel("throughput", "requests at once", [gained, most]),
        Panel("first audio, ms", "requests at once", waits),
    ]
