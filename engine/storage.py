"""Writing a graph with its weights beside it, each weight once and as small as it is exact.

A float32 weight whose values all are float16 numbers is stored as float16 behind a `Cast`: a checkpoint
that was saved in float16 takes half the space and computes the very same float32 numbers.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

EXTERNAL_FROM = 1024


def write_graph(model: onnx.ModelProto, path: Path, shared: Path | None = None) -> Path:
    """Write `path` and, for large weights, `path` with the suffix `.weights`.

    Args:
        shared: a graph in the same folder; weights that it has too are read from its file.
    """
    casts = [cast for weight in model.graph.initializer if (cast := shrink(weight)) is not None]
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    del model.graph.value_info[:]
    if shared is not None:
        share(model, shared)
    onnx.save_model(
        model,
        str(path),
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location=path.with_suffix(".weights").name,
        size_threshold=EXTERNAL_FROM,
    )
    return path


def share(model: onnx.ModelProto, written: Path) -> None:
    """Let a graph read the weights that a written one has, byte for byte, where that one reads them."""
    places = onnx.load(str(written), load_external_data=False).graph.initializer
    values = onnx.load(str(written)).graph.initializer
    both = zip(places, values, strict=True)
    known = {content(value): place for place, value in both if place.external_data}
    for weight in model.graph.initializer:
        place = known.get(content(weight))
        if place is not None:
            weight.ClearField("raw_data")
            weight.data_location = TensorProto.EXTERNAL
            weight.external_data.extend(place.external_data)


def content(weight: TensorProto) -> tuple[int, tuple[int, ...], bytes]:
    """What makes two weights the same one."""
    return weight.data_type, tuple(weight.dims), hashlib.sha256(weight.raw_data).digest()


def shrink(weight: TensorProto) -> onnx.NodeProto | None:
    """Store a weight as float16 under another name if that is exact; the node that casts it back."""
    if weight.data_type != TensorProto.FLOAT:
        return None
    values = numpy_helper.to_array(weight)
    if values.nbytes < EXTERNAL_FROM or np.abs(values).max(initial=0) > np.finfo(np.float16).max:
        return None
    small = values.astype(np.float16)
    if not np.array_equal(small.astype(np.float32), values):
        return None
    name = weight.name
    weight.CopyFrom(numpy_helper.from_array(small, f"{name}_half"))
    return helper.make_node("Cast", [weight.name], [name], f"{name}_cast", to=TensorProto.FLOAT)
