"""PyTorch's pickle containers, read without running anything that they hold.

Admitted are tensors, numbers, strings, plain containers, and paths (as strings). Every other name that the
pickle asks for is refused, so a file can ask for no code.
"""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections import OrderedDict, defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from valle2.export.checkpoint import CheckpointError

PATH_MODULES = ("pathlib", "pathlib._local")
PATH_NAMES = ("Path", "PosixPath", "PurePath", "PurePosixPath", "PureWindowsPath", "WindowsPath")
REBUILDERS = ("_rebuild_parameter", "_rebuild_tensor", "_rebuild_tensor_v2")
DTYPES = ("bfloat16", "bool", "float16", "float32", "float64", "int16", "int32", "int64", "int8", "uint8")


def path_text(*parts: str) -> str:
    """A pickled path as text, whatever system wrote it."""
    return "/".join(str(part) for part in parts).replace("//", "/")


def admitted() -> dict[tuple[str, str], Any]:
    """What a container may name, by module and name."""
    found: dict[tuple[str, str], Any] = {
        ("collections", "OrderedDict"): OrderedDict,
        ("collections", "defaultdict"): defaultdict,
        ("torch", "Size"): torch.Size,
        ("torch", "device"): torch.device,
        ("builtins", "set"): set,
        ("__builtin__", "set"): set,
        ("builtins", "dict"): dict,
        ("builtins", "list"): list,
        ("builtins", "int"): int,
        ("builtins", "float"): float,
    }
    found |= {("torch._utils", name): getattr(torch._utils, name) for name in REBUILDERS}
    found |= {("torch", name): getattr(torch, name) for name in DTYPES}
    return found | {(module, name): path_text for module in PATH_MODULES for name in PATH_NAMES}


class Refused(pickle.UnpicklingError):
    """The container names something that is not admitted."""


class SafeUnpickler(pickle.Unpickler):
    """Finds the admitted names and no others."""

    names = admitted()

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.names:
            raise Refused(f"{module}.{name}")
        return self.names[module, name]


def safe_load(file: IO[bytes], **options: Any) -> Any:
    """`pickle.load` with the safe unpickler."""
    return SafeUnpickler(file, **options).load()


PICKLE = SimpleNamespace(__name__="pickle", Unpickler=SafeUnpickler, load=safe_load)


def read_container(path: Path) -> dict[str, Any]:
    """Read a `torch.save` file.

    Args:
        path: the file. Tensors of the present format are mapped from it, not copied.

    Returns:
        Its dictionary.

    Raises:
        CheckpointError: not such a file, damaged, or one that asks for more than tensors and containers.
    """
    check_file(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = torch.load(
                str(path),
                map_location="cpu",
                pickle_module=PICKLE,
                weights_only=False,
                mmap=zipfile.is_zipfile(path),
            )
    except Refused as error:
        raise CheckpointError(
            f"{path} asks to run {error}; expected tensors and plain values alone: do not trust this file"
        ) from None
    except Exception as error:  # a damaged pickle can raise anything
        raise CheckpointError(
            f"{path} is not a readable PyTorch checkpoint ({type(error).__name__}); copy or download it again"
        ) from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} holds a {type(found).__name__}; expected a dictionary of tensors")
    return found


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file or of a state dict saved by torch.

    Raises:
        CheckpointError: neither, or damaged.
    """
    if path.suffix != ".safetensors":
        return tensors_of(read_container(path), path)
    check_file(path)
    try:
        return load_file(str(path))
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from None


def check_file(path: Path) -> None:
    """Refuse what is no file, is empty, or is an archive that torch would run or inflate."""
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder without model.safetensors; expected a checkpoint file")
    if not path.is_file():
        raise CheckpointError(f"{path}: no checkpoint there; check the path")
    size = path.stat().st_size
    if not size:
        raise CheckpointError(f"{path} is empty (0 bytes); copy or download it again")
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        raise CheckpointError(f"{path} is damaged; copy or download it again") from None
    if any(entry.filename.endswith("constants.pkl") for entry in entries):
        raise CheckpointError(f"{path} is a TorchScript archive, which is code; expected a state dict")
    if (
        any(e.compress_type != zipfile.ZIP_STORED for e in entries)
        or sum(e.file_size for e in entries) > size
    ):
        raise CheckpointError(f"{path} is a packed archive; expected a file written by torch.save")


def tensors_of(values: Any, path: Path) -> dict[str, Tensor]:
    """The tensors of a state dict, without a training wrapper's `module.` before their names."""
    if not isinstance(values, dict) or not values:
        raise CheckpointError(f"{path} holds no state dict; expected a dictionary of tensors")
    found: dict[str, Tensor] = {}
    for name, value in values.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(f"{path}: entry {name!r} is a {type(value).__name__}; expected a tensor")
        found[name.removeprefix("module.")] = value.detach()
    return found
