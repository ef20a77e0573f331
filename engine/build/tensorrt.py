"""Bundle to TensorRT engines: convert, parse, audit, build and store each graph for each GPU. No torch.

The graph is given its precision here (`precision`), its ranges come from the manifest (`profiles`), and no
network is built that the `audit` refuses.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from valle2.engine.backends.trt.api import (
    Parsed,
    attention_of,
    layers,
    load,
    lowerings_here,
    parsed,
    target_named,
)
from valle2.engine.build.audit import Case, audit
from valle2.engine.build.precision import converted_spec, load_graph
from valle2.engine.build.progress import make_monitor
from valle2.engine.build.weight_formats import check_storage
from valle2.engine.bundle.artifacts import build_folder, source_hash
from valle2.engine.bundle.contract import LOGITS
from valle2.engine.bundle.engine_files import (
    EngineKey,
    EngineRecord,
    graph_precision,
    store_engine,
    stored_engine,
)
from valle2.engine.bundle.files import write_file
from valle2.engine.bundle.manifest import Manifest, read_manifest
from valle2.engine.bundle.profiles import Limits, Profile, profiles
from valle2.engine.bundle.specs import GraphSpec
from valle2.engine.errors import BackendError

TIMING_CACHE = "timing-{version}.cache"
FUSED_WIDTH = 16
MIB = 2**20
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is built from one bundle. workspace: MiB that a kernel may use, 0 without a limit."""

    bundle: Path
    manifest: Manifest
    target: str
    precision: str
    gpus: tuple[str, ...]
    limits: Limits
    workspace: int


def build_engine(
    bundle: str | Path,
    target: str,
    *,
    precision: str = "fp16",
    gpus: Sequence[str] = (),
    limits: Limits | None = None,
    workspace: int = 0,
    progress: Progress = lambda message: None,
) -> list[EngineRecord]:
    """Build every graph of a bundle for every GPU; engines that are there and fit are kept.

    Args:
        bundle: the folder, with graphs in the portable or primitive lowering: TensorRT has no
            `GroupQueryAttention`, and its caches have a fixed length.
        target: "tensorrt" or "tensorrt-rtx". precision: of AR and NAR, see `precision.load_graph`; the codec
            stays in float32. gpus: compute capabilities such as "sm89", this machine's GPU when empty.
        limits: greatest batch and length. workspace: MiB that a kernel may use, 0 without a limit.
        progress: called with a line per engine.

    Returns:
        A record per engine, whose files lie in `BUNDLE/engines/TARGET`.

    Raises:
        BackendError: TensorRT is absent, the bundle or a GPU does not fit the target, or a graph is refused.
        ManifestError: not a bundle, or a damaged one.
    """
    trt = load(target)
    manifest = read_manifest(Path(bundle)).in_lowering(lowerings_here(target), f"{target} {trt.__version__}")
    chosen = check_gpus(target, tuple(dict.fromkeys(gpu.lower() for gpu in gpus)))
    check_storage(precision, manifest.lowering, chosen)
    plan = Plan(Path(bundle), manifest, target, precision, chosen, limits or Limits(), workspace)
    return [record for graph in manifest.graphs for record in build_graph(trt, plan, graph, progress)]


def check_gpus(target: str, gpus: tuple[str, ...]) -> tuple[str, ...]:
    """The GPUs to build for, each one that the target can build for here."""
    from valle2.engine.backends.trt.cuda import this_gpu

    ahead = target_named(target).gpus
    wrong = [gpu for gpu in gpus if gpu not in ahead]
    if ahead and wrong:
        raise BackendError(
            f"{target} does not build for {', '.join(wrong)}; expected some of {', '.join(ahead)}"
        )
    if ahead and gpus:
        return gpus
    present = this_gpu()
    if present is None:
        advice = (
            f"name the GPUs with --gpu ({', '.join(ahead)})" if ahead else "build on the device that runs it"
        )
        raise BackendError(f"no CUDA GPU was found here, and {target} builds for it; {advice}")
    if ahead and present not in ahead:
        raise BackendError(
            f"{target} does not run on this GPU, {present}; it takes {', '.join(ahead)}. Name some with "
            "--gpu to build for another machine; here, load the bundle with engine 'ort' on device 'cuda'"
        )
    if gpus not in ((), (present,)):
        raise BackendError(
            f"{target} builds for this GPU, {present}, alone; drop --gpu or build on {gpus[0]}"
        )
    return (present,)


