"""Builds TensorRT engines from a bundle: converts, parses, audits, builds and stores every graph. No torch.

`precision` converts a graph, `profiles` derives its ranges from the manifest, and `audit` refuses networks
that would be wrong or slow.
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
from valle2.engine.build.audit import AuditCase, audit
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
"""Fused attention kernels take head widths that are multiples of it."""
MIB = 2**20
Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is built from one bundle. workspace: MiB that a kernel may use, 0 for no limit."""

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
    """Build every graph of a bundle for every GPU. Engines that exist and fit are kept.

    Args:
        bundle: the folder. It needs the portable or the primitive lowering, because TensorRT has no
            `GroupQueryAttention` and needs caches of a fixed length.
        target: "tensorrt" or "tensorrt-rtx".
        precision: of AR and NAR, see `precision.load_graph`. The codec stays in float32.
        gpus: compute capabilities such as "sm89"; empty for the GPU of this machine.
        limits: greatest batch and length. workspace: MiB that a kernel may use, 0 for no limit.
        progress: called with a line per engine.

    Returns:
        A record per engine. The engine files lie in `BUNDLE/engines/TARGET`.

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
    """The GPUs to build for.

    Raises:
        BackendError: the target cannot build for one of them on this machine.
    """
    from valle2.engine.backends.trt.cuda import this_gpu

    offline = target_named(target).gpus
    wrong = [gpu for gpu in gpus if gpu not in offline]
    if offline and wrong:
        raise BackendError(
            f"{target} does not build for {', '.join(wrong)}; expected some of {', '.join(offline)}"
        )
    if offline and gpus:
        return gpus
    present = this_gpu()
    if present is None:
        advice = (
            f"name the GPUs with --gpu ({', '.join(offline)})"
            if offline
            else "build on the device that runs it"
        )
        raise BackendError(f"no CUDA GPU was found here, and {target} builds for it; {advice}")
    if offline and present not in offline:
        raise BackendError(
            f"{target} does not run on this GPU, {present}; it takes {', '.join(offline)}. Name some with "
            "--gpu to build for another machine; here, load the bundle with engine 'ort' on device 'cuda'"
        )
    if gpus not in ((), (present,)):
        raise BackendError(
            f"{target} builds for this GPU, {present}, alone; drop --gpu or build on {gpus[0]}"
        )
    return (present,)


def build_graph(trt: Any, plan: Plan, graph: str, progress: Progress) -> list[EngineRecord]:
    """Build one graph for all GPUs. It is parsed and audited once."""
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
    with tempfile.TemporaryDirectory() as work:
        converted = Path(work) / path.name
        onnx.save_model(model, str(converted), save_as_external_data=True, location=f"{path.stem}.weights")
        reloaded = reload_graph(converted)
        with parsed(trt, converted) as network:
            audit(AuditCase(network, reloaded, graph, plan.manifest.lowering, precision))
            allow_decomposition(network, precision)
            pairs = zip(kept, keys, strict=True)
            return [old or build_one(network, plan, key, reloaded, progress) for old, key in pairs]


def reload_graph(path: Path) -> onnx.ModelProto:
    """Read the written graph again, because `save_model` removed the weights of the one that it wrote."""
    return onnx.load(str(path))


def allow_decomposition(network: Parsed, precision: str) -> None:
    """Let TensorRT decompose attention where it has no fused kernel: in float32 and for odd head widths."""
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
    """The settings of TensorRT's builder: profiles, GPU, memory."""
    trt = network.trt
    config = network.builder.create_builder_config()
    for profile in key.profiles:
        config.add_optimization_profile(make_profile(network, profile, spec))
    if target_named(plan.target).gpus:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, key.gpu.upper()), 0)
    if key.precision == "fp32" and any(tensor.name == LOGITS for tensor in spec.outputs):
        config.clear_flag(trt.BuilderFlag.TF32)  # fp32 serves to compare with the reference
    if plan.workspace:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, plan.workspace * MIB)
    return config


def make_profile(network: Parsed, profile: Profile, spec: GraphSpec) -> Any:
    """A profile as a TensorRT object. Inputs without a named axis need no range."""
    made = network.builder.create_optimization_profile()
    for tensor in spec.inputs:
        if any(isinstance(axis, str) for axis in tensor.axes):
            made.set_shape(tensor.name, *profile.shapes(tensor.axes))
    return made
