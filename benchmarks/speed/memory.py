"""`bench memory`: memory and cold start, measured in fresh processes (`memory_child`) that do nothing else.

Keys of the JSON. Sizes are in MiB, or null where the system does not report them (`unavailable` lists those).

- `cold_start_s`: median seconds of importing `valle2.runtime`, of `Valle2.load`, of the first request, and of
  all three. The first request is one second of speech where `frames` is given. Files are in the page cache.
- `resident_mib`: memory in use after `import`, after `load`, and after `slots` requests at once.
- `peak_mib`: the most memory in use until the end of each of these moments.
- `weights_mib`: every weight of the graphs once, at the width of the computation. What a file holds as
  float16 is float32 in a session.
- `cache_mib`: keys and values of the `positions` that the requests filled.
- `ratio`: peak / (weights + cache). `ratio_with_base`: peak / (weights + cache + memory after the import).
- `soak`: requests of random words and lengths, one at a time. It has the mean at both ends, the slope over
  the second half in MiB per 100 requests, and each `every`th size.
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

from valle2.benchmarks.options import need_positive
from valle2.benchmarks.report.plots import Line, Panel
from valle2.benchmarks.report.provenance import measured_on
from valle2.benchmarks.report.statistics import growth
from valle2.benchmarks.report.tables import markdown
from valle2.benchmarks.speed.memory_child import Plan
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
    """Start `repeats` processes for the cold start. The last one goes on to the full batch and the soak.

    Raises:
        Valle2Error: a size is not positive, the model or precision does not exist, or a process fails.
    """
    need_positive(repeats=repeats, slots=plan.slots, threads=plan.threads)
    if plan.requests < 0:
        raise Valle2Error(f"--requests is {plan.requests}; expected 0 or more")
    manifest = read_manifest(find_model(plan.model))
    weights = weights_mib(plan)
    starts = []
    for turn in range(repeats - 1):
        progress(f"cold start {turn + 1} of {repeats}")
        starts.append(run_child(replace(plan, filled=False, requests=0))["seconds"])
    progress(f"{plan.slots} slots, then {plan.requests} requests")
    observed = run_child(replace(plan, filled=True))
    found = figures(observed, weights) | {"cold_start_s": cold_start([*starts, observed["seconds"]])}
    asked = {name: getattr(plan, name) for name in ("slots", "precision", "text", "frames")}
    return found | asked | {"repeats": repeats} | measured_on(manifest, plan.seed, plan.threads)


def run_child(plan: Plan) -> Result:
    """What a fresh process observed, as `memory_child.Observed` writes it."""
    command = [sys.executable, "-m", "valle2.benchmarks.speed.memory_child", json.dumps(asdict(plan))]
    ended = subprocess.run(command, capture_output=True, text=True)
    if ended.returncode:
        said = ended.stderr.strip().splitlines()[-1:] or [f"status {ended.returncode}"]
        raise Valle2Error(f"the measured process failed: {said[0]}")
    found: Result = json.loads(ended.stdout.splitlines()[-1])
    return found


def weights_mib(plan: Plan) -> float | None:
    """Size of all weights of a model's graphs; None if onnx is not installed."""
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
    """Median of each part, and of the sums."""
    found = {name: round(median(one[name] for one in starts), 3) for name in STARTS}
    return found | {"all": round(median(sum(one[name] for name in STARTS) for one in starts), 3)}


def figures(observed: Result, weights: float | None) -> Result:
    """Sizes and ratios from what one process observed."""
    resident, peak = ({name: mib(observed[kind][name]) for name in MOMENTS} for kind in ("resident", "peak"))
    cache, base, most = mib(observed["cache_bytes"]) or 0.0, resident["import"], peak["slots"]
    needed = None if weights is None else weights + cache
    found: Result = {
        "resident_mib": resident,
        "peak_mib": peak,
        "weights_mib": weights,
        "cache_mib": cache,
        "positions": observed["positions"],
        "ratio": share(most, needed),
        "ratio_with_base": share(most, None if needed is None or base is None else needed + base),
    }
    if observed["sizes"]:
        found["soak"] = soaked([mib(size) for size in observed["sizes"]])
    single = {name: value for name, value in found.items() if not isinstance(value, dict)}
    parts = {f"{kind}.{name}": found[kind][name] for kind in ("resident_mib", "peak_mib") for name in MOMENTS}
    absent = [name for name, value in (single | parts).items() if value is None]
    return found | {"unavailable": absent + ["soak"] * (found.get("soak", True) is None)}


def mib(size: int | None) -> float | None:
    return None if size is None else round(size / MIB, 1)


def share(part: float | None, whole: float | None) -> float | None:
    return None if part is None or whole is None else round(part / whole, 3)


def soaked(sizes: list[float | None]) -> Result | None:
    """Growth over the soak, with at most `POINTS` sizes; None if the system does not report memory."""
    known = [size for size in sizes if size is not None]
    if len(known) < len(sizes):
        return None
    every = -(-len(known) // POINTS)
    return {"requests": len(known)} | growth(known) | {"every": every, "resident_mib": known[::every]}


def table(result: Result) -> str:
    """One line per figure."""
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
    return markdown([f"{result['model']}, {result['precision']}, {result['slots']} rows", "MiB"], cells)


def panels(result: Result) -> list[Panel]:
    """Parts of the cold start, and memory over requests."""
    start, soak = result["cold_start_s"], result.get("soak")
    bar = Line(result["model"], (), [start[name] for name in STARTS])
    drawn = [Panel("cold start", "s", [bar], stacked=("import", "load", "first request"))]
    if soak:
        x = [soak["every"] * index + 1 for index in range(len(soak["resident_mib"]))]
        drawn.append(Panel("resident memory, MiB", "requests", [Line("MiB", x, soak["resident_mib"])]))
    return drawn
