"""Memory of this process: buffers that take only what is written, what was freed given back, huge pages.

Where a system lacks a call, nothing is done.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

SMALL_PAGES = getattr(mmap, "MADV_NOHUGEPAGE", None)
HUGE_PAGE = 2**21
COLLAPSE = 25
"""MADV_COLLAPSE of Linux 6.1, which Python's mmap does not name."""
MAPS = Path("/proc/self/maps")


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


def trim_heap() -> None:
    """Return freed memory to the system: glibc keeps what a session needed while it was being opened."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library; Windows takes no None
        return
    trim(0)


@contextmanager
def in_huge_pages() -> Iterator[None]:
    """Move what is allocated meanwhile, and still is at the end, to huge pages (Linux 6.1 and later).

    For weights that every step reads whole: they are read as fast as memory allows only if the address of a
    page is seldom looked up. A huge page is copied once, a millisecond or so each; the system may refuse any.
    """
    before = allocated()
    yield
    try:
        advise = ctypes.CDLL(None).madvise
    except (AttributeError, OSError, TypeError):  # another system
        return
    advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for region in allocated():
        for start in range(-(-region.start // HUGE_PAGE) * HUGE_PAGE, region.stop - HUGE_PAGE + 1, HUGE_PAGE):
            if not any(start in old for old in before):
                advise(start, HUGE_PAGE, COLLAPSE)


def allocated() -> list[range]:
    """Addresses of this process's own writable memory; none where the system does not tell."""
    try:
        lines = MAPS.read_text().splitlines()
    except OSError:
        return []
    fields = [line.split(maxsplit=5) for line in lines]
    own = [f[0].split("-") for f in fields if f[1] == "rw-p" and f[5:] in ([], ["[heap]"])]
    return [range(int(start, 16), int(stop, 16)) for start, stop in own]
