"""What every benchmark reports: terms, percentiles, and what the figures were measured on.

Terms: RTF = compute seconds / audio seconds of one stream (lower is better); throughput = audio seconds per
second over all streams; first audio = request to first playable sample; step = one AR position of G codes;
prefill = everything up to the first group; underrun = playback that waits for audio.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime

from valle2.engine import Manifest
from valle2.engine.bundle.precisions import HALF, METHODS, STORED
from valle2.engine.bundle.schema import head_width
from valle2.engine.errors import Valle2Error
from valle2.runtime import Valle2

FLOAT_BYTES = 4
EDGE = 100


def percentiles(seconds: Sequence[float], *points: int) -> dict[str, float]:
    """Percentiles in milliseconds, by name `p50`, `p95`, ..."""
    return {f"p{point}": round(1000 * float(np.percentile(seconds, point)), 2) for point in points}


def ratio_percentiles(values: Sequence[float], *points: int) -> dict[str, float]:
    """Percentiles of plain numbers, by the same names."""
    return {f"p{point}": round(float(np.percentile(values, point)), 4) for point in points}


def share(amount: float, rate: float, seconds: float) -> float | None:
    """Of what the rate would do in these seconds; None where no rate was measured."""
    return round(amount / rate / seconds, 3) if rate else None


def slope(points: Mapping[int, float]) -> float:
    """Least squares."""
    return float(np.polyfit(list(points), list(points.values()), 1)[0]) if len(points) > 1 else 0.0


def growth(mib: Sequence[float]) -> dict[str, float]:
    """Memory after each request: means of both ends, and the slope over the second half.

    In the first half buffers grow to their size.
    """
    edge = min(EDGE, max(1, len(mib) // 2))
    later = dict(enumerate(mib[len(mib) // 2 :]))
    return {
        "first_mib": round(float(np.mean(mib[:edge])), 2),
        "last_mib": round(float(np.mean(mib[-edge:])), 2),
        "mib_per_100_requests": round(100 * slope(later), 3),
    }


def measured_on(tts: Valle2, seed: int, threads: int) -> dict[str, Any]:
    """Model, machine and versions."""
    return about(tts.manifest, seed, threads)


def about(manifest: Manifest, seed: int, threads: int) -> dict[str, Any]:
    """The same of a model that is not loaded here."""
    return {
        "model": manifest.name,
        "group_size": manifest.sizes["group_size"],
        "checkpoint_sha256": manifest.provenance.get("checkpoint_sha256", ""),
        "seed": seed,
        "threads": threads,
        "versions": {"onnxruntime": onnxruntime.__version__, "python": platform.python_version()},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }


def need_positive(**values: float) -> None:
    """Refuse sizes that measure nothing."""
    for name, value in values.items():
        if not value > 0:
            raise Valle2Error(f"--{name.replace('_', '-')} is {value}; expected more than 0")


def markdown(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def step_bytes(sizes: Mapping[str, int], positions: float, precision: str = STORED) -> float:
    """Bytes that one AR step of a row must read: every weight once, and the cache's keys and values.

    sizes: the manifest's. positions: filled cache positions. precision: the graph's, which is that of the
    blocks' and the group layers' products and of the cache. The head, which is the code table (Eq. 7-11),
    biases, norms and the rows that are looked up (a text token, G codes, `<bos>`, two positions) are not
    quantised.
    """
    width, group = sizes["d_model"], sizes["group_size"]
    inner = sizes["heads"] * head_width(sizes)
    products = sizes["layers"] * (4 * width * inner + 2 * width * sizes["ffn"])
    products += 2 * group * width * width if group > 1 else 0
    vectors = sizes["layers"] * (3 * inner + sizes["ffn"] + 6 * width) + 2 * width
    head, rows = 1025 * width, (group + 4) * width
    cache = sizes["layers"] * 2 * inner * positions
    weight, kept, other = number_bytes(precision)
    return weight * products + kept * cache + other * (head + vectors + rows)


def number_bytes(precision: str) -> tuple[float, float, float]:
    """Bytes of a product's weight, with its share of the block's scale, of a cached number, of any other."""
    if precision == STORED:
        return FLOAT_BYTES, FLOAT_BYTES, FLOAT_BYTES
    method = METHODS[precision]["ar"]
    if method == HALF:
        return (method.bits / 8,) * 3
    return method.bits / 8 + FLOAT_BYTES / method.block, method.cache_bits / 8, FLOAT_BYTES
