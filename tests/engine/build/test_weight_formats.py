"""Weight-only precisions for TensorRT: near float32 in ONNX Runtime, built for GPUs that have the type."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import pytest

from tests.engine.build.test_ort import feeds_of
from tests.engine.build.test_tensorrt import REASON, RTX
from valle2.engine import BackendError, Placement, open_backend, read_manifest
from valle2.engine.backends.trt.api import load
from valle2.engine.build.audit import AuditCase, NetworkView, check_types
from valle2.engine.build.precision import unpack
from valle2.engine.build.quantize import store_weights
from valle2.engine.build.tensorrt import build_engine
from valle2.engine.build.weight_formats import STORAGES, check_storage
from valle2.engine.bundle.artifacts import source_hash
from valle2.engine.bundle.engine_files import find_engine
from valle2.engine.bundle.profiles import Limits

# Root mean square of the difference, divided by that of the float32 logits. Measured: 0.018, 0.243, 0.063.
NOISE = {"int8": 0.03, "int4": 0.36, "fp8": 0.095}


@pytest.mark.parametrize("precision", STORAGES)
@pytest.mark.parametrize("graph", ["ar", "nar"])
def test_logits_stay_near_float32(
    fixed_bundles: dict[str, Path], tmp_path: Path, graph: str, precision: str
) -> None:
    folder = fixed_bundles["portable"]
    manifest = read_manifest(folder)
    spec = manifest.graphs[graph]
    feeds = feeds_of(folder, graph)
    for tensor in spec.inputs:
        if tensor.name.startswith("cache_"):
            feeds[tensor.name] = np.zeros((1, *map(int, tensor.axes[1:])), np.float32)
    model = onnx.load(str(folder / spec.file))
    unpack(model)
    products = store_weights(model, STORAGES[precision])
    kinds = [node.op_type for node in model.graph.node]
    assert products == kinds.count("DequantizeLinear") >= 4 * manifest.sizes["layers"]
    onnx.save_model(model, str(tmp_path / spec.file))
    whole, small = (
        open_backend(place, spec, Placement(threads=1)).run(feeds, ("logits",))["logits"]
        for place in (folder, tmp_path)
    )
    noise = float(np.sqrt(np.mean((small - whole) ** 2) / np.mean(whole**2)))
    assert 0 < noise < NOISE[precision], noise


@pytest.mark.parametrize("precision", STORAGES)
def test_engines_are_built_and_found(fixed_bundles: dict[str, Path], tmp_path: Path, precision: str) -> None:
    pytest.importorskip("tensorrt_rtx", reason=REASON)
    folder = Path(shutil.copytree(fixed_bundles["portable"], tmp_path / "toy"))
    found = build_engine(folder, RTX, precision=precision, gpus=["sm89"], limits=Limits(1, 100))
    kinds = {record.key["graph"]: record.key["precision"] for record in found}
    assert kinds == {"ar": precision, "nar": precision, "codec_encoder": "fp32", "codec_decoder": "fp32"}
    wanted = {"target": RTX, "graph": "ar", "source": source_hash(read_manifest(folder), "ar")}
    wanted |= {"precision": precision, "version": str(load(RTX).__version__), "gpu": "sm89"}
    assert find_engine(folder, wanted)[1].spec.inputs[-1].dtype == "float16"
    with pytest.raises(BackendError, match=f"has precision {precision}, and fp16 was asked for"):
        find_engine(folder, wanted | {"precision": "fp16"})


def test_what_cannot_be_built_is_refused(fixed_bundles: dict[str, Path]) -> None:
    with pytest.raises(BackendError, match=r"^sm80, sm86 has no fp8; it takes sm89 or later: use int8$"):
        check_storage("fp8", "portable", ("sm80", "sm86", "sm120"))
    check_storage("fp16", "primitive", ("sm75",))
    pytest.importorskip("tensorrt_rtx", reason=REASON)
    with pytest.raises(BackendError, match="int8 takes the lowering portable and the bundle has primitive"):
        build_engine(fixed_bundles["primitive"], RTX, precision="int8", gpus=["sm89"])
    with pytest.raises(
        BackendError, match="unknown precision 'int2'; expected one of fp32, fp16, bf16, int8"
    ):
        build_engine(fixed_bundles["portable"], RTX, precision="int2", gpus=["sm89"])


def test_a_weight_that_was_folded_back_is_found() -> None:
    node = onnx.helper.make_node("DequantizeLinear", ["codes", "scales"], ["weight"])
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [], []))
    case = AuditCase(cast(Any, None), model, "ar", "portable", "int8")
    assert list(check_types(case, NetworkView((), {}))) == ["0 weights are stored as int8; expected 1"]
