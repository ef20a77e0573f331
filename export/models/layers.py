"""Layers of the Transformer blocks, one per choice of `Style`.

They know widths and kinds, never text, codes or caches. Axes: B batch, S positions, d width, H heads,
D head width.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from valle2.export.models.config import Style

INIT_STD = 0.02
EPSILON = {"layer": 1e-5, "rms": 1e-6, "l2": 1e-5}
ROTARY_BASE = 10000.0
PRENET_KERNEL = 5
PRENET_CONVOLUTIONS = 3
PRENET_WIDTH = 256
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "relu": functional.relu,
    "silu": functional.silu,
}
Angles = tuple[Tensor, Tensor]
"""Cosines and sines (B, S, 1, D/2) of a rotary position."""


def initialise(module: nn.Module) -> None:
    """Draw tables and matrices from N(0, 0.02) and set biases to zero."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=INIT_STD)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)


class Norm(nn.Module):
    """Normalisation of the last axis with a gain, and for "layer" a shift.

    stages: 0 for one gain; otherwise a gain and shift per NAR stage, with an unused row 0.
    """

    def __init__(self, width: int, kind: str, stages: int = 0) -> None:
        super().__init__()
        shape = (stages, width) if stages else (width,)
        self.kind, self.staged = kind, stages > 0
        self.weight = nn.Parameter(torch.ones(shape))
        self.bias = nn.Parameter(torch.zeros(shape)) if kind == "layer" else None

    def forward(self, x: Tensor, stage: Tensor | None = None) -> Tensor:
        """x (B, S, d) -> the same shape. stage: () int64, if there is a gain per stage."""
        weight, bias = self.row(self.weight, stage), self.row(self.bias, stage)
        assert weight is not None
        epsilon = EPSILON[self.kind]
        if self.kind == "layer":
            return functional.layer_norm(x, x.shape[-1:], weight, bias, epsilon)
        if self.kind == "rms":
            return x * torch.rsqrt((x * x).mean(dim=-1, keepdim=True) + epsilon) * weight
        length = (x * x).sum(dim=-1, keepdim=True).sqrt().clamp(min=epsilon)
        return x / length * math.sqrt(x.shape[-1]) * weight

    def row(self, table: Tensor | None, stage: Tensor | None) -> Tensor | None:
        """The gain or shift of a stage, or the only one."""
        if not self.staged or table is None:
            return table
        assert stage is not None
        return table.index_select(0, stage.reshape(1))[0]


class Activation(nn.Module):
    """The feed-forward activation. If gated, the first half of the input gates the second."""

    def __init__(self, style: Style) -> None:
        super().__init__()
        self.activation, self.gated = ACTIVATIONS[style.activation], style.gated

    def forward(self, x: Tensor) -> Tensor:
        if not self.gated:
            return self.activation(x)
        gate, value = x.chunk(2, dim=-1)
        return self.activation(gate) * value


class Rotary(nn.Module):
    """Tables of the angles of rotary positions. Tables keep their precision in half-precision graphs."""

    def __init__(self, head_width: int, positions: int) -> None:
        super().__init__()
        rate = 1.0 / ROTARY_BASE ** (torch.arange(0, head_width, 2, device="cpu").float() / head_width)
        phase = torch.arange(positions, device="cpu").float()[:, None] * rate
        self.register_buffer("cosines", phase.cos(), persistent=False)
        self.register_buffer("sines", phase.sin(), persistent=False)

    def forward(self, positions: Tensor) -> Angles:
        """positions (B, S) int64 -> cosines and sines (B, S, 1, D/2)."""
        tables = self.get_buffer("cosines"), self.get_buffer("sines")
        found = [functional.embedding(positions.clamp(max=len(table) - 1), table) for table in tables]
        return found[0][:, :, None], found[1][:, :, None]


def rotate(x: Tensor, angles: Angles, heads: int) -> Tensor:
    """Rotate the first half of each head against the second: x (B, S, H*D) -> the same shape."""
    cosines, sines = angles
    left, right = x.reshape(x.shape[0], x.shape[1], heads, -1).chunk(2, dim=-1)
    turned = torch.cat([left * cosines - right * sines, right * cosines + left * sines], dim=-1)
    return turned.flatten(2)


class TextPrenet(nn.Module):
    """Three convolutions with ReLU and a linear layer over the text. Positions after its end are zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv1d(width, width, PRENET_KERNEL, padding=PRENET_KERNEL // 2)
            for _ in range(PRENET_CONVOLUTIONS)
        )
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        """x (B, S, d), seen (B, S) bool: which positions are text -> (B, S, d)."""
        inside = seen[:, None].to(x.dtype)
        x = x.transpose(1, 2)
        for convolution in self.convolutions:
            x = functional.relu(convolution(x * inside))
        out: Tensor = self.out(x.transpose(1, 2))
        return out


def code_prenet(width: int) -> nn.Sequential:
    """Three linear layers between the sum of the code embeddings and the code positions."""
    return nn.Sequential(
        nn.Linear(width, PRENET_WIDTH),
        nn.ReLU(),
        nn.Linear(PRENET_WIDTH, PRENET_WIDTH),
        nn.ReLU(),
        nn.Linear(PRENET_WIDTH, width),
    )


def nearest(x: Tensor, table: Tensor) -> Tensor:
    """Index (B, T) of the closest row of table (K, D) for each x (B, T, D)."""
    return ((table * table).sum(dim=1) - 2 * (x @ table.T)).argmin(dim=2)
