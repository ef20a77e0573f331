"""Runs a module in float64, operator by operator, to tell what its float32 results are without rounding.

`module.double()` would need twice the weights' memory at once, and would change the module. Here each
operator's float32 inputs are converted while it runs, so at most one weight is in memory twice.
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
"""Operators that only copy numbers. Their float32 tables stay float32, which is exact."""


@contextmanager
def in_float64() -> Iterator[None]:
    """Compute in float64 inside this context, whatever the precision of weights and inputs."""
    with Convolutions(), Operators():
        yield


class Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Converts the inputs of every operator, and every requested dtype, from float32 to float64."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.buffer = torch.empty(0, dtype=torch.float64)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        named = tree_map(widened, dict(kwargs or {}))
        if func in PRODUCTS:
            args = (*args[:-1], self.widened_weight(args[-1]))
        moves = func.is_view or func.overloadpacket in GATHERS
        return func(*(args if moves else tree_map(widened, args)), **named)

    def widened_weight(self, weight: Tensor) -> Tensor:
        """A transposed weight in float64, in a buffer that is reused: fresh pages take time."""
        turned = weight.t()
        if weight.dtype != torch.float32 or not turned.is_contiguous():
            return weight
        if self.buffer.numel() < turned.numel():
            self.buffer = torch.empty(turned.numel(), dtype=torch.float64)
        return self.buffer[: turned.numel()].view(turned.shape).copy_(turned).t()


class Convolutions(TorchFunctionMode):
    """Converts the weights of convolutions. PyTorch compares their types before it calls an operator."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return func(*(tree_map(widened, args) if func is torch.conv1d else args), **(kwargs or {}))


def widened(value: Any) -> Any:
    """A float32 tensor as float64, the dtype float32 as float64, any other value unchanged."""
    if isinstance(value, Tensor) and value.dtype == torch.float32:
        return value.double()
    return torch.float64 if value is torch.float32 else value
