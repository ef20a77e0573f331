"""Memory of this process: buffers that use only the pages written to, trimming the heap, huge pages.

Where a system lacks the call, a function does nothing.
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
"""MADV_COLLAPSE of Linux 6.1; Python's mmap has no name for it."""
MAPS = Path("/proc/self/maps")


def sparse_zeros(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """An array of zeros in small pages, which become resident only where they are written.

    numpy asks Linux for huge pages. A KV cache has room for the longest sequence, and a short one writes the
    beginning of every head. With huge pages this makes nearly the whole cache resident.
    """
    size = prod(shape) * np.dtype(dtype).itemsize
    if SMALL_PAGES is None or size < HUGE_PAGE:
        return np.zeros(shape, dtype)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without huge pages
        memory.madvise(SMALL_PAGES)
    return np.frombuffer(memory, dtype).reshape(shape)


def trim_heap() -> None:
    """Return freed memory to the system; glibc would keep what opening a session needed for a while."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # another C library; Windows takes no None
        return
    trim(0)


@contextmanager
def in_huge_pages() -> Iterator[None]:
    """Move memory that the block allocates and keeps to huge pages (Linux 6.1 and later).

    This is for weights that every step reads whole. With small pages, looking up addresses takes longer than
    reading. Moving one huge page takes about a millisecond, and the system may refuse any of them.
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
    """Address ranges of this process's private writable memory; empty where the system does not say."""
    try:
        lines = MAPS.read_text().splitlines()
    except OSError:
        return []
    fields = [line.split(maxsplit=5) for line in lines]
    own = [f[0].split("-") for f in fields if f[1] == "rw-p" and f[5:] in ([], ["[heap]"])]
    return [range(int(start, 16), int(stop, 16)) for start, stop in own]
