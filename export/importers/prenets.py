"""lifeiteng's optional layers between embedding and positions, on our modules.

A batch norm is folded into the convolution before it. half: `ar` or `nar`.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from valle2.export.models.layers import PRENET_CONVOLUTIONS, PRENET_KERNEL, PRENET_WIDTH
from valle2.export.weights.tensors import Claims

BATCH_NORM_EPSILON = 1e-5
Weights = dict[str, Tensor]


def text_prenet(claims: Claims, half: str, width: int) -> Weights:
    """Convolutions with their batch norms folded in, and the linear layer."""
    source = f"{half}_text_prenet"
    found = Weights()
    for index in range(PRENET_CONVOLUTIONS):
        here, after = 1 + 4 * index, 2 + 4 * index
        weight = claims.take(f"{source}.{here}.weight", width, width, PRENET_KERNEL).double()
        bias = claims.take(f"{source}.{here}.bias", width).double()
        names = ("weight", "bias", "running_mean", "running_var")
        gain, shift, mean, variance = (
            claims.take(f"{source}.{after}.{name}", width).double() for name in names
        )
        scale = gain / (variance + BATCH_NORM_EPSILON).sqrt()
        target = f"text_prenet.convolutions.{index}"
        found[f"{target}.weight"] = (weight * scale[:, None, None]).float()
        found[f"{target}.bias"] = ((bias - mean) * scale + shift).float()
    last = 2 + 4 * PRENET_CONVOLUTIONS
    found["text_prenet.out.weight"] = claims.take(f"{source}.{last}.weight", width, width)
    found["text_prenet.out.bias"] = claims.take(f"{source}.{last}.bias", width)
    return found


def code_prenet(claims: Claims, half: str, width: int) -> Weights:
    """The three linear layers before the positions of the codes."""
    widths = (width, PRENET_WIDTH, PRENET_WIDTH, width)
    found = Weights()
    for index, (source, before, after) in enumerate(zip((0, 3, 6), widths[:3], widths[1:], strict=True)):
        name = f"{half}_audio_prenet.{source}"
        found[f"code_prenet.{2 * index}.weight"] = claims.take(f"{name}.weight", after, before)
        found[f"code_prenet.{2 * index}.bias"] = claims.take(f"{name}.bias", after)
    return found


def through_prenet(table: Tensor, layers: Weights) -> Tensor:
    """Every row of a table through the code prenet."""
    for index in range(3):
        weight, bias = (layers[f"code_prenet.{2 * index}.{kind}"] for kind in ("weight", "bias"))
        table = functional.linear(table.relu() if index else table, weight, bias)
    return table
