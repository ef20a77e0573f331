"""Checks on the tensors of a checkpoint: each has the expected shape, plain floats and finite values."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from valle2.engine.bundle.untrusted import shown
from valle2.export.errors import CheckpointError

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
"""Types that weights may be stored in."""
MAX_EXPANSION = 4
"""Most memory of the float32 weights, in file sizes. Half precision takes 2, shared tensors more."""
HALF = 2
"""Bytes of the smallest number in which published codecs are stored."""
LISTED = 6
"""Names in an error message."""


class TensorReader:
    """Reads the tensors of one file one by one, and tracks which of them were read."""

    def __init__(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        self.path, self.tensors = path, tensors
        self.bytes_left = MAX_EXPANSION * path.stat().st_size
        self.taken: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def shape(self, name: str, axes: int) -> tuple[int, ...]:
        """The shape of a tensor that tells a size of the network.

        Raises:
            CheckpointError: it is absent, empty, or has another number of axes.
        """
        found = tuple(self.find(name).shape)
        if len(found) != axes or not all(found):
            raise CheckpointError(f"{self.path}: {name} is {found}; expected {axes} axes, none empty")
        return found

    def count(self, pattern: str) -> int:
        """How many names match `pattern` with 0, 1, 2, ... in place of its `{}`."""
        number = 0
        while pattern.format(number) in self.tensors:
            number += 1
        return number

    def take(self, name: str, *shape: int) -> Tensor:
        """Read a tensor as float32.

        Raises:
            CheckpointError: it is absent, of another shape, not a plain float tensor, or not finite.
        """
        found = self.find(name)
        self.bytes_left -= 4 * found.numel()
        if self.bytes_left < 0:
            raise CheckpointError(
                f"{self.path}: its weights would take more than {MAX_EXPANSION} times its size; it is damaged"
            )
        single = checked_weight(self.path, name, found, shape)
        self.taken.add(name)
        return single

    def take_all(
        self, source: str, target: str, shapes: Mapping[str, tuple[str, tuple[int, ...]]]
    ) -> dict[str, Tensor]:
        """Read tensors under `source` and name them under `target`.

        Args:
            shapes: by the file's name, our name and the expected shape.
        """
        return {
            f"{target}.{ours}": self.take(f"{source}.{name}", *shape)
            for name, (ours, shape) in shapes.items()
        }

    def find(self, name: str) -> Tensor:
        """A tensor that stores as many numbers as its shape says. Only such tensors tell sizes."""
        if name not in self.tensors:
            raise CheckpointError(f"{self.path} lacks the weight {name}; is the file complete?")
        found = self.tensors[name]
        if found.numel() > found.untyped_storage().nbytes() // found.element_size():
            raise CheckpointError(f"{self.path}: {name} is no plain tensor: it repeats its numbers")
        return found

    def finish(self, *ignored: str) -> None:
        """Check that every tensor was read, except those whose names end in one of `ignored`.

        Raises:
            CheckpointError: a tensor is left.
        """
        left = sorted(name for name in set(self.tensors) - self.taken if not name.endswith(ignored or (" ",)))
        if left:
            raise CheckpointError(
                f"{self.path} holds unknown weights {list_names(left)}; it is another network"
            )


def check_shape(file: Path, name: str, found: Tensor, shape: tuple[int, ...]) -> None:
    """Raise CheckpointError if a tensor has another shape."""
    if tuple(found.shape) != shape:
        raise CheckpointError(f"{file}: {name} is {tuple(found.shape)}; expected {shape}")


def checked_weight(file: Path, name: str, found: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A weight as float32. A float32 weight is not copied.

    Raises:
        CheckpointError: another shape, not floating-point, or not finite in float32.
    """
    check_shape(file, name, found, shape)
    if found.dtype not in FLOATS:
        raise CheckpointError(f"{file}: {name} is no plain tensor of floating-point numbers")
    single = found.float()
    if not bool(torch.isfinite(single).all()):
        raise CheckpointError(f"{file}: {name} holds NaN or infinity; train or save it again")
    return single


def check_file_size(file: Path, *modules: nn.Module) -> None:
    """Check that a file is large enough for the weights of modules on the `meta` device.

    Raises:
        CheckpointError: in half precision the weights are larger than the file.
    """
    weights = {id(weight): weight.numel() for module in modules for weight in module.parameters()}
    numbers, size = sum(weights.values()), file.stat().st_size
    if HALF * numbers > size:
        raise CheckpointError(
            f"{file} has {size} bytes, but its shapes say {numbers} weights; is the file complete?"
        )


def set_parameters(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Make tensors the module's parameters of these names. Contiguous tensors are not copied."""
    for name, value in weights.items():
        setattr(module, name, nn.Parameter(value.contiguous()))


def list_names(names: list[str]) -> str:
    """The first few names for a message, and how many more there are."""
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return f"[{', '.join(map(shown, names[:LISTED]))}]{more}"
