"""Weight-only precisions of TensorRT: what a matrix is stored in while the rest stays float16. No onnx."""

from __future__ import annotations

from dataclasses import dataclass

HALF = 2


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
