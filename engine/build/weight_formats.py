"""Weight-only precisions of TensorRT: the types that store a matrix while the graph computes in float16."""

from __future__ import annotations

from dataclasses import dataclass

from valle2.engine.errors import BackendError

HALF_BYTES = 2
LOWERING = "portable"
"""The lowering that weight-only precisions need."""


@dataclass(frozen=True, slots=True)
class Storage:
    """How the weight of a matrix product is stored behind a `DequantizeLinear`.

    Args:
        kind: name of the type in ONNX. bits: its size. top: its greatest code.
        block: how many inputs share a scale, 0 for one scale per output.
        least_gpu: the lowest compute capability that has the type, such as 89.
    """

    kind: str
    bits: int
    top: int
    block: int = 0
    least_gpu: int = 0


STORAGES = {
    "int8": Storage("INT8", 8, 127),
    "int4": Storage("INT4", 4, 7, 32),
    "fp8": Storage("FLOAT8E4M3FN", 8, 448, 0, 89),
}
"""What TensorRT's parser takes in each precision, found by building (docs/tensorrt.md)."""


@dataclass(frozen=True, slots=True)
class Width:
    """Bytes of a number. product: in the weight of a matrix product, with its share of the scales."""

    product: float
    other: float


HALF = Width(HALF_BYTES, HALF_BYTES)
WIDTHS = {"fp32": Width(4, 4), "fp16": HALF, "bf16": HALF} | {
    name: Width(storage.bits / 8 + (HALF_BYTES / storage.block if storage.block else 0), HALF_BYTES)
    for name, storage in STORAGES.items()
}
"""The widths of every precision."""


def compute_precision(precision: str) -> str:
    """The precision that a graph computes in: float16 where only its weights are smaller."""
    return "fp16" if precision in STORAGES else precision


def check_storage(precision: str, lowering: str, gpus: tuple[str, ...]) -> None:
    """Refuse a lowering or GPU that a weight-only precision cannot be built for.

    Raises:
        BackendError: a GPU without the type, or a lowering whose operators are older than the type.
    """
    storage = STORAGES.get(precision)
    if storage is None:
        return
    if lowering != LOWERING:
        raise BackendError(
            f"precision {precision} takes the lowering {LOWERING} and the bundle has {lowering}; "
            f"use fp16, or export it with valle2 export --lowering {LOWERING}"
        )
    old = [gpu for gpu in gpus if int(gpu.removeprefix("sm")) < storage.least_gpu]
    if old:
        raise BackendError(
            f"{', '.join(old)} has no {precision}; it takes sm{storage.least_gpu} or later: use int8"
        )
