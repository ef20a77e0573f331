"""Calls of the NAR and the codec that are padded and captured (`capture_chunks`), beside calls as they are.

Both models are loaded at the same time and run in turns. Capturing costs time at loading and memory, which
are measured too. Padding costs computing, which a capture has to outweigh.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from valle2.benchmarks.fullsize import TEXT
from valle2.benchmarks.speed.on_gpu.joint import (
    FIRST_CHUNK,
    ROWS,
    in_turns,
    nar_states,
    run_passes,
    same_share,
)
from valle2.benchmarks.speed.on_gpu.setup import HALF, NotHereError, Result, Setup
from valle2.benchmarks.speed.throughput import make_requests
from valle2.runtime import Request, Valle2
from valle2.runtime.generation.nar_runner import NARState


def time_captures(setup: Setup) -> Result:
    """All of it with the model of the timings in "fp16", whose builds have the graphs.

    Raises:
        NotHereError: there is no GPU, which alone captures calls.
    """
    if not setup.on_gpu:
        raise NotHereError("CUDA graphs need a GPU")
    with loaded(setup, capture=False) as (plain, seconds), loaded(setup, capture=True) as (captured, longer):
        found = time_pair(plain, captured, setup.frames, setup.repeats, time.perf_counter)
        found["load"] = {"plain_seconds": round(seconds, 2), "captured_seconds": round(longer, 2)}
        ladders = captured.model.nar.ladder, captured.need_codec().ladder
        found["captured"] = [ladder is not None for ladder in ladders]
        found["rungs"] = [len(ladder.rungs) if ladder else 0 for ladder in ladders]
        found["mb"] = round(sum(ladder.size for ladder in ladders if ladder) / 1e6, 1)
    return found


@contextmanager
def loaded(setup: Setup, *, capture: bool) -> Iterator[tuple[Valle2, float]]:
    """A model, and the seconds that it took to load."""
    began = time.perf_counter()
    options: dict[str, Any] = {"threads": setup.threads, "slots": max(ROWS), "capture_chunks": capture}
    with Valle2.load(str(setup.model().bundle), **options, **setup.options(HALF)) as tts:
        yield tts, time.perf_counter() - began


def time_pair(
    plain: Valle2,
    captured: Valle2,
    frames: int,
    repeats: int,
    clock: Callable[[], float],
    text: str = TEXT,
    numbers: Sequence[int] = (1, *ROWS),
) -> Result:
    """By what is timed, one row for each number of rows, and the first audio of a stream.

    Args:
        frames: of the longest whole request. numbers: of rows.
    """
    requests = make_requests(plain, text, max(numbers), 0, frames)
    pair = Pair(plain, captured, repeats, clock)
    found: Result = {"nar": [], "codec": []}
    for kind, longest in (("first chunk", min(FIRST_CHUNK, frames // 2)), ("whole", frames)):
        states = nar_states(plain, requests, longest)
        for count in numbers:
            about = {"kind": kind, "frames": longest, "rows": count}
            found["nar"].append(about | pair.time_passes(states[:count]))
            found["codec"].append(about | pair.time_codec(count, longest))
    found["first_audio"] = pair.in_turns(lambda tts: first_audio(tts, requests[0]))[0]
    return found


@dataclass(frozen=True, slots=True)
class Pair:
    """A model without captured calls and one with them, which run in turns."""

    plain: Valle2
    captured: Valle2
    repeats: int
    clock: Callable[[], float]

    def in_turns(self, run: Callable[[Valle2], Any]) -> tuple[Result, list[Any]]:
        """Milliseconds of both, and what both returned."""
        sides: dict[str, Callable[[], Any]] = {
            "plain": partial(run, self.plain),
            "captured": partial(run, self.captured),
        }
        ms, found = in_turns(sides, self.repeats, self.clock)
        return {f"{side}_ms": value for side, value in ms.items()}, list(found.values())

    def time_passes(self, states: list[NARState]) -> Result:
        """All passes of the NAR over these rows together."""
        ms, codes = self.in_turns(lambda tts: run_passes(tts, states, together=True))
        return ms | {"same_codes": same_share(*codes)}

    def time_codec(self, rows: int, frames: int) -> Result:
        """The codec's decoder over rows of one length."""
        codes = np.random.default_rng(0).integers(0, 1024, (rows, frames, 8))
        ms, (one, other) = self.in_turns(lambda tts: tts.need_codec().decode_rows(codes))
        return ms | {"greatest_difference": float(np.abs(one - other).max())}


def first_audio(tts: Valle2, request: Request) -> int:
    """Run a stream until its first chunk is there; returns the samples of it."""
    stream = tts.stream(request.text, request.prompt, request.settings)
    try:
        return len(next(iter(stream)))
    finally:
        stream.close()
