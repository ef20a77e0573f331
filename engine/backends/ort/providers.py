"""The execution providers of ONNX Runtime: which one serves an engine, its options and its strays.

A provider takes the nodes it can and leaves the others to the CPU. What was left is asked of the session
itself; a graph that falls apart is refused, since every border costs a copy and a wait.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnxruntime

from valle2.engine.backends.trt.api import TARGETS, lowerings_here, release
from valle2.engine.bundle.engine_files import engine_folder
from valle2.engine.bundle.manifest import Manifest
from valle2.engine.bundle.profiles import PREFILL_CHUNK
from valle2.engine.errors import BackendError

CPU = "CPUExecutionProvider"
RECORDING = "session.record_ep_graph_assignment_info"
HOST_TYPES = frozenset(
    [
        "Shape",
        "Size",
        "Gather",
        "Concat",
        "Unsqueeze",
        "Squeeze",
        "Slice",
        "Cast",
        "Range",
        "Add",
        "Sub",
        "Mul",
        "Div",
        "Min",
        "Max",
        "Mod",
        "ReduceMax",
        "Equal",
        "Where",
        "Constant",
        "ConstantOfShape",
        "Expand",
        "Reshape",
        "Identity",
    ]
)
"""What shapes are computed with; the CUDA provider leaves such arithmetic to the host on purpose."""


@dataclass(frozen=True, slots=True)
class Provider:
    """One provider. name: ONNX Runtime's. extra: what installs it. options: CACHE stands for a folder.

    records: whether it replays bound calls as CUDA graphs. chunk: positions prefilled between two steps.
    """

    name: str
    extra: str
    lowerings: tuple[str, ...] = ("ort", "portable", "primitive")
    options: Mapping[str, str] = field(default_factory=dict)
    records: bool = False
    chunk: int = PREFILL_CHUNK


REMEDY = "take another lowering or engine, or allow it with fallback=True"
CACHE = "{cache}"
FIXED = ("portable", "primitive")
ROW_LENGTHS = (1, 32)
"""The ONNX Runtime from which on `GroupQueryAttention` is told each row's new positions, as `ort` does."""
GPU_CHUNK = 512
"""A call costs its launches, not its positions: `bench prefill --device cuda` in docs/gpu.md."""
PROVIDERS: dict[tuple[str, str], Provider] = {
    ("ort", "cpu"): Provider(CPU, "onnxruntime"),
    ("ort", "cuda"): Provider(
        "CUDAExecutionProvider",
        "valle2[cuda]",
        FIXED,
        {
            "device_id": "0",
            "use_tf32": "0",  # what is stored as float32 is computed in float32
            "cudnn_conv_algo_search": "HEURISTIC",  # asked anew for every length
        },
        records=True,
        chunk=GPU_CHUNK,
    ),
    ("ort-tensorrt", "cuda"): Provider(
        "TensorrtExecutionProvider",
        "valle2[cuda]",
        FIXED,
        {
            "device_id": "0",
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": CACHE,
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": CACHE,
        },
    ),
    ("ort-tensorrt-rtx", "cuda"): Provider(
        "NvTensorRTRTXExecutionProvider",
        "onnxruntime built with TensorRT-RTX",
        FIXED,
        {"device_id": "0", "nv_runtime_cache_path": CACHE},
    ),
}
ENGINES = tuple(dict.fromkeys(engine for engine, _ in PROVIDERS))


def find_provider(engine: str, device: str, available: list[str]) -> Provider:
    """The provider of an engine on a device.

    Raises:
        BackendError: the engine does not run on the device, or this ONNX Runtime lacks its provider.
    """
    devices = [d for e, d in PROVIDERS if e == engine]
    if device not in devices:
        known = " or ".join(repr(d) for d in devices)
        raise BackendError(f"unknown device {device!r} for engine {engine!r}; expected {known}")
    found = PROVIDERS[engine, device]
    if found.name not in available:
        raise BackendError(
            f"device {device!r} is not available here (this ONNX Runtime has no {found.name}); "
            f"install it with: pip install '{found.extra}'"
        )
    return found


def fitted(manifest: Manifest, engine: str, device: str, precision: str) -> Manifest:
    """The manifest with the graphs that an engine takes on a device.

    Raises:
        BackendError: the bundle has no lowering that runs there, or the provider compiles a bundle as it is
            stored alone. On CUDA `GroupQueryAttention` has no float32 and refuses the NAR's, without a cache.
    """
    if engine in TARGETS and device == "cuda":
        return manifest.lowered(lowerings_here(engine), engine)
    provider = PROVIDERS.get((engine, device))
    if provider is None:
        return manifest
    if CACHE in provider.options.values() and precision != "fp32":
        raise BackendError(f"{engine} runs a bundle as it is stored; leave precision {precision!r} out")
    lowerings, taker = provider.lowerings, f"{engine} on {device}"
    if device == "cpu" and release(onnxruntime.__version__) < ROW_LENGTHS:
        lowerings, taker = FIXED, f"onnxruntime {onnxruntime.__version__} on {device}"
    return manifest.lowered(lowerings, taker)


def prefill_chunk(engine: str, device: str) -> int:
    """Positions that the runtime prefills between two steps; an engine of TensorRT is built for no more."""
    return PROVIDERS[engine, device].chunk if (engine, device) in PROVIDERS else PREFILL_CHUNK


def provider_options(provider: Provider, bundle: Path, engine: str) -> dict[str, str]:
    """The options with the folder that compiled engines are kept in, which is made."""
    if CACHE not in provider.options.values():
        return dict(provider.options)
    cache = engine_folder(bundle, engine)
    cache.mkdir(parents=True, exist_ok=True)
    return {key: str(cache) if value == CACHE else value for key, value in provider.options.items()}


def check_strays(file: str, session: Any, name: str) -> None:
    """Refuse a session some of whose nodes were left to another provider.

    Raises:
        BackendError: the operators, how often each, and where they went.
    """
    strays = Counter[str](
        f"{node.op_type} ({part.ep_name})"
        for part in session.get_provider_graph_assignment_info()
        for node in part.get_nodes()
        if part.ep_name != name and node.op_type not in HOST_TYPES
    )
    if strays:
        listed = ", ".join(f"{count} {kind}" for kind, count in sorted(strays.items()))
        raise BackendError(
            f"{file}: {name} leaves {strays.total()} nodes to other providers: {listed}; {REMEDY}"
        )
