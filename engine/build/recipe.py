"""Replaces the weights of built graphs by the recipe that makes them from the stored ones.

Parts are found by their content: whatever of a built file the rules of `derived.codes` make from a stored
matrix needs no bytes, nor does what the stored file has too. The rest, such as scales of caches, is kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto
from onnx.external_data_helper import ExternalDataInfo

from valle2.engine.bundle.precisions import Method
from valle2.engine.bundle.specs import GraphSpec
from valle2.engine.derived.codes import Weight, block_codes, dynamic_codes
from valle2.engine.derived.recipe import (
    BLOCKS,
    CONSTANT,
    CONSTANTS,
    COPY,
    DYNAMIC,
    FILE,
    Bytes,
    WeightFile,
    matrix,
)
from valle2.engine.errors import BackendError

FLOATS: dict[int, str] = {TensorProto.FLOAT16: "float16", TensorProto.FLOAT: "float32"}
Part = dict[str, Any]
Placed = tuple[TensorProto, int, Bytes]
"""A weight outside of its graph: its entry, where it begins in the file, and its bytes."""


def write_recipe(bundle: Path, made: Path, graphs: list[tuple[GraphSpec, GraphSpec, Method]]) -> None:
    """Replace the weights in the folder `made` by a recipe.

    Args:
        bundle: with the stored graphs. made: with the built ones.
        graphs: each stored graph, what was built of it, and how. What is built may also read the weights of
            an earlier one.

    Raises:
        BackendError: the recipe does not make the same bytes.
    """
    constants, recipe = bytearray(), dict[str, Any]()
    for spec, result, method in graphs:
        stored = [*placed(bundle / spec.file)]
        built = [each for each in placed(made / result.file) if location(each) not in recipe]
        sources, targets = ({location(each) for each in found} for found in (stored, built))
        if len(sources) != 1 or len(targets) != 1:
            raise BackendError(f"{spec.file}: expected one file of weights, found {sources} and {targets}")
        (source,), (target,) = sources, targets
        whole = np.fromfile(made / target, np.uint8)
        parts = list(rounded(stored, built, method))
        known = {part[name] for part in parts for name in ("codes", "scales")}
        parts += others(stored, [each for each in built if each[1] not in known], constants)
        recipe[target] = {"source": source, "bytes": len(whole), "parts": parts}
        again = WeightFile(source, len(whole), tuple(parts)).make(
            np.fromfile(bundle / source, np.uint8), np.frombuffer(bytes(constants), np.uint8)
        )
        if not np.array_equal(again, whole):
            raise BackendError(f"{target} does not follow from {source}; build without --recipe")
    for target in recipe:
        (made / target).unlink()
    (made / CONSTANTS).write_bytes(constants)
    (made / FILE).write_text(json.dumps(recipe, separators=(",", ":")) + "\n", encoding="utf-8")


def location(weight: Placed) -> str:
    """Name of the file that holds a weight."""
    return str(ExternalDataInfo(weight[0]).location)


def placed(path: Path) -> Iterator[Placed]:
    """The weights that lie outside of a graph."""
    for weight in onnx.load(str(path), load_external_data=False).graph.initializer:
        if weight.external_data:
            at = ExternalDataInfo(weight)
            data = np.memmap(path.parent / at.location, np.uint8, "r")
            start = at.offset or 0
            yield weight, start, data[start : start + (at.length or 0)]


def rounded(stored: list[Placed], built: list[Placed], method: Method) -> Iterator[Part]:
    """Parts of the built file that are codes and scales of a stored matrix."""
    places = {data.tobytes(): start for _, start, data in built}
    for weight, start, data in stored:
        if weight.data_type not in FLOATS or len(weight.dims) != 2:
            continue
        for transposed in (False, True):
            part = {"from": start, "type": FLOATS[weight.data_type], "shape": list(weight.dims)}
            part["transposed"] = transposed
            values = matrix(data, part | {"from": 0})
            made: tuple[NDArray[Any], Weight]
            if method.kind == "blocks":
                part |= {"kind": BLOCKS, "bits": method.bits, "block": method.block}
                made = block_codes(values, method.bits, method.block)
            else:
                part["kind"] = DYNAMIC
                made = dynamic_codes(values)
            codes, scales = made[0].tobytes(), made[1]
            if codes in places:
                half = places.get(scales.astype(np.float16).tobytes())  # if that is exact, it is stored so
                place = places.get(scales.tobytes(), half)  # None for scales inside the graph's file
                kind = FLOATS[TensorProto.FLOAT if half is None else TensorProto.FLOAT16]
                yield part | {"codes": places[codes], "scales": place, "scales_type": kind}


def others(stored: list[Placed], built: list[Placed], constants: bytearray) -> Iterator[Part]:
    """Parts that are copied from the stored file or kept, unless they are zero. constants: is extended."""
    places = {data.tobytes(): start for _, start, data in stored}
    for start, data in {start: data for _, start, data in built}.items():
        content = data.tobytes()
        if content in places:
            yield {"kind": COPY, "at": start, "from": places[content], "bytes": len(content)}
        elif any(content):
            yield {"kind": CONSTANT, "at": start, "from": len(constants), "bytes": len(content)}
            constants += content
