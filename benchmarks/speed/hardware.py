"""Bounds that the hardware sets: memory bandwidth for an AR step, matrix products for a NAR pass.

An AR step reads every weight once, so memory bandwidth bounds it. The bandwidth probe lets every thread look
for the greatest byte of its own quarter of a gigabyte, far more than caches hold, all at the same time. The
fastest of several readings counts. numpy's `max` reads with vector loads, releases the interpreter lock and
asks for huge pages. (`block @ block` holds the lock, so that threads read one after another.)
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from valle2.engine.backends.ort.providers import load_onnxruntime
from valle2.engine.bundle.precisions import HALF, METHODS, STORED
from valle2.engine.bundle.schema import head_width

BYTES_PER_THREAD = 2**28
READINGS = 8
ROWS, WIDTH, INNER, PRODUCTS = 850, 1024, 4096, 15
FLOAT_BYTES = 4


def read_bandwidth(threads: int, bytes_per_thread: int = BYTES_PER_THREAD) -> float:
    """Bytes per second that `threads` threads read together, at best.

    bytes_per_thread: must be far more than the processor's caches hold.
    """
    blocks = [np.ones(bytes_per_thread, np.uint8) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        times = [timed_reading(pool, blocks) for _ in range(READINGS)]
    return threads * bytes_per_thread / min(times)


def timed_reading(pool: ThreadPoolExecutor, blocks: list[NDArray[np.uint8]]) -> float:
    """Seconds for every thread to read its block once."""
    began = time.perf_counter()
    list(pool.map(read, blocks))
    return time.perf_counter() - began


def read(block: NDArray[np.uint8]) -> int:
    """Read every byte; return the greatest one."""
    return int(block.max())


def step_bytes(sizes: Mapping[str, int], positions: float, precision: str = STORED) -> float:
    """Bytes that one AR step of one row must read: every weight once, and the cache's keys and values.

    Products of the blocks and the group layers, and the cache, have the graph's precision. The output head,
    which is the code table (Eq. 7-11), biases, norms and the looked-up rows (one text id, G codes, `<bos>`,
    two positions) are not quantised.

    Args:
        sizes: the manifest's sizes. positions: filled cache positions. precision: the graph's.
    """
    width, group = sizes["d_model"], sizes["group_size"]
    inner = sizes["heads"] * head_width(sizes)
    products = sizes["layers"] * (4 * width * inner + 2 * width * sizes["ffn"])
    products += 2 * group * width * width if group > 1 else 0
    vectors = sizes["layers"] * (3 * inner + sizes["ffn"] + 6 * width) + 2 * width
    head, rows = 1025 * width, (group + 4) * width
    cache = sizes["layers"] * 2 * inner * positions
    weight, cached, other = number_bytes(precision)
    return weight * products + cached * cache + other * (head + vectors + rows)


def number_bytes(precision: str) -> tuple[float, float, float]:
    """Bytes of a product's weight (with its share of the block's scale), of a cached number, of any other."""
    if precision == "bf16":
        return (HALF.bits / 8,) * 3
    if precision == STORED:
        return FLOAT_BYTES, FLOAT_BYTES, FLOAT_BYTES
    method = METHODS[precision]["ar"]
    if method == HALF:
        return (method.bits / 8,) * 3
    return method.bits / 8 + FLOAT_BYTES / method.block, method.cache_bits / 8, FLOAT_BYTES


def matmul_peak(threads: int, *, integers: bool = False) -> float:
    """Operations per second of a product of a NAR's size in ONNX Runtime, the best of several.

    A multiplication and an addition are two operations. Needs `onnx`.
    """
    session, feeds = product(threads, integers)
    session.run(None, feeds)
    times = []
    for _ in range(PRODUCTS):
        began = time.perf_counter()
        session.run(None, feeds)
        times.append(time.perf_counter() - began)
    return 2 * ROWS * WIDTH * INNER / min(times)


def product(threads: int, integers: bool) -> tuple[Any, dict[str, Any]]:
    """A session of one product, (850, 1024) by a constant (1024, 4096), of 8-bit integers or of floats."""
    from onnx import TensorProto, helper

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
    onnxruntime = load_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    return session, {"a": left}


def prefill_operations(sizes: Mapping[str, int], positions: int) -> float:
    """Operations of an AR prefill. A position attends to those before it. Only the last one has logits.

    Args:
        sizes: the manifest's sizes. positions: text, marks and groups of the prompt.
    """
    width, group, layers = sizes["d_model"], sizes["group_size"], sizes["layers"]
    inner = sizes["heads"] * head_width(sizes)
    weights = layers * (4 * width * inner + 2 * width * sizes["ffn"])
    weights += group * width * width if group > 1 else 0
    return 2 * (weights * positions + layers * inner * positions**2)


def nar_operations(sizes: Mapping[str, int], positions: int, targets: int) -> float:
    """Operations of one NAR pass.

    Args:
        sizes: the manifest's sizes. positions: text, prompt, target and marks. targets: frames with logits.
    """
    width, ffn = sizes.get("nar_d_model", sizes["d_model"]), sizes.get("nar_ffn", sizes["ffn"])
    layers = sizes.get("nar_layers", sizes["layers"])
    weights = layers * (4 * width * width + 2 * width * ffn)
    return 2 * (weights * positions + 2 * layers * width * positions**2 + 1024 * width * targets)
