"""Writing a graph with its weights beside it, each weight once and as small as it is exact.

A float32 weight whose values all are float16 numbers is stored as float16 behind a `Cast`: a checkpoint
that was saved in float16 takes half the space and computes the very same float32 numbers.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

EXTERNAL_FROM = 1024


def write_graph(model: onnx.ModelProto, path: Path) -> Path:
    """Write `path` and, for large weights, `path` with the suffix `.weights`."""
    casts = [cast for weight in model.graph.initializer if (cast := shrink(weight)) is not None]
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    del model.graph.value_info[:]
    onnx.save_model(
        model,
        str(path),
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location=path.with_suffix(".weights").name,
        size_threshold=EXTERNAL_FROM,
    )
    return path


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
