"""safetensors files. The header's size is checked before the header is parsed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from valle2.engine.bundle.untrusted import shown
from valle2.export.errors import CheckpointError
from valle2.export.weights.unpickle import check_file

HEADER_LIMIT, HEADER_SHARE = 1 << 20, 64
"""A header may have this many bytes, plus this fraction of the file: far more than names and shapes need."""


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file.

    Returns:
        Tensors by name, mapped from the file, and the file's metadata.

    Raises:
        CheckpointError: not a file, damaged, or with a header that is too large.
    """
    with opened(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata alone. Raises as `read_safetensors` does."""
    with opened(path) as file:
        return file.metadata() or {}


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The safetensors library's reader. Its errors become one sentence."""
    check_file(path)
    try:
        check_header(path)
        with safe_open(str(path), framework="pt") as file:
            yield file
    except CheckpointError:
        raise
    except Exception as error:  # the library lets torch's own errors through
        raise damaged(path, error) from None
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # from Rust; it is not an Exception
            raise
        raise damaged(path, error) from None


def damaged(path: Path, error: BaseException) -> CheckpointError:
    return CheckpointError(
        f"{path} is not a readable safetensors file: {shown(str(error))}; copy or download it again"
    )


def check_header(path: Path) -> None:
    """Compare the header's length with the file's size."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    most = min(size - 8, HEADER_LIMIT + size // HEADER_SHARE)
    if length > most:
        raise CheckpointError(
            f"{path} is not a readable safetensors file: its header reader {length} bytes of a file of "
            f"{size}; expected at most {max(0, most)}: copy or download it again"
        )
