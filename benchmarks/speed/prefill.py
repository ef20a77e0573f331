"""Seconds of a prefill against the size of its chunks, and how long a running row waits for its next step.

All sizes are timed in turns in one run; the last one of each length is the whole prefill in one call.
Processor seconds change less with what else a machine does; with several threads they count waiting, too.
"""

from __future__ import annotations

import time
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from valle2.benchmarks.report.report import markdown, measured_on, need_positive
from valle2.benchmarks.speed.steps import place, row
from valle2.runtime import Valle2
from valle2.runtime.generation.ar_runner import ARRunner
from valle2.runtime.generation.sequence import Sequence

POSITIONS = (180, 600)
CHUNKS = (32, 64, 128, 256)
RUNNING = 100
PARTS = ("alone_ms", "alone_cpu_ms", "gap_ms", "gap_cpu_ms")
Result = dict[str, Any]


def prefill(model: str, repeats: int, seed: int, threads: int, **where: Any) -> Result:
    """Time every number of positions in chunks of every size, alone and beside a row that decodes.

    where: other arguments of `Valle2.load`.
    """
    need_positive(repeats=repeats, threads=threads)
    tts = Valle2.load(model, threads=threads, slots=2, **where)
    slots, sizes = tts.model.ar, tts.manifest.sizes
    usual = slots.chunk
    fitting = [count for count in POSITIONS if count <= min(slots.capacity, slots.max_groups)]
    entering = {count: row(sizes, count, seed) for count in fitting}
    slots.enter(0, row(sizes, RUNNING, seed))
    conditions = [(count, chunk) for count in fitting for chunk in [c for c in CHUNKS if c < count] + [count]]
    times: dict[tuple[int, int], list[tuple[float, ...]]] = {condition: [] for condition in conditions}
    for turn in range(repeats + 1):
        for count, chunk in conditions:
            slots.chunk = chunk
            took = timed(slots, entering[count])
            times[count, chunk] += [took] if turn else []
    lines = [line(*condition, found) for condition, found in times.items()]
    about = {"prefill": lines, "chunk": usual, "repeats": repeats, **where}
    return about | measured_on(tts, seed, threads)


def timed(slots: ARRunner, entering: Sequence) -> tuple[float, ...]:
    """A prefill alone, then the most from one step of a running row to its next during the same prefill.

    -> seconds and processor seconds of the one, then of the other.
    """
    began = clocks()
    slots.enter(1, entering)
    alone = clocks() - began
    place(slots, 1, RUNNING)
    slots.step(1)
    ends = [clocks()]
    slots.start_prefill(1, entering)
    last = False
    while not last:
        last = slots.prefill_chunk(1)
        slots.step(1)
        ends.append(clocks())
    return (*alone.tolist(), *np.diff(ends, axis=0).max(axis=0).tolist())


def clocks() -> NDArray[np.float64]:
    """(2,): the time, and the processor time of this process."""
    return np.array([time.perf_counter(), time.process_time()])


def line(positions: int, chunk: int, found: list[tuple[float, ...]]) -> Result:
    """One condition in milliseconds."""
    parts = (round(1000 * median(part), 1) for part in zip(*found, strict=True))
    return {"positions": positions, "chunk": chunk} | dict(zip(PARTS, parts, strict=True))


def table(result: Result) -> str:
    """A line per condition."""
    head = [
        "positions",
        "chunk",
        "prefill, ms",
        "processor, ms",
        "longest gap beside it, ms",
        "processor, ms",
    ]
    return markdown(head, [list(found.values()) for found in result["prefill"]])
