"""The execution providers of ONNX Runtime: which one serves an engine, its options, its fallback nodes.

A provider takes the nodes it can and leaves the others to the CPU. What was left is asked of the session
itself; a graph that falls apart is refused, since every border costs a copy and a wait.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from valle2.engine.backends.trt.api import release
from valle2.engine.bundle.artifacts import build_folder
from valle2.engine.bundle.profiles import PREFILL_CHUNK
from valle2.engine.errors import BackendError

CPU = "CPUExecutionProvider"
RECORD_ASSIGNMENT = "session.record_ep_graph_assignment_info"
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

    captures: whether it captures bound calls as CUDA graphs. chunk: positions prefilled between two steps.
    """

    name: str
    extra: str
    lowerings: tuple[str, ...] = ("ort", "portable", "primitive")
    options: Mapping[str, str] = field(default_factory=dict)
    captures: bool = False
    chunk: int = PREFILL_CHUNK


REMEDY = "take another lowering or engine, or allow it with fallback=True"
CACHE = "{cache}"
FIXED = ("portable", "primitive")
ROW_LENGTHS = (1, 32)
"""The ONNX Runtime from which on `GroupQueryAttention` is told each row's new positions, as `ort` does."""
GPU_CHUNK = 512
"""A call costs its launches, not its positions: `bench prefill --device cuda` in docs/notes/gpu.md."""
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
        captures=True,
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


def find_provider(engine: str, device: str, available: list[str]) -> Provider:
    """The provider of an engine on a device.

    Raises:
        BackendError: this ONNX Runtime lacks the provider.
    """
    found = PROVIDERS[engine, device]
    if found.name not in available:
        raise BackendError(
            f"device {device!r} is not available here (this ONNX Runtime has no {found.name}); "
            f"install it with: pip install '{found.extra}'"
        )
    return found


def lowerings_for(engine: str, device: str) -> tuple[tuple[str, ...], str]:
    """The lowerings that an engine takes on a device, best first, and a name of that engine for messages.

    On CUDA `GroupQueryAttention` has no float32 and refuses the NAR, which has no cache. So "ort" is not
    among its lowerings.
    """
    provider = PROVIDERS[engine, device]
    if device == "cpu":
        import onnxruntime

        if release(onnxruntime.__version__) < ROW_LENGTHS:
            return FIXED, f"onnxruntime {onnxruntime.__version__} on {device}"
    return provider.lowerings, f"{engine} on {device}"


def compiles(engine: str, device: str) -> bool:
    """Does the engine's provider compile the graphs and keep what it compiled?"""
    provider = PROVIDERS.get((engine, device))
    return provider is not None and CACHE in provider.options.values()


def provider_options(provider: Provider, bundle: Path, engine: str) -> dict[str, str]:
    """The options with the folder that compiled engines are kept in, which is made."""
    if CACHE not in provider.options.values():
        return dict(provider.options)
    cache = build_folder(bundle, engine)
    cache.mkdir(parents=True, exist_ok=True)
    return {key: str(cache) if value == CACHE else value for key, value in provider.options.items()}


def check_fallback_nodes(file: str, session: Any, name: str) -> None:
    """Refuse a session some of whose nodes were left to another provider.

    Raises:
        BackendError: the operators, how often each, and where they went.
    """
    fallback_nodes = Counter[str](
        f"{node.op_type} ({part.ep_name})"
        for part in session.get_provider_graph_assignment_info()
        for node in part.get_nodes()
        if part.ep_name != name and node.op_type not in HOST_TYPES
    )
    if fallback_nodes:
        listed = ", ".join(f"{count} {kind}" for kind, count in sorted(fallback_nodes.items()))
        raise BackendError(
            f"{file}: {name} leaves {fallback_nodes.total()} nodes to other providers: {listed}; {REMEDY}"
        )