def build_graph(trt: Any, plan: Plan, graph: str, progress: Progress) -> list[EngineRecord]:
    """Build one graph for all GPUs: parse and audit once, build per GPU."""
    ranges = tuple(profiles(plan.manifest, graph, plan.limits))
    precision = graph_precision(plan.manifest.graphs[graph], plan.precision)
    source, version = source_hash(plan.manifest, graph), str(trt.__version__)
    keys = [
        EngineKey(plan.target, graph, source, precision, version, gpu, plan.workspace, ranges)
        for gpu in plan.gpus
    ]
    folder = build_folder(plan.bundle, plan.target)
    kept = [stored_engine(folder, key) for key in keys]
    if None not in kept:
        progress(f"{graph}: engines are up to date")
        return [record for record in kept if record]
    path = plan.bundle / plan.manifest.graphs[graph].file
    model = load_graph(path, plan.precision)
    with tempfile.TemporaryDirectory() as aside:
        converted = Path(aside) / path.name
        onnx.save_model(model, str(converted), save_as_external_data=True, location=f"{path.stem}.weights")
        plain = load_plain(converted)
        with parsed(trt, converted) as network:
            audit(Case(network, plain, graph, plan.manifest.lowering, precision))
            decompose(network, precision)
            pairs = zip(kept, keys, strict=True)
            return [old or build_one(network, plan, key, plain, progress) for old, key in pairs]


def load_plain(path: Path) -> onnx.ModelProto:
    """The written graph again: `save_model` moves the weights of the one it is given out of it."""
    return onnx.load(str(path))


def decompose(network: Parsed, precision: str) -> None:
    """Let attention become plain kernels where there is no fused one: float32 and odd head widths."""
    for layer in layers(network.network):
        if layer.type.name == "ATTENTION_INPUT":
            width = layer.get_input(0).shape[-1]
            if precision == "fp32" or width % FUSED_WIDTH:
                attention_of(network.trt, layer).decomposable = True


def build_one(
    network: Parsed, plan: Plan, key: EngineKey, model: onnx.ModelProto, progress: Progress
) -> EngineRecord:
    """Build and store one engine."""
    line = f"building {key.graph} ({key.precision}, {len(key.profiles)} profiles) for {key.gpu}"
    progress(line)
    folder = build_folder(plan.bundle, plan.target)
    spec = plan.manifest.graphs[key.graph]
    config = configure(network, plan, key, spec)
    cache = folder / TIMING_CACHE.format(version=key.version)
    if target_named(plan.target).timings:
        known = cache.read_bytes() if cache.is_file() else b""
        config.set_timing_cache(config.create_timing_cache(known), False)
    monitor = make_monitor(network.trt, lambda percent: progress(f"{line}: {percent}%"))
    if monitor is not None:
        config.progress_monitor = monitor
    network.messages.clear()
    began = time.perf_counter()
    engine = network.builder.build_serialized_network(network.network, config)
    seconds = time.perf_counter() - began
    if engine is None:
        raise BackendError(
            f"graph {key.graph} does not build for {key.gpu}: {network.messages.reason()}; "
            "lower --max-batch or --max-frames if memory ran out"
        )
    record = store_engine(folder, key, converted_spec(spec, model), memoryview(engine), seconds)
    if target_named(plan.target).timings:
        store_timings(cache, config)
    return record


def store_timings(path: Path, config: Any) -> None:
    """Keep TensorRT's measurements of kernels, which make the next build faster."""
    try:
        write_file(path, memoryview(config.get_timing_cache().serialize()))
    except OSError as error:
        raise BackendError(
            f"{path} cannot be written ({error.strerror}); free space on the disk, or make it writable"
        ) from None


def configure(network: Parsed, plan: Plan, key: EngineKey, spec: GraphSpec) -> Any:
    """TensorRT's builder settings: profiles, GPU, memory."""
    trt = network.trt
    config = network.builder.create_builder_config()
    for profile in key.profiles:
        config.add_optimization_profile(make_profile(network, profile, spec))
    if target_named(plan.target).gpus:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, key.gpu.upper()), 0)
    if key.precision == "fp32" and any(tensor.name == LOGITS for tensor in spec.outputs):
        config.clear_flag(trt.BuilderFlag.TF32)  # fp32 is asked for to compare with the reference
    if plan.workspace:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, plan.workspace * MIB)
    return config


def make_profile(network: Parsed, profile: Profile, spec: GraphSpec) -> Any:
    """TensorRT's form of a profile; inputs without a named axis need no range."""
    made = network.builder.create_optimization_profile()
    for tensor in spec.inputs:
        if any(isinstance(axis, str) for axis in tensor.axes):
            made.set_shape(tensor.name, *profile.shapes(tensor.axes))
    return made
