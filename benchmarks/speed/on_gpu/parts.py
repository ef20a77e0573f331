"""The parts of a run, most telling first. Each is a function from a setup to what its JSON holds.

A part runs in a process of its own, so it may crash or hang without an effect on the others. Heavy imports
happen inside the functions. A part that this machine cannot run raises `NotHereError`.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from valle2.benchmarks.fullsize import TEXT
from valle2.benchmarks.speed.on_gpu.setup import NotHereError, Result, Setup
from valle2.engine.bundle.precisions import STORED
from valle2.engine.errors import BackendError

PACKAGES = (
    "valle2",
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "torch",
    "tensorrt",
    "tensorrt-rtx-cu13",
    "cuda-bindings",
)
QUERY = ("name", "driver_version", "memory.total", "compute_cap", "clocks.sm", "power.limit")
OPEN_LOOP_RATE = 10.0
"""Requests per second of the open loop, the rate at which other servers are measured."""
OPEN_LOOP_REQUESTS = 60
LEAST_SAME, MOST_APART = 0.5, 1e-3
"""The share of codes that captured calls in half precision must have in common with others, where random
weights make near ties likely, and how far samples may be apart."""
TESTS = ("tests/engine/backends/test_gpu.py", "tests/engine/build/cuda")


@dataclass(frozen=True, slots=True)
class Part:
    """One part.

    Args:
        run: measures. rows: lines (what, value) of the table, from what `run` returned.
        seconds: how long it may take at the most.
        needs: a part without which it is skipped. wrong: what is wrong with the result, empty for nothing.
    """

    run: Callable[[Setup], Result]
    rows: Callable[[Result], Sequence[tuple[str, Any]]]
    seconds: float
    needs: str = ""
    wrong: Callable[[Result], str] = lambda found: ""


def environment(setup: Setup) -> Result:
    """Driver, versions, providers.

    Raises:
        BackendError: the device is "cuda", and its driver or cuda-python is absent.
    """
    from valle2.engine.backends.ort.providers import load_onnxruntime, onnxruntime_version
    from valle2.engine.backends.trt.cuda import this_gpu

    found: Result = {
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": {name: installed(name) for name in PACKAGES},
        "onnxruntime": onnxruntime_version(),
        "providers": list(load_onnxruntime().get_available_providers()),
        "gpu": this_gpu() or "none",
        "nvidia_smi": nvidia_smi(),
    }
    if find_spec("torch"):
        import torch

        found["torch_sees_cuda"] = torch.cuda.is_available()
    if setup.on_gpu and found["gpu"] == "none":
        raise BackendError(f"no GPU is seen here: {found}; install a driver and cuda-bindings")
    return found


def installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"


def nvidia_smi() -> dict[str, str]:
    """What the driver's tool says of GPU 0; empty without the tool."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return {}
    command = [tool, f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader", "--id=0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    return dict(zip(QUERY, (part.strip() for part in done.stdout.split(",")), strict=False))


def environment_rows(found: Result) -> list[tuple[str, Any]]:
    names = ("onnxruntime", "onnxruntime-gpu", "torch", "tensorrt", "tensorrt-rtx-cu13")
    versions = ", ".join(f"{name} {found['packages'][name]}" for name in names)
    return [("GPU", ", ".join([found["gpu"], *found["nvidia_smi"].values()])), ("versions", versions)]


def model(setup: Setup) -> Result:
    """Make the model of the timings and its builds, so that no later part waits for it."""
    made = setup.model()
    setup.sides()
    files = {path.name: path.stat().st_size for path in made.bundle.iterdir() if path.is_file()}
    return {"bundle": str(made.bundle), "mb": round(sum(files.values()) / 1e6, 1)}


def numerics(setup: Setup) -> Result:
    """Graphs against eager PyTorch."""
    need_torch()
    from valle2.benchmarks.speed.on_gpu.numerics import compare_graphs

    return {"graphs": compare_graphs(setup)}


def need_torch() -> None:
    if find_spec("torch") is None:
        raise NotHereError("needs torch: pip install 'valle2[export]'")


def numerics_rows(found: Result) -> list[tuple[str, Any]]:
    return [
        (f"{row['graph']} {row['lowering']} {row['precision']}, group {row['group_size']}", one_graph(row))
        for row in found["graphs"]
    ]


def one_graph(row: Result) -> str:
    if "error" in row:
        return f"WRONG: {row['error']}".replace("|", "/")
    logits = "" if row["logits"] is None else f"logits {row['logits']:.1e}, "
    said = f"{logits}codes {row['same_codes']:.2%}"
    return said if row["right"] else f"{said} WRONG"


def wrong_graphs(found: Result) -> str:
    wrong = sum(not row["right"] for row in found["graphs"])
    return f"{wrong} of {len(found['graphs'])} graphs are wrong" if wrong else ""


def steps(setup: Setup) -> Result:
    """AR steps at several numbers of rows: time, nodes, kernels, and what the first steps cost."""
    from valle2.benchmarks.speed.on_gpu.steps import time_steps

    return {"steps": time_steps(setup)}


def steps_rows(found: Result) -> list[tuple[str, Any]]:
    return [
        (
            f"AR step, {row['side']}, rows {row['rows']}",
            f"{row['ms']} ms, {row['kernels'] or '-'} kernels, {row['nodes'].get('total', '-'):.0f} nodes, "
            f"first steps {row['first_ms']} ms",
        )
        for row in found["steps"]
    ]


def latency(setup: Setup) -> Result:
    """One request at a time, whole and streamed."""
    from valle2.benchmarks.speed.latency import latency as measure

    return {
        name: measure(
            str(bundle),
            TEXT,
            setup.repeats,
            0,
            setup.threads,
            frames=setup.frames,
            **setup.options(precision),
        )
        for name, (bundle, precision) in setup.sides().items()
    }


def latency_rows(found: Result) -> list[tuple[str, Any]]:
    return [
        (f"one request, {precision}", one_request(result))
        for precision, result in found.items()
        if isinstance(result, dict)
    ]


def one_request(found: Result) -> str:
    return (
        f"first audio {found['first_audio']['streamed']['p50']} ms, RTF {found['rtf']}, "
        f"AR step {found['ar_step_ms']} ms, NAR pass {found['nar_pass_ms']} ms"
    )


def throughput(setup: Setup) -> Result:
    """Requests at once, then streams that arrive at a fixed rate."""
    from valle2.benchmarks.speed.throughput import at_once, make_requests, open_loop
    from valle2.runtime import Valle2

    most, rate = max(setup.rows), OPEN_LOOP_RATE
    tts = Valle2.load(str(setup.model().bundle), threads=setup.threads, slots=most, **setup.options())
    requests = make_requests(tts, TEXT, most, 0, setup.frames)
    at_once(tts, requests[:1])  # warm-up
    together = {}
    for count in setup.rows:
        at_once(tts, requests[:count])  # the first step with a new number of rows costs more
        together[str(count)] = round(at_once(tts, requests[:count]), 2)
    count = OPEN_LOOP_REQUESTS if setup.on_gpu else 2
    return {"at_once": together, "open_loop": open_loop(tts, requests, count, rate, 0)}


def throughput_rows(found: Result) -> list[tuple[str, Any]]:
    loop = found["open_loop"]
    first = ", ".join(f"{name} {value} ms" for name, value in loop["first_audio_ms"].items())
    return [
        *((f"audio s/s, {count} at once", value) for count, value in found["at_once"].items()),
        (f"{loop['requests_per_s']} requests/s, first audio", first),
        ("streams that ran dry, failed", f"{loop['underruns']}, {loop['errors']} of {loop['requests']}"),
    ]


def joint(setup: Setup) -> Result:
    """Calls that requests share, and steps that are read together, beside one at a time."""
    from valle2.benchmarks.speed.on_gpu.joint import time_joint

    return time_joint(setup)


def joint_rows(found: Result) -> list[tuple[str, Any]]:
    def beside(row: Result) -> str:
        same = f", codes as alone {row['same_codes']:.2%}" if "same_codes" in row else ""
        return f"{row['together_ms']} ms together, {row['alone_ms']} ms one at a time{same}"

    return [
        *(
            (f"{name}, {row['precision']}, {row['kind']}, rows {row['rows']}", beside(row))
            for name in ("nar", "codec")
            for row in found[name]
        ),
        *((f"requests at once, {row['precision']}, {row['rows']}", beside(row)) for row in found["requests"]),
        *(
            (
                f"AR step, {row['precision']}, rows {row['rows']}, by steps a read",
                ", ".join(f"{count}: {ms} ms" for count, ms in row["ms"].items()),
            )
            for row in found["steps"]
        ),
    ]


def wrong_joint(found: Result) -> str:
    rows = [row for name in ("nar", "requests") for row in found[name] if row["precision"] == STORED]
    wrong = [row for row in rows if row["same_codes"] < 1]
    return f"{len(wrong)} of {len(rows)} joint calls in fp32 give other codes" if wrong else ""


def captures(setup: Setup) -> Result:
    """Calls of the NAR and the codec that are padded and captured, beside calls as they are."""
    from valle2.benchmarks.speed.on_gpu.captures import time_captures

    return time_captures(setup)


def captures_rows(found: Result) -> list[tuple[str, Any]]:
    def beside(row: Result) -> str:
        same = f", same codes {row['same_codes']:.2%}" if "same_codes" in row else ""
        return f"{row['captured_ms']} ms captured, {row['plain_ms']} ms as it is{same}"

    load = found["load"]
    return [
        ("load", f"{load['captured_seconds']} s captured, {load['plain_seconds']} s as it is"),
        ("captured calls of NAR and codec", f"{found['rungs']}, {found['mb']} MB of buffers"),
        ("first audio", beside(found["first_audio"])),
        *(
            (f"{name}, {row['kind']}, rows {row['rows']}", beside(row))
            for name in ("nar", "codec")
            for row in found[name]
        ),
    ]


def wrong_captures(found: Result) -> str:
    absent = [name for name, there in zip(("NAR", "codec"), found["captured"], strict=True) if not there]
    if absent:
        return f"calls of {' and '.join(absent)} were not captured"
    other = sum(row["same_codes"] < LEAST_SAME for row in found["nar"])
    other += sum(row["greatest_difference"] > MOST_APART for row in found["codec"])
    return f"{other} captured calls return something else" if other else ""


def compare(setup: Setup) -> Result:
    """The runtime and eager PyTorch in turns, in the same precision."""
    need_torch()
    from valle2.benchmarks.speed.compare import compare as measure

    made, eager = setup.model(), "fp16" if setup.on_gpu else "fp32"
    return measure(
        made.checkpoint,
        str(made.bundle),
        TEXT,
        setup.repeats,
        0,
        setup.threads,
        setup.precisions,
        setup.frames,
        setup.device,
        eager,
    )


def compare_rows(found: Result) -> list[tuple[str, Any]]:
    return [
        (
            f"times as fast as eager PyTorch {found['eager_precision']}, {name}",
            f"{side['ratios']['end_to_end']} (group size 1: {side['ratios_group_1']['end_to_end']})",
        )
        for name, side in found["precisions"].items()
    ]


def compiled(setup: Setup) -> Result:
    """An AR step in PyTorch with a cache of fixed length: eager, then `torch.compile` with CUDA graphs."""
    need_torch()
    from valle2.benchmarks.speed.on_gpu.compiled import time_compiled

    return time_compiled(setup)


def compiled_rows(found: Result) -> list[tuple[str, Any]]:
    name = f"AR step in PyTorch {found['precision']}"
    return [(f"{name}, {kind}", f"{ms} ms") for kind, ms in found["ms"].items()]


def prefill(setup: Setup) -> Result:
    """Prefills in chunks, alone and beside a running row."""
    from valle2.benchmarks.speed.prefill import prefill as measure

    return measure(str(setup.model().bundle), setup.repeats, 0, setup.threads, **setup.options())


def prefill_rows(found: Result) -> list[tuple[str, Any]]:
    return [
        (f"prefill, {row['positions']} positions, {row['chunk']} a call", f"{row['alone_ms']} ms")
        for row in found["prefill"]
        if row["positions"] == row["chunk"]
    ]


def tensorrt(setup: Setup) -> Result:
    """Build engine files with every edition that is installed, and speak with them."""
    from valle2.benchmarks.speed.latency import latency as measure
    from valle2.engine.backends.trt.api import TARGETS
    from valle2.engine.build.tensorrt import build_engine
    from valle2.engine.bundle.profiles import Limits

    if not setup.on_gpu:
        raise NotHereError("TensorRT runs on a GPU alone")
    here = [name for name, target in TARGETS.items() if find_spec(target.module)]
    if not here:
        raise NotHereError("no TensorRT is installed: pip install 'valle2[tensorrt]'")
    bundle, found = setup.model().bundle, Result()
    for name in here:
        try:
            built = build_engine(bundle, name, limits=Limits(8))
            spoken = measure(
                str(bundle),
                TEXT,
                setup.repeats,
                0,
                setup.threads,
                setup.device,
                setup.frames,
                engine=name,
                precision="fp16",
            )
        except BackendError as error:
            found[name] = {"reason": str(error)}
        else:
            found[name] = {"seconds": round(sum(record.seconds for record in built), 1), "latency": spoken}
    if all("reason" in row for row in found.values()):
        raise BackendError("; ".join(row["reason"] for row in found.values()))
    return found


def tensorrt_rows(found: Result) -> list[tuple[str, Any]]:
    return [
        (name, row.get("reason") or f"built in {row['seconds']} s; {one_request(row['latency'])}")
        for name, row in found.items()
        if isinstance(row, dict)
    ]


def tests(setup: Setup) -> Result:
    """The tests that need a GPU. They start from the folder of the sources."""
    if not setup.on_gpu:
        raise NotHereError("the tests marked gpu need one")
    root = Path(__file__).resolve().parents[3]
    if find_spec("pytest") is None or not (root / TESTS[0]).is_file():
        raise NotHereError(f"needs pytest and the sources with {TESTS[0]}; this is {root}")
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-v", "-m", "gpu", "-p", "no:cacheprovider"]
        status = subprocess.run([*command, f"--junit-xml={report}", *TESTS], cwd=root).returncode
        if not report.is_file():
            raise BackendError(f"pytest ended with {status} and no report; see the log")
        suite = ElementTree.parse(report).getroot()[0].attrib
    return {name: int(suite[name]) for name in ("tests", "failures", "errors", "skipped")}


def tests_rows(found: Result) -> list[tuple[str, Any]]:
    return [("pytest -m gpu", ", ".join(f"{count} {name}" for name, count in found.items()))]


def failed_tests(found: Result) -> str:
    return f"{found['failures'] + found['errors']} tests fail" if found["failures"] + found["errors"] else ""


PARTS: dict[str, Part] = {
    "environment": Part(environment, environment_rows, 40),
    "model": Part(model, lambda found: [("model, MB", found["mb"])], 200),
    "numerics": Part(numerics, numerics_rows, 150, wrong=wrong_graphs),
    "steps": Part(steps, steps_rows, 90, "model"),
    "latency": Part(latency, latency_rows, 60, "model"),
    "throughput": Part(throughput, throughput_rows, 150, "model"),
    "joint": Part(joint, joint_rows, 90, "model", wrong_joint),
    "captures": Part(captures, captures_rows, 60, "model", wrong_captures),
    "compare": Part(compare, compare_rows, 90, "model"),
    "compiled": Part(compiled, compiled_rows, 90, "model"),
    "prefill": Part(prefill, prefill_rows, 40, "model"),
    "tensorrt": Part(tensorrt, tensorrt_rows, 150, "model"),
    "tests": Part(tests, tests_rows, 240, wrong=failed_tests),
}
"""By name, in the order in which they run."""
