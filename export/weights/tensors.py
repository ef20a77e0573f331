"""Tensors of a foreign checkpoint, taken one by one: each with the shape it must have, each accounted for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from valle2.export.checkpoint import checked_weight, short
from valle2.export.errors import CheckpointError

ROOM = 4
"""Weights as float32 may take so many times the file's size: half precision takes twice, shared ones more."""


class Claims:
    """The tensors of one file and which of them have been taken."""

    def __init__(self, path: Path, tensors: Mapping[str, Tensor]) -> None:
        self.path, self.tensors = path, tensors
        self.room = ROOM * path.stat().st_size
        self.taken: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def shape(self, name: str, axes: int) -> tuple[int, ...]:
        """The shape of a tensor that other shapes follow from."""
        found = tuple(self.found(name).shape)
        if len(found) != axes or not all(found):
            raise CheckpointError(f"{self.path}: {name} is {found}; expected {axes} axes, none empty")
        return found

    def count(self, pattern: str) -> int:
        """How many of `pattern` with 0, 1, 2, ... for its `{}` there are."""
        number = 0
        while pattern.format(number) in self.tensors:
            number += 1
        return number

    def take(self, name: str, *shape: int) -> Tensor:
        """A tensor as float32.

        Raises:
            CheckpointError: it is absent, of another shape, not a plain float tensor, or not finite.
        """
        found = self.found(name)
        self.room -= 4 * found.numel()
        if self.room < 0:
            raise CheckpointError(
                f"{self.path}: its weights would take more than {ROOM} times its size; it is damaged"
            )
        single = checked_weight(self.path, name, found, shape)
        self.taken.add(name)
        return single

    def take_all(
        self, source: str, target: str, shapes: Mapping[str, tuple[str, tuple[int, ...]]]
    ) -> dict[str, Tensor]:
        """Tensors below `source` by our names below `target`. shapes: our name and the shape by theirs."""
        return {
            f"{target}.{ours}": self.take(f"{source}.{name}", *shape)
            for name, (ours, shape) in shapes.items()
        }

    def found(self, name: str) -> Tensor:
        """A tensor that has as many numbers as its shape says; every size that is read comes from one."""
        if name not in self.tensors:
            raise CheckpointError(f"{self.path} lacks the weight {name}; is the file complete?")
        found = self.tensors[name]
        if found.numel() > found.untyped_storage().nbytes() // found.element_size():
            raise CheckpointError(f"{self.path}: {name} is no plain tensor: it repeats its numbers")
        return found

    def finish(self, *ignored: str) -> None:
        """Refuse tensors that nobody took; those whose names end in one of `ignored` may be left."""
        left = sorted(name for name in set(self.tensors) - self.taken if not name.endswith(ignored or (" ",)))
        if left:
            raise CheckpointError(f"{self.path} holds unknown weights {short(left)}; it is another network")
