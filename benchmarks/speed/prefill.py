"""`bench prefill`: time of a prefill against its chunk size, and the gap between two steps of a running row.

All chunk sizes are timed in turns in one run. The last size of each length is the whole prefill in one call.
Processor time depends less on other load of the machine; with several threads it includes their waiting.
"""

from __future__ import annotations

import time
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from valle2.benchmarks.options import need_positive
from valle2.benchmarks.report.provenance import measured_on
from valle2.benchmarks.report.tables import markdown
from valle2.benchmarks.speed.steps import random_row
from valle2.benchmarks.stages import ARRow, ARStage, load_model

POSITIONS = (180, 600)
CHUNKS = (32, 64, 128, 256)
RUNNING = 100
PARTS = ("alone_ms", "alone_cpu_ms", "gap_ms", "gap_cpu_ms")
Result = dict[str, Any]


def prefill(model: str, repeats: int, seed: int, threads: int, **load_options: Any) -> Result:
    """Time every number of positions in chunks of every size, alone and while another row decodes.

    load_options: other arguments of `Valle2.load`.
    """
    need_positive(repeats=repeats, threads=threads)
    tts = load_model(model, threads=threads, slots=2, **load_options)
    ar, sizes = ARStage(tts), tts.manifest.sizes
    default_chunk = ar.chunk
    fitting = [count for count in POSITIONS if count <= min(ar.capacity, ar.max_groups)]
    rows = {count: random_row(sizes, count, seed) for count in fitting}
    ar.prefill(0, random_row(sizes, RUNNING, seed))
    conditions = [(count, chunk) for count in fitting for chunk in [c for c in CHUNKS if c < count] + [count]]
    times: dict[tuple[int, int], list[tuple[float, ...]]] = {condition: [] for condition in conditions}
    for turn in range(repeats + 1):
        for count, chunk in conditions:
            ar.chunk = chunk
            took = timed(ar, rows[count])
            times[count, chunk] += [took] if turn else []
    lines = [line(*condition, found) for condition, found in times.items()]
    about = {"prefill": lines, "chunk": default_chunk, "repeats": repeats, **load_options}
    return about | measured_on(tts.manifest, seed, threads)


def timed(ar: ARStage, row: ARRow) -> tuple[float, ...]:
    """Time a prefill alone, then the same prefill with a step of a running row after each chunk.

    Returns:
        Seconds and processor seconds of the prefill alone, then of the longest gap between two steps.
    """
    began = clocks()
    ar.prefill(1, row)
    alone = clocks() - began
    ar.set_positions(1, RUNNING)
    ar.step(1)
    ends = [clocks()]
    for _ in ar.prefill_chunks(1, row):
        ar.step(1)
        ends.append(clocks())
    return (*alone.tolist(), *np.diff(ends, axis=0).max(axis=0).tolist())


def clocks() -> NDArray[np.float64]:
    """(2,): wall-clock time and this process's processor time, in seconds."""
    return np.array([time.perf_counter(), time.process_time()])


def line(positions: int, chunk: int, found: list[tuple[float, ...]]) -> Result:
    """One condition in milliseconds."""
    parts = (round(1000 * median(part), 1) for part in zip(*found, strict=True))
    return {"positions": positions, "chunk": chunk} | dict(zip(PARTS, parts, strict=True))


def table(result: Result) -> str:
    """One line per condition."""
    head = [
        "positions",
        "chunk",
        "prefill, ms",
        "processor, ms",
        "longest gap of a running row, ms",
        "processor, ms",
    ]
    return markdown(head, [list(found.values()) for found in result["prefill"]])
