"""A recipe: how the weights of built graphs follow from the stored ones, as JSON that reads no graph.

`engine.build.recipe` writes it beside the built graphs and their `build.json`, instead of the weights. A part
of a file of weights is one of:

- `copy`: bytes of a stored file. `constant`: bytes of the file `constants.bin`.
- `blocks`, `dynamic`: codes and scales of a stored matrix, see `codes`.

Bytes that no part names are zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from valle2.engine.bundle.artifacts import read_record
from valle2.engine.bundle.schema import entries, listed, whole, with_keys
from valle2.engine.derived.codes import Weight, block_codes, dynamic_codes

FILE, CONSTANTS = "recipe.json", "constants.bin"
COPY, CONSTANT, BLOCKS, DYNAMIC = "copy", "constant", "blocks", "dynamic"
FLOATS = ("float16", "float32")
MATRIX = ("codes", "scales", "scales_type", "from", "type", "shape", "transposed")
PARTS: dict[str, tuple[str, ...]] = {
    COPY: ("at", "from", "bytes"),
    CONSTANT: ("at", "from", "bytes"),
    BLOCKS: (*MATRIX, "bits", "block"),
    DYNAMIC: MATRIX,
}
"""What a part of each kind says, besides its kind: places in the made file, and in the file that is read."""
MAX_BYTES = 2**31
MOST_READ = 2
"""Whatever a recipe makes is smaller than what it is made of, and no part of that is read twice."""
Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class WeightFile:
    """One file of weights to make. source: the stored file that it is made from. bytes: its size."""

    source: str
    bytes: int
    parts: tuple[dict[str, Any], ...]

    def make(self, stored: Bytes, constants: Bytes) -> Bytes:
        """The file's bytes. stored, constants: (N,) uint8, of the files that are read.

        Raises:
            ValueError: a part lies outside of a file, or the parts read more than MOST_READ times what there
                is, so that the recipe is not of these files.
        """
        most = MOST_READ * (len(stored) + len(constants))
        if max(self.bytes, sum(map(bytes_read, self.parts))) > most:
            raise ValueError(f"a recipe reads or makes more than {most} bytes")
        out = np.zeros(self.bytes, np.uint8)
        for part in self.parts:
            kind = part["kind"]
            if kind in (COPY, CONSTANT):
                taken = span(stored if kind == COPY else constants, part["from"], part["bytes"])
                span(out, part["at"], part["bytes"])[:] = taken
                continue
            weight = matrix(stored, part)
            made: tuple[NDArray[Any], Weight] = dynamic_codes(weight)
            if kind == BLOCKS:
                made = block_codes(weight, part["bits"], part["block"])
            codes, scales = made[0], made[1].astype(part["scales_type"])
            for name, values in (("codes", codes), ("scales", scales)):
                if part[name] is not None:  # small scales are in the graph's own file
                    data = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
                    span(out, part[name], len(data))[:] = data
        return out


def read_recipe(folder: Path) -> dict[str, WeightFile] | None:
    """The files of weights to make, by name; None where there is no recipe that can be read."""
    return read_record(folder / FILE, parse_recipe)


def parse_recipe(value: object) -> dict[str, WeightFile]:
    """A recipe of parsed JSON; a ValueError says what is wrong with it."""
    made = {}
    for name, found in entries("a recipe", value).items():
        names = ("source", "bytes", "parts")
        file = with_keys(name, found, names, names)
        parts = tuple(check_part(part) for part in listed(f"{name}.parts", file["parts"], 4096))
        if any("/" in each or "\\" in each or not isinstance(each, str) for each in (name, file["source"])):
            raise ValueError("a recipe names files beside it alone")
        made[name] = WeightFile(file["source"], whole("bytes", file["bytes"], (0, MAX_BYTES)), parts)
    return made


def check_part(value: object) -> dict[str, Any]:
    """A part of parsed JSON; a ValueError says what is wrong with it."""
    kind = value.get("kind") if isinstance(value, dict) else None
    if kind not in PARTS:
        raise ValueError(f"a part has the kind {kind!r}; expected one of {', '.join(PARTS)}")
    part = with_keys("a part", value, ("kind", *PARTS[kind]), ("kind", *PARTS[kind]))
    for name, size in part.items():
        if name in ("type", "scales_type"):
            if size not in FLOATS:
                raise ValueError(f"{name} is {size!r}; expected one of {', '.join(FLOATS)}")
        elif name == "shape":
            for axis in listed("shape", size, 2):
                whole("an axis", axis, (1, 2**20))
            if len(size) != 2:
                raise ValueError(f"a shape has {len(size)} axes; expected 2")
        elif name == "transposed":
            if not isinstance(size, bool):
                raise ValueError("transposed is neither true nor false")
        elif name == "bits":
            if size not in (4, 8):
                raise ValueError(f"bits is {size!r}; expected 4 or 8")
        elif name != "kind" and (name, size) != ("scales", None):
            whole(name, size, (16 if name == "block" else 0, MAX_BYTES))
    return part


def bytes_read(part: Mapping[str, Any]) -> int:
    """How many bytes a part reads."""
    if part["kind"] in (COPY, CONSTANT):
        return int(part["bytes"])
    return int(np.dtype(part["type"]).itemsize * part["shape"][0] * part["shape"][1])


def span(data: Bytes, start: int, count: int) -> Bytes:
    """`count` bytes from `start` on.

    Raises:
        ValueError: they lie outside.
    """
    if start + count > len(data):
        raise ValueError(f"bytes {start}..{start + count} of {len(data)}")
    return data[start : start + count]


def matrix(stored: Bytes, part: Mapping[str, Any]) -> Weight:
    """The stored matrix of a part, (K, N) float32."""
    kind, shape = np.dtype(part["type"]).newbyteorder("<"), part["shape"]
    values = span(stored, part["from"], kind.itemsize * shape[0] * shape[1]).view(kind).reshape(shape)
    return np.ascontiguousarray((values.T if part["transposed"] else values).astype(np.float32))
