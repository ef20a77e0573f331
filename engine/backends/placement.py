"""Where and how a model's graphs run: one value, checked when it is made and resolved once per bundle.

It knows which engines, devices and precisions exist. It opens no session and imports no runtime.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from valle2.engine.backends.ort.providers import (
    GPU_JOINT_CHUNKS,
    PROVIDERS,
    lowerings_for,
    runs_nar_row,
)
from valle2.engine.backends.trt.api import TARGETS, lowerings_here
from valle2.engine.bundle.artifacts import build_command
from valle2.engine.bundle.contract import BUILT_GRAPHS, NAR_BATCH, NAR_ROW, PADDED_DECODER, PREFILL, STEP
from valle2.engine.bundle.manifest import Manifest
from valle2.engine.bundle.precisions import (
    AUTO,
    STORED,
    LocatedGraph,
    check_precision,
    default_precision,
    find_graphs,
)
from valle2.engine.bundle.profiles import PREFILL_CHUNK
from valle2.engine.derived.cache import usable_precision
from valle2.engine.errors import BackendError

ORT, CUDA = "ort", "cuda"
ENGINE_DEVICES: dict[str, tuple[str, ...]] = {
    **{engine: tuple(d for e, d in PROVIDERS if e == engine) for engine, _ in PROVIDERS},
    **{target: ("cuda",) for target in TARGETS},
}
"""The devices that each engine runs on."""


MAX_STEPS_PER_READ = 16


@dataclass(frozen=True, slots=True)
class Placement:
    """What executes the graphs of a model.

    Args:
        device: "cpu" or "cuda". It is never replaced by another one.
        engine: "ort" runs the ONNX graphs. "ort-tensorrt" and "ort-tensorrt-rtx" run them through these
            providers of ONNX Runtime. "tensorrt" and "tensorrt-rtx" run the engine files that `valle2 build`
            made. All but "ort" run on "cuda" alone.
        precision: "fp32" for the graphs as they are stored, or the precision that `valle2 build` made. "auto"
            is "int8" for "ort" on a CPU if that is built, and "fp32" otherwise.
        threads: CPU threads, 0 for all cores.
        fallback: whether ONNX Runtime may run nodes on another provider than the engine's.
        chunks_per_call: requests that may share a call of the NAR or the codec. 0 for what suits the engine,
            which is 8 for "ort" on "cuda" and for TensorRT's engine files, and 1 otherwise.
        steps_per_read: the most AR steps that run before their codes are read. More than 1 is for "cuda", and
            makes loading slower: each step between two sets of buffers is a CUDA graph of its own.
        capture_chunks: pad calls of the NAR and the codec to a ladder of sizes, each of them a CUDA graph.
            For "ort" on "cuda", with graphs that `valle2 build` made. It makes loading slower.

    Raises:
        BackendError: an unknown engine, a device or precision that it does not take, or a negative number.
    """

    device: str = "cpu"
    engine: str = ORT
    precision: str = AUTO
    threads: int = 0
    fallback: bool = False
    chunks_per_call: int = 0
    steps_per_read: int = 1
    capture_chunks: bool = False

    def __post_init__(self) -> None:
        if self.engine not in ENGINE_DEVICES:
            known = ", ".join(ENGINE_DEVICES)
            raise BackendError(f"unknown engine {self.engine!r}; expected one of {known}")
        devices = ENGINE_DEVICES[self.engine]
        if self.device not in devices:
            known = " or ".join(map(repr, devices))
            raise BackendError(f"unknown device {self.device!r} for engine {self.engine!r}; expected {known}")
        if self.threads < 0:
            raise BackendError(f"threads is {self.threads}; expected 0 for all cores, or more")
        if self.chunks_per_call < 0:
            raise BackendError(
                f"chunks_per_call is {self.chunks_per_call}; expected 0 for the engine's own, or more"
            )
        if not 1 <= self.steps_per_read <= MAX_STEPS_PER_READ:
            raise BackendError(f"steps_per_read is {self.steps_per_read}; expected 1 to {MAX_STEPS_PER_READ}")
        if self.capture_chunks and (self.engine, self.device) != (ORT, CUDA):
            raise BackendError(
                f"capture_chunks is for engine {ORT!r} on device {CUDA!r}, not {self.engine!r} on "
                f"{self.device!r}; leave it out"
            )
        if self.engine == ORT and self.precision != AUTO:
            check_precision(self.precision)
        provider = PROVIDERS.get((self.engine, self.device))
        if provider and provider.compiles and self.precision not in (AUTO, STORED):
            raise BackendError(
                f"{self.engine} runs a bundle as it is stored; leave precision {self.precision!r} out"
            )

    @property
    def prefill_chunk(self) -> int:
        """Positions that the runtime prefills in one call. A TensorRT engine is built for no more."""
        provider = PROVIDERS.get((self.engine, self.device))
        return provider.chunk if provider else PREFILL_CHUNK

    def joint_chunks(self, slots: int) -> int:
        """Requests that share a call of the NAR or the codec at most.

        Args:
            slots: rows of the AR batch. A TensorRT engine is built for no more.
        """
        provider = PROVIDERS.get((self.engine, self.device))
        usual = provider.joint_chunks if provider else GPU_JOINT_CHUNKS
        return min(self.chunks_per_call or usual, slots)

    def resolve(self, bundle: Path, manifest: Manifest) -> tuple[Placement, Manifest]:
        """The placement with a precision in place of "auto", and the manifest with the graphs that it runs.

        Weights that a recipe of the bundle makes are made now, if this user has none. If they cannot be kept,
        a line of the log says so and the precision is "fp32".

        Args:
            bundle: the folder. manifest: the bundle's, with all of its lowerings.

        Raises:
            BackendError: the bundle has no lowering that the engine takes.
        """
        precision = self.precision
        if precision == AUTO:
            on_cpu = self.engine == ORT and self.device == "cpu"
            precision = default_precision(bundle, manifest) if on_cpu else STORED
        selected = select_variant(manifest, self)
        if self.engine == ORT:
            precision = usable_precision(bundle, selected, precision)
        return replace(self, precision=precision), selected

    def locate_graphs(self, bundle: Path, manifest: Manifest) -> dict[str, LocatedGraph]:
        """The file and tensors of every graph, for a placement that is resolved.

        Raises:
            BackendError: see `find_graphs`; or calls are to be captured, and a graph for that is absent.
        """
        found = find_graphs(bundle, manifest, self.precision if self.engine == ORT else STORED)
        if self.device != "cpu":
            unused = {NAR_ROW} if self.capture_chunks else {PADDED_DECODER}
            unused |= set() if runs_nar_row() else {NAR_ROW, NAR_BATCH}
            if self.capture_chunks and NAR_BATCH not in found.keys() - unused:
                command = build_command(bundle, ORT, "fp16")
                raise BackendError(
                    f"capture_chunks needs the graph {NAR_BATCH}, which {bundle} lacks in {self.precision}; "
                    f"build it with onnxruntime 1.30 or newer: {command}, or leave capture_chunks out"
                )
            return {name: graph for name, graph in found.items() if name not in unused}
        if STEP in found and self.precision != "fp16":
            raise BackendError(
                f"the {self.precision} graphs of the lowering {manifest.lowering} are for CUDA; "
                "leave the precision out, or export the bundle with --lowering ort"
            )
        return {name: graph for name, graph in found.items() if name == PREFILL or name not in BUILT_GRAPHS}


def select_variant(manifest: Manifest, placement: Placement) -> Manifest:
    """The manifest with the graphs of the first lowering that the placement's engine takes.

    Raises:
        BackendError: the bundle has none of them, or TensorRT is not installed.
    """
    engine, device = placement.engine, placement.device
    if engine in TARGETS:
        return manifest.in_lowering(lowerings_here(engine), engine)
    return manifest.in_lowering(*lowerings_for(engine, device))
