"""Seconds of an AR step against the positions in the cache, and against the rows that share a step.

Every row is prefilled once; a condition then sets how much of its cache is filled, so that all of them are
timed in turns in one run. A position more is one key and one value of every layer to read: the slope's bound.
"""

from __future__ import annotations

import time
from statistics import median
from typing import Any

import numpy as np

from valle2.benchmarks.report.plots import Line, Panel
from valle2.benchmarks.report.report import markdown, measured_on, need_positive, slope, step_bytes
from valle2.benchmarks.speed.bandwidth import read_bandwidth
from valle2.runtime import Settings, Valle2
from valle2.runtime.generation.ar_runner import ARRunner
from valle2.runtime.generation.sequence import Sequence

POSITIONS = (100, 500, 1000, 2000, 3000)
BATCHES = (1, 2, 4, 8, 16)
SHARED_POSITIONS = 500
STEPS, TEXT = 16, 40
GREEDY = Settings(top_p=0.0, threshold=1.0)
Result = dict[str, Any]


def steps(model: str, repeats: int, seed: int, threads: int, precision: str = "fp32") -> Result:
    """Time every number of positions at one row, and every number of rows at 500 positions, in turns."""
    need_positive(repeats=repeats, threads=threads)
    tts = Valle2.load(model, threads=threads, slots=max(BATCHES), precision=precision)
    slots, sizes = tts.model.ar, tts.manifest.sizes
    room = min(slots.max_groups + TEXT, slots.capacity) - STEPS
    filled = [count for count in POSITIONS if count <= room]
    shared = min(SHARED_POSITIONS, room)
    for index in range(max(BATCHES)):
        slots.enter(index, row(sizes, max(filled) if index == 0 else shared, seed + index))
    conditions = [(1, count) for count in filled] + [(rows, shared) for rows in BATCHES]
    times: dict[tuple[int, int], list[float]] = {condition: [] for condition in conditions}
    bandwidths = []
    for turn in range(repeats + 1):
        bandwidths.append(read_bandwidth(threads))
        for condition in times:
            took = timed(slots, *condition)
            times[condition] += [took] if turn else []
    seconds = {condition: median(found) for condition, found in times.items()}
    return (
        report(tts, seconds, max(bandwidths), precision)
        | {"repeats": repeats}
        | measured_on(tts, seed, threads)
    )


def row(sizes: dict[str, int], positions: int, seed: int) -> Sequence:
    """A row whose prefix has so many positions, of random text and codes."""
    group = sizes["group_size"]
    draws = np.random.default_rng(seed)
    text = draws.integers(0, sizes["vocab_size"], min(TEXT, positions - 1))
    prompt = draws.integers(0, 1024, (positions - 1 - len(text)) * group)
    return Sequence(text, prompt, np.zeros((STEPS, group, 2), np.float32), GREEDY)


def timed(slots: ARRunner, rows: int, positions: int) -> float:
    """Seconds of a step of `rows` rows whose caches hold `positions`, the mean of a few."""
    place(slots, rows, positions)
    slots.step(rows)  # binds, and brings what is read into the caches
    began = time.perf_counter()
    for _ in range(STEPS - 2):
        slots.step(rows)
    return (time.perf_counter() - began) / (STEPS - 2)


def place(slots: ARRunner, rows: int, positions: int) -> None:
    """Set how many positions of the first rows' caches are filled."""
    state = slots.states[slots.turn]
    for name, value in (("past_lengths", positions), ("steps", 0)):
        state[name].rows(slice(0, rows)).write(np.full(rows, value))


def report(tts: Valle2, seconds: dict[tuple[int, int], float], bandwidth: float, precision: str) -> Result:
    """Milliseconds, their bounds, and the slopes of both lines."""
    sizes = tts.manifest.sizes
    alone = {positions: took for (rows, positions), took in seconds.items() if rows == 1}
    shared = min(positions for rows, positions in seconds if rows > 1)
    together = {rows: took for (rows, positions), took in seconds.items() if positions == shared}

    def bound(positions: float) -> float:
        return step_bytes(sizes, positions, precision) / bandwidth

    return {
        "positions": [line("positions", n, took, bound(n)) for n, took in sorted(alone.items())],
        "batch": [
            line("rows", n, took / n, None) | {"step_ms": ms(took)} for n, took in sorted(together.items())
        ],
        "batch_positions": shared,
        "us_per_position": round(1e6 * slope(alone), 3),
        "us_per_position_bound": round(1e6 * (bound(1) - bound(0)), 3),
        "ms_per_row": ms(slope(together)),
        "precision": precision,
        "read_gb_per_s": round(bandwidth / 1e9, 2),
    }


def line(name: str, count: int, took: float, bound: float | None) -> Result:
    """One point."""
    return {name: count, "ms": ms(took)} | ({"bound_fraction": round(bound / took, 3)} if bound else {})


def ms(seconds: float) -> float:
    return round(1000 * seconds, 3)


def table(result: Result) -> str:
    """Both lines."""
    alone = [[p["positions"], p["ms"], p["bound_fraction"]] for p in result["positions"]]
    together = [[p["rows"], p["step_ms"], p["ms"]] for p in result["batch"]]
    first = markdown(["positions in the cache", "step, ms", "share of the bandwidth bound"], alone)
    head = [f"rows, {result['batch_positions']} positions each", "step, ms", "ms a row"]
    return f"{first}\n\n{markdown(head, together)}"


def panels(result: Result) -> list[Panel]:
    """Step time against positions and against rows."""
    alone, together = result["positions"], result["batch"]
    x = [p["positions"] for p in alone]
    bound = [p["ms"] * p["bound_fraction"] for p in alone]
    lines = [Line("step, ms", x, [p["ms"] for p in alone]), Line("bandwidth bound", x, bound, dashed=True)]
    rows = [p["rows"] for p in together]
    shared = [
        Line("step, ms", rows, [p["step_ms"] for p in together]),
        Line("ms a row", rows, [p["ms"] for p in together]),
    ]
    return [Panel("AR step", "positions in the cache", lines), Panel("AR step", "rows", shared)]
