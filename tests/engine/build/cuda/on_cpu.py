"""The graphs of CUDA in float32 on this CPU, which has kernels of all operators; what only a GPU shows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest

from valle2.engine import Backend, GraphSpec, Manifest, open_backend
from valle2.engine.backends import placement as placements
from valle2.engine.backends.ort.providers import PROVIDERS
from valle2.engine.backends.placement import Placement
from valle2.engine.build import ort as builds
from valle2.engine.build.cuda.nodes import device_nodes
from valle2.engine.build.cuda.writer import MOST_PARTS
from valle2.engine.build.ort import BuildOptions, build_graphs
from valle2.engine.bundle.contract import NAR_ROW, PADDED_DECODER
from valle2.engine.bundle.precisions import CUDA_LOWERING, LocatedGraph, find_graphs
from valle2.runtime import tts


def need_cuda() -> None:
    """Skip the test without a GPU."""
    if PROVIDERS["ort", "cuda"].name not in onnxruntime.get_available_providers():
        pytest.skip("needs an ONNX Runtime with CUDA, and a GPU")


def captured_wrongly(model: onnx.ModelProto, feeds: Mapping[str, Any]) -> list[str]:
    """Nodes for which a kernel of CUDA copies from host memory that is freed before a replay.

    These are joins and divisions of unequal or many parts, and batched products with different batches
    (microsoft/onnxruntime#32121). Sizes are those of one call.
    """
    kinds = "Concat", "Split", "MatMul", "FusedMatMul"
    nodes = [node for node in device_nodes(model)[0] if node.op_type in kinds]
    made = onnx.ModelProto.FromString(model.SerializeToString())
    names = {name for node in nodes for name in (*node.input, *node.output)} - {
        weight.name for weight in model.graph.initializer
    }
    names -= {value.name for value in (*made.graph.output, *made.graph.input)}
    made.graph.output.extend(onnx.ValueInfoProto(name=name) for name in sorted(names))
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(None, dict(feeds))
    shapes = {value.name: array.shape for value, array in zip(session.get_outputs(), found, strict=True)}
    shapes |= {name: value.shape for name, value in feeds.items()}
    shapes |= {weight.name: tuple(weight.dims) for weight in model.graph.initializer}

    def safe(node: onnx.NodeProto) -> bool:
        if node.op_type in ("MatMul", "FusedMatMul"):
            left, right = (shapes[name] for name in node.input)
            return len(right) == 2 or left[:-2] == right[:-2]
        parts = node.input if node.op_type == "Concat" else node.output
        return len(parts) <= MOST_PARTS and len({shapes[name] for name in parts}) == 1

    return [f"{node.op_type} {node.name}" for node in nodes if not safe(node)]


def build_in_float32(bundle: Path) -> None:
    """Build "fp16" for CUDA, whose graphs stay in float32."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builds, "convert", lambda model, kind: None)
        build_graphs(bundle, "fp16", BuildOptions("cuda"))


def run_on_cpu(patch: pytest.MonkeyPatch) -> set[str]:
    """Let a CPU run "fp16" as CUDA would, also with `capture_chunks`. Bound calls only seem to be captured.

    Returns:
        The graphs that are loaded from now on.
    """
    used: set[str] = set()

    def variant(manifest: Manifest, _: Placement) -> Manifest:
        return manifest.in_lowering([CUDA_LOWERING], "test")

    def locate(chosen: Placement, folder: Path, manifest: Manifest) -> dict[str, LocatedGraph]:
        found = find_graphs(folder, manifest, chosen.precision)
        # the stored graphs prefill in float32, as these graphs continue
        found |= {n: LocatedGraph(folder, spec) for n, spec in manifest.graphs.items()}
        found.pop(NAR_ROW if chosen.capture_chunks else PADDED_DECODER)
        used.update(found)
        return found

    def opened(folder: Path, spec: GraphSpec, placement: Placement, *, stepped: bool = False) -> Backend:
        backend = open_backend(folder, spec, placement, stepped=stepped)
        backend.captures_calls = stepped and placement.capture_chunks
        return backend

    patch.setattr(placements, "CUDA", "cpu")
    patch.setattr(placements, "select_variant", variant)
    patch.setattr(Placement, "locate_graphs", locate)
    patch.setattr(tts, "open_backend", opened)
    return used
