"""Weight-only precisions of TensorRT: what a matrix is stored in while the rest is float16."""

from __future__ import annotations

from dataclasses import dataclass

from valle2.engine.errors import BackendError

HALF = 2
LOWERING = "portable"


@dataclass(frozen=True, slots=True)
class Storage:
    """How the weight of a matrix product is stored behind a `DequantizeLinear`.

    kind: ONNX's name of the type. bits: of it. top: the greatest code. block: inputs that share a scale,
    0 for one scale per output. least_gpu: the least compute capability that has the type.
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
"""Per precision, what TensorRT's parser takes; found by building (docs/tensorrt.md)."""


@dataclass(frozen=True, slots=True)
class Width:
    """Bytes of a number: in the weight of a matrix product with its share of the scales, and elsewhere."""

    product: float
    other: float


WIDTHS = {"fp32": Width(4, 4), "fp16": Width(HALF, HALF), "bf16": Width(HALF, HALF)} | {
    name: Width(s.bits / 8 + (HALF / s.block if s.block else 0), HALF) for name, s in STORAGES.items()
}


def compute_precision(precision: str) -> str:
    """What is computed in: float16 where only the weights are smaller."""
    return "fp16" if precision in STORAGES else precision


def check_storage(precision: str, lowering: str, gpus: tuple[str, ...]) -> None:
    """Refuse what a weight-only precision cannot be built for.

    Raises:
        BackendError: a GPU without the type, or the primitive lowering, whose operators are older than it.
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
