"""A module in float64, operator by operator: what its float32 numbers would be without rounding.

`module.double()` needs twice the weights' memory at once and changes the module. Here an operator's float32
inputs become float64 while it runs, so no more than one weight lies in memory twice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

ATEN = torch.ops.aten
PRODUCTS = (ATEN.addmm.default, ATEN.mm.default)
GATHERS = (ATEN.embedding, ATEN.index_select, ATEN.gather)
"""Operators that copy numbers and compute none: they leave a float32 table as it is, which is exact."""


@contextmanager
def in_float64() -> Iterator[None]:
    """Modules compute in float64 meanwhile, whatever the precision of their weights and inputs."""
    with Convolutions(), Operators():
        yield


class Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Widens what every operator computes with, and what it is asked to convert to."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.room = torch.empty(0, dtype=torch.float64)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = tree_map(widened, dict(kwargs or {}))
        if func in PRODUCTS:
            args = (*args[:-1], self.widened_weight(args[-1]))
        moves = func.is_view or func.overloadpacket in GATHERS
        return func(*(args if moves else tree_map(widened, args)), **named)

    def widened_weight(self, weight: Tensor) -> Tensor:
        """A transposed weight in float64, in memory that the next one reuses: fresh pages take time."""
        turned = weight.t()
        if weight.dtype != torch.float32 or not turned.is_contiguous():
            return weight
        if self.room.numel() < turned.numel():
            self.room = torch.empty(turned.numel(), dtype=torch.float64)
        return self.room[: turned.numel()].view(turned.shape).copy_(turned).t()


class Convolutions(TorchFunctionMode):
    """Widens the weights of convolutions: torch compares their types before an operator is called."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return func(*(tree_map(widened, args) if func is torch.conv1d else args), **(kwargs or {}))


def widened(value: Any) -> Any:
    """A float32 tensor in float64, float32 as float64, anything else as it is."""
    if isinstance(value, Tensor) and value.dtype == torch.float32:
        return value.double()
    return torch.float64 if value is torch.float32 else value
