"""Releases the memory of weights that are mapped from a checkpoint's file.

Systems without the needed calls keep the memory.
"""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path

from torch import nn

MAPS = Path("/proc/self/smaps")
DROP = getattr(mmap, "MADV_DONTNEED", None)


def unload(module: nn.Module) -> None:
    """Drop a module's mapped weights from memory. The next use reads them from the file again.

    Weights that are not mapped stay in memory, and so do those of a mapping that was written to.
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
    """Address ranges of mapped files without a modified page, from the text of Linux's `smaps`."""
    found: list[range] = []
    for line in smaps.splitlines():
        words = line.split(maxsplit=5)
        if not words[0].endswith(":"):
            low, high = (int(part, 16) for part in words[0].split("-"))
            part = range(low, high) if words[5:] and words[5].startswith("/") else range(0)
        elif words[:2] == ["Anonymous:", "0"] and part:
            found.append(part)
    return found
