"""Weights that are mapped from a checkpoint's file: their share of this process's memory, given back.

Where a system lacks a call, nothing is done.
"""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path

from torch import nn

MAPS = Path("/proc/self/smaps")
DROP = getattr(mmap, "MADV_DONTNEED", None)


def unload(module: nn.Module) -> None:
    """Drop a module's mapped weights from memory. What uses one again reads it from its file.

    Weights that are not mapped, or of a mapping that has been written to, stay as they are.
    """
    try:
        clean, advise = untouched(MAPS.read_text(errors="replace")), ctypes.CDLL(None).madvise
    except (OSError, AttributeError, TypeError):  # another system
        return
    if DROP is None:
        return
    advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for weight in module.parameters():
        start, end = weight.data_ptr(), weight.data_ptr() + weight.nbytes
        if any(start in part and end - 1 in part for part in clean):
            first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
            advise(first, max(0, end - end % mmap.PAGESIZE - first), DROP)


def untouched(smaps: str) -> list[range]:
    """Addresses of the files that are mapped and of which no page has been written to, from Linux's table."""
    found: list[range] = []
    for line in smaps.splitlines():
        words = line.split(maxsplit=5)
        if not words[0].endswith(":"):
            low, high = (int(part, 16) for part in words[0].split("-"))
            part = range(low, high) if words[5:] and words[5].startswith("/") else range(0)
        elif words[:2] == ["Anonymous:", "0"] and part:
            found.append(part)
    return found
