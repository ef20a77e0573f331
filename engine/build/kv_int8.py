"""KV caches of the AR in 8 bits, with one scale for every channel of keys and values. No torch.

A step reads every position of the cache. In float32 this takes more bytes than 8-bit weights do from about
1,600 positions on, and from fewer if several rows share a step. The scales are constants of the graph. They
are measured when it is built: the float32 graph reads random tokens and codes, and its caches give the range
of every channel.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from valle2.engine.backends.base import Backend
from valle2.engine.backends.registry import open_backend
from valle2.engine.bundle.contract import CACHE_PREFIX, CODEBOOK_SIZE, OUT_SUFFIX
from valle2.engine.bundle.specs import GraphSpec

GREATEST, LEAST_SCALE = 127, 1e-12
TOKENS, FRAMES, ROWS = 100, 400, 4
"""Random tokens, frames of random codes, and rows of these, to measure the ranges with."""
MARGIN = 2.0
"""Speech has wider ranges than random codes, and values beyond a range are clipped (docs/precision.md)."""
ATTRIBUTES = {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": 8}
KEY_AND_VALUE, SCALES = (3, 4), (12, 13)
"""Indices of the caches and of their scales among the inputs of `GroupQueryAttention`."""

Ranges = dict[str, NDArray[np.float32]]
"""By cache, the greatest absolute value of each channel: (heads, head width)."""


def cache_ranges(folder: Path, spec: GraphSpec, sizes: Mapping[str, int]) -> Ranges:
    """Measure the ranges of the caches by running the AR graph over random rows. sizes: the manifest's."""
    group = sizes["group_size"]
    words, groups = min(TOKENS, sizes["max_text"]), min(FRAMES, sizes["max_frames"]) // group
    found: Ranges = {}
    with open_backend(folder, spec) as backend:
        for seed in range(ROWS):
            filled = whole_caches(backend, random_prefix(sizes, words, groups, seed))
            for name, values in filled.items():
                found[name] = np.maximum(found.get(name, 0), np.abs(values[0]).max(axis=1))
    return found


def random_prefix(sizes: Mapping[str, int], words: int, groups: int, seed: int) -> dict[str, NDArray[Any]]:
    """Random tokens and codes of one row, as inputs of an AR graph."""
    draws, length = np.random.default_rng(seed), words + 1 + groups
    text = np.zeros((1, length), np.int64)
    codes = np.zeros((1, length, sizes["group_size"]), np.int64)
    text[0, :words] = draws.integers(0, sizes["vocab_size"], words)
    codes[0, words + 1 :] = draws.integers(0, CODEBOOK_SIZE, codes[0, words + 1 :].shape)
    return {"text": text, "codes": codes, "text_lengths": np.array([words])}


def whole_caches(backend: Backend, prefix: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
    """The caches (1, heads, positions, head width) that an AR graph makes of a prefix in one call."""
    caches = [tensor for tensor in backend.spec.inputs if tensor.name.startswith(CACHE_PREFIX)]
    _, length, group = prefix["codes"].shape
    feeds: dict[str, NDArray[Any]] = {
        **prefix,
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
        feeds[cache.name] = np.zeros((1, int(cache.axes[1]), length, int(cache.axes[3])), np.float32)
    found = backend.run(feeds, tuple(f"{cache.name}{OUT_SUFFIX}" for cache in caches))
    return {cache.name: found[f"{cache.name}{OUT_SUFFIX}"] for cache in caches}


def store_caches(model: onnx.ModelProto, ranges: Ranges) -> None:
    """Change the graph so that every `GroupQueryAttention` keeps its caches in 8 bits.

    A value x of a channel with range r becomes round(127 x / (`MARGIN` r)). ranges: see `cache_ranges`.
    """
    for node in model.graph.node:
        if node.op_type == "GroupQueryAttention":
            scales = [channel_scales(node.input[place], ranges) for place in KEY_AND_VALUE]
            model.graph.initializer.extend(scales)
            inputs = [*node.input, *[""] * (SCALES[1] + 1 - len(node.input))]
            for place, tensor in zip(SCALES, scales, strict=True):
                inputs[place] = tensor.name
            node.ClearField("input")
            node.input.extend(inputs)
            node.attribute.extend(helper.make_attribute(name, value) for name, value in ATTRIBUTES.items())
    for value in (*model.graph.input, *model.graph.output):
        if value.name.startswith(CACHE_PREFIX):
            value.type.tensor_type.elem_type = TensorProto.INT8
    model.graph.ClearField("value_info")


def channel_scales(cache: str, ranges: Mapping[str, NDArray[np.float32]]) -> TensorProto:
    """The scale of every channel of a cache, (1, heads, 1, head width) float32."""
    steps = np.maximum(MARGIN * ranges[cache] / GREATEST, LEAST_SCALE).astype(np.float32)
    return numpy_helper.from_array(steps[None, :, None, :], f"{cache}_scales")
