"""Memory of this process: large buffers that take only what is written, and what was freed given back.

Both are about what the system counts as resident. Where a system lacks a call, nothing is done.
"""

from __future__ import annotations

import ctypes
import mmap
from contextlib import suppress
from math import prod
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

SMALL_PAGES = getattr(mmap, "MADV_NOHUGEPAGE", None)
HUGE_PAGE = 2**21


def sparse_zeros(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Zeros that become resident where they are written, in small pages.

    numpy asks Linux for huge pages. In a cache reserved for the longest sequence a short one writes the
    beginning of every head, which in huge pages makes nearly all of it resident.
    """
    size = prod(shape) * np.dtype(dtype).itemsize
    if SMALL_PAGES is None or size < HUGE_PAGE:
        return np.zeros(shape, dtype)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without huge pages
        memory.madvise(SMALL_PAGES)
    return np.frombuffer(memory, dtype).reshape(shape)


def give_back() -> None:
    """Return freed memory to the system: glibc keeps what a session needed while it was being opened."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library; Windows takes no None
        return
    trim(0)
