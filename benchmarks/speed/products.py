"""`bench products`: one matrix product in every way that the precisions of a CPU could write it.

Each way takes its turn. Times are the least processor time of the turns, which other load of the machine
hardly changes. The ways are those of `build.quantize`; `int8` and `int4` are those of an AR step. Needs
`onnx`.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from valle2.benchmarks.options import need_positive
from valle2.benchmarks.report.tables import markdown
from valle2.engine.build.quantize import DOMAIN, quantise
from valle2.engine.bundle.contract import AR
from valle2.engine.bundle.precisions import DYNAMIC, METHODS, ROWS

SHAPES = ((256, 1024), (1024, 4096))
"""Inputs and outputs of the first product of a feed-forward network: of the demo, and at the paper's size."""
COUNTS = (1, 16, 64, 256)
Floats = NDArray[np.float32]
Result = dict[str, Any]


def products(repeats: int, seed: int, threads: int) -> Result:
    """Milliseconds of every way to compute a product, by shape and rows."""
    need_positive(repeats=repeats, threads=threads)
    draws, lines = np.random.default_rng(seed), []
    for inputs, outputs in SHAPES:
        weight = (0.02 * draws.standard_normal((inputs, outputs))).astype(np.float32)
        sessions = {name: opened(model, threads) for name, model in ways(weight).items()}
        for rows in COUNTS:
            x = draws.standard_normal((1, rows, inputs)).astype(np.float32)
            times = dict.fromkeys(sessions, float("inf"))
            for turn in range(repeats + 1):
                for name, session in sessions.items():
                    began = time.process_time()
                    session.run(None, {"x": x})
                    took = time.process_time() - began
                    times[name] = min(times[name], took) if turn else times[name]
            ms = {name: round(1000 * seconds, 3) for name, seconds in times.items()}
            lines.append({"inputs": inputs, "outputs": outputs, "rows": rows, "ms": ms})
    return {"products": lines, "repeats": repeats, "threads": threads, "seed": seed}


def ways(weight: Floats) -> dict[str, ModelProto]:
    """The product with a weight (K, N) and a bias, by name."""
    made = {"fp32": graph(weight)}
    methods = {"rows": ROWS, "int8": METHODS["int8"][AR], "int4": METHODS["int4"][AR], "dynamic": DYNAMIC}
    for name, method in methods.items():
        made[name] = graph(weight)
        quantise(made[name], method)
    return made


def graph(weight: Floats) -> ModelProto:
    """`y` (1, S, N) = `x` (1, S, K) times a weight (K, N), plus a bias."""
    nodes = [helper.make_node("MatMul", ["x", "w"], ["p"]), helper.make_node("Add", ["p", "b"], ["y"])]
    return model(nodes, weight.shape, {"w": weight, "b": np.ones(weight.shape[1], np.float32)})


def model(nodes: list[NodeProto], shape: tuple[int, ...], values: dict[str, NDArray[Any]]) -> ModelProto:
    """A graph from `x` (1, S, K) to `y` (1, S, N). shape: K and N."""
    x, y = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, "rows", size])
        for name, size in zip("xy", shape, strict=True)
    )
    tensors = [numpy_helper.from_array(value, name) for name, value in values.items()]
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(
        helper.make_graph(nodes, "product", [x], [y], tensors), opset_imports=opsets, ir_version=10
    )


def opened(made: ModelProto, threads: int) -> Any:
    """A session of a graph."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(made.SerializeToString(), options, ["CPUExecutionProvider"])


def table(result: Result) -> str:
    """Milliseconds as a Markdown table."""
    names = list(result["products"][0]["ms"])
    rows = [
        [f"{line['inputs']} to {line['outputs']}", line["rows"], *line["ms"].values()]
        for line in result["products"]
    ]
    return markdown(["product", "rows", *(f"{name}, ms" for name in names)], rows)
