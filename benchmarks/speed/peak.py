"""How fast this machine multiplies matrices in ONNX Runtime: the bound of a NAR pass. Needs `onnx`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto, helper

ROWS, WIDTH, INNER, REPEATS = 850, 1024, 4096, 15


def matmul_peak(threads: int, *, integers: bool = False) -> float:
    """Operations (multiply and add counted apart) per second of a NAR-sized product, the best of several."""
    session, feeds = product(threads, integers)
    session.run(None, feeds)
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        session.run(None, feeds)
        times.append(time.perf_counter() - began)
    return 2 * ROWS * WIDTH * INNER / min(times)


def product(threads: int, integers: bool) -> tuple[Any, dict[str, Any]]:
    """A session of one product of 8-bit integers or of floats, (850, 1024) by a constant (1024, 4096)."""
    draws = np.random.default_rng(0)
    if integers:
        node = helper.make_node("MatMulInteger", ["a", "w"], ["y"])
        kinds = TensorProto.UINT8, TensorProto.INT8, TensorProto.INT32
        left = draws.integers(0, 127, (ROWS, WIDTH)).astype(np.uint8)
        right = draws.integers(-63, 63, (WIDTH, INNER)).astype(np.int8)
    else:
        node = helper.make_node("MatMul", ["a", "w"], ["y"])
        kinds = (TensorProto.FLOAT,) * 3
        left = draws.standard_normal((ROWS, WIDTH)).astype(np.float32)
        right = draws.standard_normal((WIDTH, INNER)).astype(np.float32)
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("a", kinds[0], (ROWS, WIDTH))],
        [helper.make_tensor_value_info("y", kinds[2], (ROWS, INNER))],
        [helper.make_tensor("w", kinds[1], right.shape, right.tobytes(), raw=True)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"]), {
        "a": left
    }


def nar_operations(sizes: Mapping[str, int], positions: int, targets: int) -> float:
    """Operations of one NAR pass over `positions` (text, prompt, target, marks) with logits of `targets`."""
    width, ffn = sizes.get("nar_d_model", sizes["d_model"]), sizes.get("nar_ffn", sizes["ffn"])
    layers = sizes.get("nar_layers", sizes["layers"])
    weights = layers * (4 * width * width + 2 * width * ffn)
    return 2 * (weights * positions + 2 * layers * width * positions**2 + 1024 * width * targets)
