"""Seconds of a prefill against the size of its chunks, and how long a running row waits for its next step.

All sizes are timed in turns in one run. The last size of each length is the whole prefill in one call.
"""

from __future__ import annotations

import time
from statistics import median
from typing import Any

from valle2.benchmarks.report import markdown, measured_on, need_positive
from valle2.benchmarks.steps import place, row
from valle2.engine import PREFILL_CHUNK
from valle2.runtime import Valle2
from valle2.runtime.decode import Row, Slots

POSITIONS = (180, 600)
CHUNKS = (32, 64, 128, 256)
RUNNING = 100
Result = dict[str, Any]


def prefill(model: str, repeats: int, seed: int, threads: int, precision: str = "fp32") -> Result:
    """Time every number of positions in chunks of every size, alone and beside a row that decodes."""
    need_positive(repeats=repeats, threads=threads)
    tts = Valle2.load(model, threads=threads, slots=2, precision=precision)
    slots, sizes = tts.graphs.batch.slots, tts.manifest.sizes
    fitting = [count for count in POSITIONS if count <= min(slots.capacity, slots.max_groups)]
    entering = {count: row(sizes, count, seed) for count in fitting}
    slots.enter(0, row(sizes, RUNNING, seed))
    conditions = [(count, chunk) for count in fitting for chunk in [c for c in CHUNKS if c < count] + [count]]
    times: dict[tuple[int, int], list[tuple[float, float]]] = {condition: [] for condition in conditions}
    for turn in range(repeats + 1):
        for count, chunk in conditions:
            slots.chunk = chunk
            took = timed(slots, entering[count])
            times[count, chunk] += [took] if turn else []
    lines = [line(*condition, found) for condition, found in times.items()]
    about = {"prefill": lines, "chunk": PREFILL_CHUNK, "precision": precision, "repeats": repeats}
    return about | measured_on(tts, seed, threads)


def timed(slots: Slots, entering: Row) -> tuple[float, float]:
    """-> seconds of a prefill alone; the most from one step of a running row to its next during the same."""
    began = time.perf_counter()
    slots.enter(1, entering)
    alone = time.perf_counter() - began
    place(slots, 1, RUNNING)
    slots.step(1)
    gaps, last = list[float](), time.perf_counter()
    for _ in slots.prefill(1, entering):
        slots.step(1)
        gaps.append(time.perf_counter() - last)
        last += gaps[-1]
    return alone, max(gaps)


def line(positions: int, chunk: int, found: list[tuple[float, float]]) -> Result:
    """One condition in milliseconds."""
    alone, gap = (round(1000 * median(part), 1) for part in zip(*found, strict=True))
    return {"positions": positions, "chunk": chunk, "alone_ms": alone, "gap_ms": gap}


def table(result: Result) -> str:
    """A line per condition."""
    head = ["positions", "chunk", "prefill alone, ms", "longest gap of a running row, ms"]
    return markdown(head, [list(found.values()) for found in result["prefill"]])
