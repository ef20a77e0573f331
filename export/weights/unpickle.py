"""Reads `torch.save` files without running code in them.

`torch.save` writes an archive of a pickle and raw numbers. Before torch 1.6 it wrote pickles and numbers one
after another. PyTorch's own reader is never called. `archive` finds the pickle and the numbers, and `pickles`
builds the values that `admitted` lists. Tensors are views of the mapped file.
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from valle2.engine.bundle.untrusted import is_file, is_folder, shown
from valle2.export.errors import CheckpointError
from valle2.export.weights.admitted import BUILDERS, NAMES, Storage, StorageType
from valle2.export.weights.archive import ArchiveError, is_archive, read_archive
from valle2.export.weights.pickles import MAX_OPCODES, Budget, Machine, PickleError, RefusedName

MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
"""The two pickled numbers at the start of a file from before torch 1.6."""
VALUES_LIMIT, VALUES_SHARE = 8 << 20, 4
"""The values beside the tensors may take this many bytes, plus this fraction of the file: one fourth."""
ALIGNED = 16
PICKLE, BYTE_ORDER = "data.pkl", "byteorder"


def read_container(path: Path) -> dict[str, Any]:
    """Read a `torch.save` file.

    Args:
        path: the file. Tensors are mapped from it, not copied: do not change it while they are used.

    Returns:
        Its dictionary.

    Raises:
        CheckpointError: another kind of file, damaged, or one with more than tensors and plain values.
    """
    check_file(path)
    try:
        file = File(path, mapped(path))
        read = read_zip if is_archive(file.data) else read_old
        found = read(file, Budget(VALUES_LIMIT + len(file.data) // VALUES_SHARE))
    except RefusedName as error:
        raise CheckpointError(
            f"{path} asks to run {error}; expected only tensors and plain values: do not trust this file, "
            "or if it is yours save only its state dict"
        ) from None
    except ArchiveError as error:
        raise CheckpointError(f"{path} {error}; copy or download it again") from None
    except (PickleError, OSError) as error:
        raise CheckpointError(
            f"{path} is not a readable PyTorch checkpoint: {error}; copy or download it again"
        ) from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds a {type(found).__name__}; expected a dictionary of tensors")
    return found


@dataclass(frozen=True, slots=True)
class File:
    """A file and its mapped bytes."""

    path: Path
    data: memoryview

    def numbers(self, start: int, end: int) -> Tensor:
        """The bytes of a storage (n,) uint8: a view of the file if aligned, otherwise a copy."""
        count = end - start
        if not count:
            return torch.empty(0, dtype=torch.uint8)
        if start % ALIGNED == 0:
            return torch.frombuffer(self.data, dtype=torch.uint8, count=count, offset=start)
        found = torch.from_numpy(np.fromfile(self.path, np.uint8, count, offset=start))
        if len(found) != count:
            raise PickleError("the file changed while it was read")
        return found


def mapped(path: Path) -> memoryview:
    """The file's bytes, mapped copy-on-write."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        return memoryview(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY))


def read_zip(file: File, budget: Budget) -> Any:
    """Read an archive."""
    data = file.data
    members = read_archive(data)
    root = next(iter(members)).partition("/")[0]
    inside = {name.removeprefix(f"{root}/"): member for name, member in members.items()}
    if any(name == member.name for name, member in inside.items()):
        raise ArchiveError("is damaged: it holds more than one folder")
    if PICKLE not in inside:
        raise ArchiveError(f"is not a checkpoint: it has no {PICKLE}")
    order = inside.get(BYTE_ORDER)
    if order is not None and bytes(data[order.start : min(order.end, order.start + 9)]).strip() != b"little":
        raise ArchiveError("was written on a machine of another byte order; save it on this one")
    pickled = inside[PICKLE]
    machine = Machine(data[pickled.start : pickled.end], NAMES, BUILDERS, budget)
    storages: dict[str, Storage] = {}

    def persistent(key: Any) -> Storage:
        name, storage = declared(key)
        if name not in storages:
            member = inside.get(f"data/{name}")
            if member is None or member.end - member.start != storage.count * storage.dtype.itemsize:
                raise PickleError(f"its tensor data {shown(name)} is absent or has another size")
            storages[name] = replace(storage, values=file.numbers(member.start, member.end))
        return same(storages[name], storage)

    machine.persistent = persistent
    found = machine.load()
    if machine.at != len(machine.data):
        raise PickleError("there are bytes after its pickle")
    return found


def read_old(file: File, budget: Budget) -> Any:
    """Read a file from before torch 1.6: five pickles, then the storages in the order of the last pickle.

    The fourth pickle holds the value. It is read twice, since only the bytes after it tell where the numbers
    begin.
    """
    data = file.data
    machine = Machine(data, NAMES, BUILDERS, budget)
    for expected in (MAGIC, PROTOCOL):
        found = machine.load()
        if type(found) is not int or found != expected:
            raise PickleError("it does not begin as a file of torch.save")
    system = machine.load()
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise PickleError("it was written on a machine of another byte order")
    begin = machine.at
    storages: dict[str, Storage] = {}

    def persistent(key: Any) -> Storage:
        name, storage = declared(key)
        return same(storages.setdefault(name, storage), storage)

    machine.persistent = persistent
    machine.load()
    order = machine.load()
    named = type(order) is list and all(type(name) is str for name in order)
    if not named or len(order) != len(storages) or set(order) != set(storages):
        raise PickleError("its list of tensor data does not fit its tensors")
    at = machine.at
    for name in order:
        storage = storages[name]
        first, last = at + 8, at + 8 + storage.count * storage.dtype.itemsize
        if last > len(data) or int.from_bytes(data[at:first], "little") != storage.count:
            raise PickleError(f"its tensor data {shown(name)} is cut off or has another size")
        storages[name] = replace(storage, values=file.numbers(first, last))
        at = last
    if at != len(data):
        raise PickleError("there are bytes after its tensor data")
    machine.at, machine.budget, machine.opcodes = begin, Budget(budget.limit), MAX_OPCODES
    return machine.load()


def declared(key: Any) -> tuple[str, Storage]:
    """Parse a persistent id: ("storage", type, name, device, count, ...) -> the storage's name and size."""
    if type(key) is not tuple or len(key) not in (5, 6) or key[0] != "storage":
        raise PickleError("it holds a whole module, which is code; expected its state dict")
    _, kind, name, _, count, *view = key
    if type(kind) is not StorageType or type(name) is not str or type(count) is not int or count < 0:
        raise PickleError("it holds a tensor of an unknown type")
    if view and view[0] is not None:
        raise PickleError("it holds a view of a storage, as torch before 0.4 wrote; save it with a later one")
    return name, Storage(kind.dtype, count)


def same(known: Storage, storage: Storage) -> Storage:
    """The storage already read under this name. Both declarations must agree."""
    if (known.dtype, known.count) != (storage.dtype, storage.count):
        raise PickleError("it declares the data of a tensor twice, with different sizes")
    return known


def check_file(path: Path) -> None:
    """Refuse a folder, a missing file and an empty file."""
    if is_folder(path):
        raise CheckpointError(f"{path} is a folder without model.safetensors; expected a checkpoint file")
    if not is_file(path):
        raise CheckpointError(f"{path}: no checkpoint there; check the path")
    if not path.stat().st_size:
        raise CheckpointError(f"{path} is empty (0 bytes); copy or download it again")
