"""`python -m valle2.engine.build.interpreter BUNDLE`: parity of interpreted networks, as a Markdown table.

Every graph runs in both lowerings on random inputs, beside ONNX Runtime on the CPU with the same file. Exits
with status 1 if a difference is above the tolerance, or a code differs.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

from valle2.engine.backends.base import Array
from valle2.engine.backends.placement import Placement
from valle2.engine.backends.registry import open_backend
from valle2.engine.build.interpreter.backend import interpret_graph
from valle2.engine.bundle.contract import CODEBOOK_SIZE
from valle2.engine.bundle.manifest import Manifest, read_manifest
from valle2.engine.bundle.specs import GraphSpec, TensorSpec
from valle2.engine.errors import BackendError

TOLERANCE = 1e-4
ROWS, POSITIONS, TEXT, FRAMES, PROMPT = 2, 7, 9, 24, 5
"""Sizes of the random inputs: rows, new positions, text ids, frames, and frames of prompt among them."""


def example_feeds(manifest: Manifest, spec: GraphSpec, rng: np.random.Generator) -> dict[str, Array]:
    """Random inputs: rows of different lengths, the AR's over caches that are partly filled."""
    return {tensor.name: example(manifest, tensor, rng).astype(tensor.dtype) for tensor in spec.inputs}


def example(manifest: Manifest, tensor: TensorSpec, rng: np.random.Generator) -> Array:
    """One random input."""
    known = {
        "batch": ROWS,
        "new": POSITIONS,
        "draws": 4,
        "slots": 10,
        "tokens": TEXT,
        "frames": FRAMES,
        "samples": FRAMES * int(manifest.codec.get("hop", 1)),
    }
    shape = [axis if isinstance(axis, int) else known[axis] for axis in tensor.axes]
    values: dict[str, Any] = {
        "text": lambda: rng.integers(0, manifest.sizes["vocab_size"], shape),
        "codes": lambda: rng.integers(0, CODEBOOK_SIZE, shape),
        "text_lengths": lambda: np.array([POSITIONS - 2, POSITIONS - 4]),
        "past_lengths": lambda: np.array([3, 9]),
        "new_lengths": lambda: np.array([POSITIONS, POSITIONS - 3]),
        "prompt_lengths": lambda: np.full(shape, PROMPT),
        "frame_lengths": lambda: np.array([FRAMES, FRAMES - 4]),
        "stage": lambda: np.full(shape, 2),
        "steps": lambda: np.zeros(shape),
        "history": lambda: np.full(shape, -1),
        "repeat_window": lambda: np.full(shape, 10),
        "started": lambda: np.zeros(shape),
    }
    return np.asarray(values[tensor.name]() if tensor.name in values else rng.random(shape) * 0.5)


def difference(found: dict[str, Array], expected: dict[str, Array]) -> tuple[float, int]:
    """The greatest difference of the float outputs, and how many values of the others differ."""
    floats = [name for name, value in expected.items() if value.dtype.kind == "f"]
    worst = max((float(np.abs(found[n] - expected[n]).max()) for n in floats), default=0.0)
    return worst, sum(int(np.sum(found[n] != expected[n])) for n in set(expected) - set(floats))


def main(bundle: Path, target: str) -> int:
    """Print the table; returns the exit status."""
    manifest, status = read_manifest(bundle), 0
    print("| graph | lowering | layers | greatest difference | codes that differ |\n|---|---|---|---|---|")
    for lowering in ("portable", "primitive"):
        chosen = manifest.in_lowering((lowering,), target)
        for name, spec in chosen.graphs.items():
            network = interpret_graph(bundle, spec, target=target)
            feeds = example_feeds(chosen, spec, np.random.default_rng(0))
            expected = open_backend(bundle, spec, Placement(threads=1)).run(feeds)
            worst, other = difference(network.run(feeds), expected)
            layers = network.network.parsed.network.num_layers
            print(f"| {name} | {lowering} | {layers} | {worst:.1e} | {other} |")
            status |= int(not worst <= TOLERANCE or other > 0)
    return status


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("bundle", type=Path, help="a bundle's folder with both lowerings")
    parser.add_argument("--target", default="tensorrt-rtx", help="the edition whose parser is used")
    args = parser.parse_args()
    try:
        sys.exit(main(args.bundle, args.target))
    except BackendError as error:
        sys.exit(f"error: {error}")
