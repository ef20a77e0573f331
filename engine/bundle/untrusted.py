"""Reads files that strangers wrote: a bounded number of bytes, and JSON that every reader understands alike.

Functions raise OSError or ValueError with a short reason. The caller adds the file and what to do.
"""

from __future__ import annotations

import errno
import json
import math
import reprlib
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

MAX_VALUES = 200_000
"""Values in a JSON text. In memory, a small value takes a hundred times the size of its text."""
MAX_DIGITS = 32
SHOWN = reprlib.Repr()
SHOWN.maxstring = SHOWN.maxother = 60
SHOWN.maxlevel = 2
MAX_SHOWN = 120


def shown(value: object) -> str:
    """A value for a message: short, and on one line."""
    text = SHOWN.repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 3]}..."


def exists(path: Path) -> bool:
    """Does the path exist? False for a path that the system does not take."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def is_file(path: Path) -> bool:
    """Is it a plain file? False for a path that the system does not take."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_folder(path: Path) -> bool:
    """Is it a folder? False for a path that the system does not take."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def read_bounded(path: Path, most: int) -> bytes:
    """All bytes of a plain file.

    Raises:
        OSError: it cannot be read, is not a plain file (opening a pipe would wait), or has more than `most`
            bytes.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "not a plain file")
    if found.st_size <= most:
        with path.open("rb") as file:
            data = file.read(found.st_size + 1)
        if len(data) <= most:
            return data
    raise OSError(errno.EFBIG, f"larger than {most} bytes")


def parse_json(data: bytes, values: int = MAX_VALUES) -> Any:
    """The value of a JSON text.

    Args:
        values: the most values that it may hold.

    Raises:
        ValueError: it is not UTF-8 or not JSON, has too many values or levels, a number that is too large,
            NaN or Infinity, or a key twice.
    """
    if sum(data.count(mark) for mark in (b",", b"[", b"{")) > values:
        raise ValueError(f"more than {values} values")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError("not UTF-8 text") from None
    try:
        return json.loads(
            text,
            object_pairs_hook=unique,
            parse_constant=refuse_constant,
            parse_int=bounded_int,
            parse_float=finite_float,
        )
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at character {error.pos}") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None


def unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """An object with different keys. Readers disagree on which of two equal keys counts."""
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {shown(twice)} is given twice")
    return found


def refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def bounded_int(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number has {len(digits)} digits; expected at most {MAX_DIGITS}")
    return int(digits)


def finite_float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"the number {shown(digits)} is too large")
    return value
