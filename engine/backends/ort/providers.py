"""The execution providers of ONNX Runtime: which one serves an engine, its options, its fallback nodes.

A provider takes the nodes that it supports, and ONNX Runtime gives the others to the provider for CPUs. These
are the fallback nodes. A session reports them, and a graph that has any is refused, because every change of
provider costs a copy and a synchronisation. This module imports onnxruntime only when it is asked for: a
machine with TensorRT alone does not need it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
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
"""Operators that compute shapes. The CUDA provider leaves these to the host on purpose."""


@dataclass(frozen=True, slots=True)
class Provider:
    """One provider.

    Args:
        name: its name in ONNX Runtime. extra: the package that installs it.
        lowerings: those that it takes, best first.
        options: its options; the value `CACHE` stands for the folder of compiled engines.
        captures: whether it can replay bound calls as CUDA graphs.
        chunk: positions that the runtime prefills between two steps.
        joint_chunks: requests that share a call of the NAR or the codec.
    """

    name: str
    extra: str
    lowerings: tuple[str, ...] = ("ort", "portable", "primitive")
    options: Mapping[str, str] = field(default_factory=dict)
    captures: bool = False
    chunk: int = PREFILL_CHUNK
    joint_chunks: int = 1

    @property
    def compiles(self) -> bool:
        """Whether it compiles graphs and keeps the result."""
        return CACHE in self.options.values()


FUSED_OPTIONS = {"enable_skip_layer_norm_strict_mode": "1"}
"""For graphs of fused operators on CUDA: `SkipLayerNormalization` sums in float32.

Before microsoft/onnxruntime#28682 it otherwise sums squares in float16, which overflow without notice. Newer
versions ignore the option.
"""
CUDA_EXTRA = "valle2[cuda]"
INSTALL = "pip install onnxruntime"
MISSING = "missing"
REINSTALL = "pip install --force-reinstall --no-deps onnxruntime-gpu"
BOTH_INSTALLED = "onnxruntime and onnxruntime-gpu share one folder, and the one for CPUs was installed last"
CACHE = "{cache}"
FIXED_CACHES = ("portable", "primitive")
"""Lowerings whose caches have a fixed length, without `GroupQueryAttention`."""
SINCE = {"ort": (1, 32), "portable": (1, 25), "primitive": (1, 23)}
"""The first ONNX Runtime that runs each lowering.

"ort" gives `GroupQueryAttention` the number of new positions per row. "portable" has `TensorScatter` and
`Attention` of opset 24. "primitive" has opset 18, and an older release than 1.23 was not tried.
"""
NAR_ROW_SINCE = (1, 30)
"""The first ONNX Runtime whose `GroupQueryAttention` also attends to what follows, as `nar_row` and
`nar_batch` need."""
GPU_CHUNK = 512
"""On a GPU a call's time depends on its kernel launches, not on its positions (docs/notes/gpu.md)."""
GPU_JOINT_CHUNKS = 8
"""On a GPU short rows cost little more together than one alone. On a CPU joining saves nothing."""
PROVIDERS: dict[tuple[str, str], Provider] = {
    ("ort", "cpu"): Provider(CPU, "onnxruntime"),
    ("ort", "cuda"): Provider(
        "CUDAExecutionProvider",
        CUDA_EXTRA,
        FIXED_CACHES,
        {
            "device_id": "0",
            "use_tf32": "0",  # float32 weights are multiplied in float32
            "cudnn_conv_algo_search": "HEURISTIC",  # every new length asks again
        },
        captures=True,
        chunk=GPU_CHUNK,
        joint_chunks=GPU_JOINT_CHUNKS,
    ),
    ("ort-tensorrt", "cuda"): Provider(
        "TensorrtExecutionProvider",
        CUDA_EXTRA,
        FIXED_CACHES,
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
        FIXED_CACHES,
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
        advice = f"pip install '{found.extra}'"
        if found.extra == CUDA_EXTRA and both_installed():
            advice = f"{REINSTALL} ({BOTH_INSTALLED})"
        raise BackendError(
            f"device {device!r} is not available here (this ONNX Runtime has no {found.name}); "
            f"install it with: {advice}"
        )
    return found


def load_onnxruntime() -> Any:
    """Import onnxruntime.

    Raises:
        BackendError: it is not installed, or its libraries do not load.
    """
    try:
        return import_module("onnxruntime")
    except ImportError as error:
        raise BackendError(
            f"onnxruntime is not available ({error}); install it with: {INSTALL}, "
            "or run engine files of TensorRT with engine 'tensorrt'"
        ) from None


def onnxruntime_version() -> str:
    """The version of the onnxruntime that would run; "missing" if it does not load."""
    try:
        return str(load_onnxruntime().__version__)
    except BackendError:
        return MISSING


def both_installed() -> bool:
    """Whether both packages of ONNX Runtime are installed."""
    try:
        return bool(version("onnxruntime") and version("onnxruntime-gpu"))
    except PackageNotFoundError:
        return False


def runs_nar_row() -> bool:
    """Whether the installed ONNX Runtime runs `nar_row` and `nar_batch`, if a build has them."""
    return release(str(load_onnxruntime().__version__)) >= NAR_ROW_SINCE


def lowerings_for(engine: str, device: str) -> tuple[tuple[str, ...], str]:
    """The lowerings that an engine takes on a device, best first, and a name of that engine for messages.

    On CUDA `GroupQueryAttention` has no float32 and refuses the NAR, which has no cache. So "ort" is not
    among its lowerings.

    Raises:
        BackendError: onnxruntime is absent, or so old that it runs none of them.
    """
    provider, installed = PROVIDERS[engine, device], str(load_onnxruntime().__version__)
    found = tuple(name for name in provider.lowerings if release(installed) >= SINCE[name])
    if not found:
        oldest = ".".join(map(str, min(SINCE.values())))
        raise BackendError(f"onnxruntime {installed} is too old; install {oldest} or newer with: {INSTALL}")
    if found == provider.lowerings:
        return found, f"{engine} on {device}"
    newer = ".".join(map(str, SINCE[provider.lowerings[0]]))
    return found, f"onnxruntime {installed} on {device}, older than {newer},"


def provider_options(provider: Provider, bundle: Path, engine: str) -> dict[str, str]:
    """The provider's options for a bundle. Makes the folder of compiled engines if there is to be one."""
    if not provider.compiles:
        return dict(provider.options)
    cache = build_folder(bundle, engine)
    cache.mkdir(parents=True, exist_ok=True)
    return {key: str(cache) if value == CACHE else value for key, value in provider.options.items()}


def check_fallback_nodes(file: str, session: Any, name: str) -> None:
    """Refuse a session that has fallback nodes.

    Args:
        file: the graph, for the message. session: of ONNX Runtime. name: the provider that was asked for.

    Raises:
        BackendError: there are some; it counts their operators and names the providers that run them.
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
            f"{file}: {name} leaves {fallback_nodes.total()} nodes to other providers: {listed}; "
            "take another lowering or engine, or allow it with fallback=True"
        )
