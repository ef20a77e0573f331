"""AR steps on a device: their time, the nodes and kernels of one, and what the first steps cost.

The first steps with a new number of rows are slow: a call is bound, allocates, and is captured as a CUDA
graph. A server that meets them under traffic stalls for as long.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from statistics import median

from valle2.benchmarks.speed.on_gpu.setup import Result, Setup
from valle2.benchmarks.speed.steps import random_row
from valle2.benchmarks.stages import ARStage
from valle2.engine import Placement, read_manifest
from valle2.engine.bundle.contract import AR, BUILDS_FOLDER, STEP
from valle2.runtime import Valle2

POSITIONS, WARM, TIMED, PROFILED = 300, 4, 60, 10
HALF = "fp16"
LISTED = 12
"""Kernels that are listed with their times."""


def time_steps(setup: Setup) -> list[Result]:
    """One row per precision and number of rows. The step's rows hold the same number of positions.

    On a GPU the float16 graphs as they are exported are timed beside those of fused operators.
    """
    found, whole = [], setup.model().bundle
    timed_builds = [(precision, whole, True) for precision in setup.precisions]
    if setup.on_gpu:
        timed_builds.append((HALF, plain_copy(whole), False))
    for precision, bundle, fused in timed_builds:
        tts = Valle2.load(
            str(bundle),
            threads=setup.threads,
            slots=max(setup.rows),
            **setup.options(precision),
        )
        ar, sizes = ARStage(tts), tts.manifest.sizes
        positions = min(POSITIONS, ar.capacity - WARM - TIMED - PROFILED, ar.max_groups)
        for row in range(max(setup.rows)):
            ar.prefill(row, random_row(sizes, positions, row))
        nodes = count_nodes(setup, bundle, precision)
        for rows in setup.rows:
            about = {"precision": precision, "rows": rows, "positions": positions, "nodes": nodes}
            about["fused"] = fused
            found.append(about | time_rows(ar, rows, positions))
            print(found[-1], flush=True)
    return found


def time_rows(ar: ARStage, rows: int, positions: int) -> Result:
    """Milliseconds of the first steps and of a later one, and the kernels of one."""
    ar.set_positions(rows, positions)
    first = [timed(lambda: ar.step(rows)) for _ in range(WARM)]
    later = [timed(lambda: ar.step(rows)) for _ in range(TIMED)]
    kernels = profile(lambda: ar.step(rows))
    return {"ms": ms(median(later)), "first_ms": [ms(took) for took in first], **kernels}


def timed(call: Callable[[], None]) -> float:
    """Seconds of one call. ONNX Runtime waits for the device at the end of a call."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def ms(seconds: float) -> float:
    return round(1000 * seconds, 3)


def plain_copy(bundle: Path) -> Path:
    """A copy of a bundle with a float16 build without graphs of fused operators. Files are linked."""
    from valle2.engine.build.ort import BuildOptions, build_graphs

    copy = bundle.with_name(f"{bundle.name}-plain")
    if not copy.is_dir():
        shutil.copytree(bundle, copy, copy_function=os.link, ignore=shutil.ignore_patterns(BUILDS_FOLDER))
        build_graphs(copy, HALF, BuildOptions(fused=False))
    return copy


def count_nodes(setup: Setup, bundle: Path, precision: str) -> int:
    """Nodes of the graph of a step as the bundle or the build stores it, before ONNX Runtime fuses any."""
    if find_spec("onnx") is None:
        return 0
    import onnx

    placement, manifest = Placement(setup.device, precision=precision).resolve(bundle, read_manifest(bundle))
    graphs = placement.locate_graphs(bundle, manifest)
    found = graphs.get(STEP) or graphs[AR]
    return len(onnx.load(str(found.folder / found.spec.file), load_external_data=False).graph.node)


def profile(step: Callable[[], None]) -> Result:
    """Kernels of a step, and those that take longest, by PyTorch's profiler of the device."""
    nothing: Result = {"kernels": None, "kernel_ms": None, "longest": []}
    if find_spec("torch") is None:
        return nothing
    import torch

    if not torch.cuda.is_available():
        return nothing
    try:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as found:
            for _ in range(PROFILED):
                step()
            torch.cuda.synchronize()
        kernels = sorted(found.key_averages(), key=lambda row: -row.self_device_time_total)
    except RuntimeError as error:  # a machine may forbid it; the times above are good without it
        return nothing | {"no_profile": str(error)}
    longest = [
        {
            "kernel": row.key[:120],
            "each_step": row.count / PROFILED,
            "us_each_step": round(row.self_device_time_total / PROFILED, 2),
        }
        for row in kernels[:LISTED]
    ]
    return {
        "kernels": round(sum(row.count for row in kernels) / PROFILED),
        "kernel_ms": ms(sum(row.self_device_time_total for row in kernels) / PROFILED / 1e6),
        "longest": longest,
    }
