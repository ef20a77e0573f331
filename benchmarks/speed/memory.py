"""Memory and cold start of the engine's own process, in fresh processes in which nothing else runs.

Keys of the JSON, sizes in MiB, null where the system does not tell (`unavailable` lists those):

- `cold_start_s`: median seconds of the import of `valle2.runtime`, of `Valle2.load`, of the first request
  (one second of speech where `frames` are given), and of all three. Files are in the system's cache.
- `resident_mib`: in use after `import`, `load`, and `slots` requests of `frames` at once (0: until `<eos>`).
- `peak_mib`: the most that was in use until the end of the same moments.
- `weights_mib`: every weight of the graphs once, at the width that is computed with: what a file holds as
  float16 is float32 in a session. `cache_mib`: keys and values of the `positions` that the requests filled.
- `ratio`: peak / (weights + cache), the goal's; `ratio_with_base`: the same with what was in use after the
  import (interpreter and libraries) among what is needed.
- `soak`: over requests of random words and lengths, one at a time: means of both ends, and the slope
  over the second half in MiB per hundred requests; `every`th size.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from importlib.util import find_spec
from statistics import median
from typing import Any

from valle2.benchmarks.report.plots import Line, Panel
from valle2.benchmarks.report.report import about, growth, markdown, need_positive
from valle2.benchmarks.speed.started import Plan
from valle2.engine import find_graphs, read_manifest
from valle2.engine.bundle.precisions import HALF, METHODS, STORED
from valle2.engine.errors import Valle2Error
from valle2.runtime.tts import find_model

MIB = 2**20
STARTS = ("import", "load", "first")
MOMENTS = ("import", "load", "slots")
POINTS = 100
Result = dict[str, Any]


def memory(plan: Plan, repeats: int, progress: Callable[[str], None] = lambda message: None, /) -> Result:
    """Start `repeats` processes for the cold start, the last of which goes on to all slots and the soak.

    Raises:
        Valle2Error: a size is not positive, no such model or precision, or a process fails.
    """
    need_positive(repeats=repeats, slots=plan.slots, threads=plan.threads)
    if plan.requests < 0:
        raise Valle2Error(f"--requests is {plan.requests}; expected 0 or more")
    manifest = read_manifest(find_model(plan.model))
    weights = weights_mib(plan)
    starts = []
    for turn in range(repeats - 1):
        progress(f"cold start {turn + 1} of {repeats}")
        starts.append(started(replace(plan, filled=False, requests=0))["seconds"])
    progress(f"{plan.slots} slots, then {plan.requests} requests")
    notes = started(replace(plan, filled=True))
    found = figures(notes, weights) | {"cold_start_s": cold_start([*starts, notes["seconds"]])}
    asked = {name: getattr(plan, name) for name in ("slots", "precision", "text", "frames")}
    return found | asked | {"repeats": repeats} | about(manifest, plan.seed, plan.threads)


def started(plan: Plan) -> Result:
    """The notes of a fresh process."""
    command = [sys.executable, "-m", "valle2.benchmarks.speed.started", json.dumps(asdict(plan))]
    ended = subprocess.run(command, capture_output=True, text=True)
    if ended.returncode:
        said = ended.stderr.strip().splitlines()[-1:] or [f"status {ended.returncode}"]
        raise Valle2Error(f"the measured process failed: {said[0]}")
    found: Result = json.loads(ended.stdout.splitlines()[-1])
    return found


def weights_mib(plan: Plan) -> float | None:
    """All weights of a model's graphs; None without onnx."""
    path = find_model(plan.model)
    manifest = read_manifest(path, check_hashes=False)
    graphs = find_graphs(path, manifest, plan.precision)
    if find_spec("onnx") is None:
        return None
    from valle2.engine.build.budget import read_graph, weight_bytes

    total = 0
    for name, found in graphs.items():
        half = METHODS.get(plan.precision, {}).get(name) == HALF
        total += weight_bytes(read_graph(found.folder / found.spec.file), "fp16" if half else STORED)[0]
    return round(total / MIB, 1)


def cold_start(starts: list[Mapping[str, float]]) -> dict[str, float]:
    """Medians, and the median of the sums."""
    found = {name: round(median(one[name] for one in starts), 3) for name in STARTS}
    return found | {"all": round(median(sum(one[name] for name in STARTS) for one in starts), 3)}


def figures(notes: Result, weights: float | None) -> Result:
    """Sizes and ratios of one process."""
    resident, peak = ({name: mib(notes[kind][name]) for name in MOMENTS} for kind in ("resident", "peak"))
    cache, base, most = mib(notes["cache_bytes"]) or 0.0, resident["import"], peak["slots"]
    needed = None if weights is None else weights + cache
    found: Result = {
        "resident_mib": resident,
        "peak_mib": peak,
        "weights_mib": weights,
        "cache_mib": cache,
        "positions": notes["positions"],
        "ratio": share(most, needed),
        "ratio_with_base": share(most, None if needed is None or base is None else needed + base),
    }
    if notes["sizes"]:
        found["soak"] = soaked([mib(size) for size in notes["sizes"]])
    single = {name: value for name, value in found.items() if not isinstance(value, dict)}
    parts = {f"{kind}.{name}": found[kind][name] for kind in ("resident_mib", "peak_mib") for name in MOMENTS}
    absent = [name for name, value in (single | parts).items() if value is None]
    return found | {"unavailable": absent + ["soak"] * (found.get("soak", True) is None)}


def mib(size: int | None) -> float | None:
    return None if size is None else round(size / MIB, 1)


def share(part: float | None, whole: float | None) -> float | None:
    return None if part is None or whole is None else round(part / whole, 3)


def soaked(sizes: list[float | None]) -> Result | None:
    """How memory goes on, and some of its sizes."""
    told = [size for size in sizes if size is not None]
    if len(told) < len(sizes):
        return None
    every = -(-len(told) // POINTS)
    return {"requests": len(told)} | growth(told) | {"every": every, "resident_mib": told[::every]}


def table(result: Result) -> str:
    """Everything, a line each."""
    start, soak = result["cold_start_s"], result.get("soak") or {}
    rows: list[list[object]] = [
        ["cold start: import / load / first request, s", " / ".join(str(start[name]) for name in STARTS)],
        *([f"resident after {moment}", size] for moment, size in result["resident_mib"].items()),
        *([f"peak until {moment}", size] for moment, size in result["peak_mib"].items()),
        ["weights in use", result["weights_mib"]],
        [f"cache of {result['positions']} positions", result["cache_mib"]],
        ["peak / (weights + cache)", result["ratio"]],
        ["peak / (weights + cache + after import)", result["ratio_with_base"]],
    ]
    rows += [[f"soak: {name}", soak[name]] for name in ("requests", *growth([0.0])) if name in soak]
    cells = [[name, "unavailable here" if value is None else value] for name, value in rows]
    return markdown([f"{result['model']}, {result['precision']}, {result['slots']} slots", "MiB"], cells)


def panels(result: Result) -> list[Panel]:
    """Memory over requests, and where a cold start goes."""
    start, soak = result["cold_start_s"], result.get("soak")
    bar = Line(result["model"], (), [start[name] for name in STARTS])
    drawn = [Panel("cold start", "s", [bar], stacked=("import", "load", "first request"))]
    if soak:
        x = [soak["every"] * index + 1 for index in range(len(soak["resident_mib"]))]
        drawn.append(Panel("resident memory, MiB", "requests", [Line("MiB", x, soak["resident_mib"])]))
    return drawn
