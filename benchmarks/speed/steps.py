"""`bench steps`: time of an AR step against the positions in the cache, and against the rows of the batch.

Every row is prefilled once. A condition then sets how many positions of its cache are filled, so that all
conditions are timed in turns in one run. Each further position is one key and one value per layer to read,
which bounds the slope.
"""

from __future__ import annotations

import time
from statistics import median
from typing import Any

import numpy as np

from valle2.benchmarks.options import need_positive
from valle2.benchmarks.report.plots import Line, Panel
from valle2.benchmarks.report.provenance import measured_on
from valle2.benchmarks.report.statistics import slope
from valle2.benchmarks.report.tables import markdown
from valle2.benchmarks.speed.hardware import read_bandwidth, step_bytes
from valle2.benchmarks.stages import ARRow, ARStage, ar_row, load_model
from valle2.runtime import Settings, Valle2

POSITIONS = (100, 500, 1000, 2000, 3000)
BATCHES = (1, 2, 4, 8, 16)
SHARED_POSITIONS = 500
STEPS, TEXT = 16, 40
GREEDY = Settings(top_p=0.0, threshold=1.0)
Result = dict[str, Any]


def steps(model: str, repeats: int, seed: int, threads: int, precision: str = "fp32") -> Result:
    """Time every number of positions with one row, and every number of rows with 500 positions, in turns."""
    need_positive(repeats=repeats, threads=threads)
    tts = load_model(model, threads=threads, slots=max(BATCHES), precision=precision)
    ar, sizes = ARStage(tts), tts.manifest.sizes
    longest = min(ar.max_groups + TEXT, ar.capacity) - STEPS
    filled = [count for count in POSITIONS if count <= longest]
    shared = min(SHARED_POSITIONS, longest)
    for index in range(max(BATCHES)):
        ar.prefill(index, random_row(sizes, max(filled) if index == 0 else shared, seed + index))
    conditions = [(1, count) for count in filled] + [(rows, shared) for rows in BATCHES]
    times: dict[tuple[int, int], list[float]] = {condition: [] for condition in conditions}
    bandwidths = []
    for turn in range(repeats + 1):
        bandwidths.append(read_bandwidth(threads))
        for condition in times:
            took = timed(ar, *condition)
            times[condition] += [took] if turn else []
    seconds = {condition: median(found) for condition, found in times.items()}
    return (
        report(tts, seconds, max(bandwidths), precision)
        | {"repeats": repeats}
        | measured_on(tts.manifest, seed, threads)
    )


def random_row(sizes: dict[str, int], positions: int, seed: int) -> ARRow:
    """A row of random text and codes whose prefill has this many positions."""
    group = sizes["group_size"]
    draws = np.random.default_rng(seed)
    text = draws.integers(0, sizes["vocab_size"], min(TEXT, positions - 1))
    prompt = draws.integers(0, 1024, (positions - 1 - len(text)) * group)
    return ar_row(text, prompt, np.zeros((STEPS, group, 2), np.float32), GREEDY)


def timed(ar: ARStage, rows: int, positions: int) -> float:
    """Mean seconds of a step of `rows` rows whose caches hold `positions` positions."""
    ar.set_positions(rows, positions)
    ar.step(rows)  # warm-up: binds the call and loads the processor's caches
    began = time.perf_counter()
    for _ in range(STEPS - 2):
        ar.step(rows)
    return (time.perf_counter() - began) / (STEPS - 2)


def report(tts: Valle2, seconds: dict[tuple[int, int], float], bandwidth: float, precision: str) -> Result:
    """Milliseconds, their share of the bandwidth bound, and the slopes of both lines."""
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
    """One point of a line."""
    return {name: count, "ms": ms(took)} | ({"bound_fraction": round(bound / took, 3)} if bound else {})


def ms(seconds: float) -> float:
    return round(1000 * seconds, 3)


def table(result: Result) -> str:
    """Both lines as Markdown tables."""
    alone = [[p["positions"], p["ms"], p["bound_fraction"]] for p in result["positions"]]
    together = [[p["rows"], p["step_ms"], p["ms"]] for p in result["batch"]]
    first = markdown(["positions in the cache", "step, ms", "share of the bandwidth bound"], alone)
    head = [f"rows, {result['batch_positions']} positions each", "step, ms", "ms a row"]
    return f"{first}\n\n{markdown(head, together)}"


def panels(result: Result) -> list[Panel]:
    """Step time against positions, and against rows."""
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
