"""The AR's caches in 8 bits: a scale for every channel of keys and values, and the graph that keeps them so.

A step reads every position of the cache, which in float32 takes more bytes than 8-bit weights from some
1,600 positions on, and much earlier where rows share a step. Scales are fixed before anything is spoken: the
graph reads random tokens and codes, and what it keeps of them says how far a channel goes. No torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from valle2.engine.backends.registry import open_backend
from valle2.engine.bundle.contract import CACHE_PREFIX, CODEBOOK_SIZE, OUT_SUFFIX
from valle2.engine.bundle.specs import GraphSpec

TOP, LEAST_SCALE = 127, 1e-12
TOKENS, FRAMES, ROWS = 100, 400, 4
"""Of text, of codes, and how often: what is drawn to see how far the channels go."""
MARGIN = 2.0
"""Speech goes farther than random codes do, and what is beyond a scale is cut off (docs/precision.md)."""
KINDS = {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": 8}
KEY_AND_VALUE, SCALES = (3, 4), (12, 13)
"""Places in `GroupQueryAttention`: the caches, and their scales."""

Ranges = dict[str, NDArray[np.float32]]
"""By cache, the greatest size of each channel: (heads, head width)."""


def cache_ranges(folder: Path, spec: GraphSpec, sizes: Mapping[str, int]) -> Ranges:
    """Run the AR graph of a folder over random rows. sizes: the manifest's."""
    group, caches = sizes["group_size"], [t for t in spec.inputs if t.name.startswith(CACHE_PREFIX)]
    words, groups = min(TOKENS, sizes["max_text"]), min(FRAMES, sizes["max_frames"]) // group
    length = words + 1 + groups
    found: Ranges = {}
    with open_backend(folder, spec) as backend:
        for seed in range(ROWS):
            draws = np.random.default_rng(seed)
            text, codes = np.zeros((1, length), np.int64), np.zeros((1, length, group), np.int64)
            text[0, :words] = draws.integers(0, sizes["vocab_size"], words)
            codes[0, words + 1 :] = draws.integers(0, CODEBOOK_SIZE, (groups, group))
            feeds: dict[str, NDArray[Any]] = {
                "text": text,
                "codes": codes,
                "text_lengths": np.array([words]),
                "past_lengths": np.zeros(1, np.int64),
                "new_lengths": np.array([length]),
                "steps": np.zeros(1, np.int64),
                "history": np.full((1, 1), -1),
                "uniforms": np.zeros((1, 1, group, 2), np.float32),
                "top_p": np.zeros(1, np.float32),
                "repeat_window": np.ones(1, np.int64),
                "threshold": np.ones(1, np.float32),
            }
            for cache in caches:
                heads, width = int(cache.axes[1]), int(cache.axes[3])
                feeds[cache.name] = np.zeros((1, heads, length, width), np.float32)
            kept = backend.run(feeds, tuple(f"{cache.name}{OUT_SUFFIX}" for cache in caches))
            for cache in caches:
                reached = np.abs(kept[f"{cache.name}{OUT_SUFFIX}"][0]).max(axis=1)
                found[cache.name] = np.maximum(found.get(cache.name, 0), reached)
    return found


def store_caches(model: onnx.ModelProto, ranges: Ranges) -> None:
    """Keep the caches of every `GroupQueryAttention` in 8 bits, in place.

    ranges: see `cache_ranges`. A number x of a channel that goes up to r becomes round(127 x / (`MARGIN` r)).
    """
    for node in model.graph.node:
        if node.op_type == "GroupQueryAttention":
            scales = [scale(node.input[place], ranges) for place in KEY_AND_VALUE]
            model.graph.initializer.extend(scales)
            inputs = [*node.input, *[""] * (SCALES[1] + 1 - len(node.input))]
            for place, tensor in zip(SCALES, scales, strict=True):
                inputs[place] = tensor.name
            node.ClearField("input")
            node.input.extend(inputs)
            node.attribute.extend(helper.make_attribute(name, value) for name, value in KINDS.items())
    for value in (*model.graph.input, *model.graph.output):
        if value.name.startswith(CACHE_PREFIX):
            value.type.tensor_type.elem_type = TensorProto.INT8
    model.graph.ClearField("value_info")


def scale(cache: str, ranges: Mapping[str, NDArray[np.float32]]) -> TensorProto:
    """The steps of a cache's channels, (1, heads, 1, head width)."""
    steps = np.maximum(MARGIN * ranges[cache] / TOP, LEAST_SCALE).astype(np.float32)
    return numpy_helper.from_array(steps[None, :, None, :], f"{cache}_scales")
