"""How fast this machine reads memory: the bound of an AR step, which reads every weight once.

The probe: every thread looks for the greatest byte of a quarter of a gigabyte, far more than caches hold, all
at once; the fastest of several readings counts. numpy finds it with vector loads, lets go of the interpreter
meanwhile (`block @ block` does not: threads then read one after another) and asks for huge pages. On two
cores it reads as much as a loop of vector loads in C.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

BYTES_PER_THREAD = 2**28
REPEATS = 8


def read_bandwidth(threads: int, bytes_per_thread: int = BYTES_PER_THREAD) -> float:
    """Bytes per second that `threads` threads read together, at best.

    bytes_per_thread: far more than the caches hold.
    """
    blocks = [np.ones(bytes_per_thread, np.uint8) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        times = [timed(pool, blocks) for _ in range(REPEATS)]
    return threads * bytes_per_thread / min(times)


def timed(pool: ThreadPoolExecutor, blocks: list[NDArray[np.uint8]]) -> float:
    """Seconds for every thread to read its block once."""
    began = time.perf_counter()
    list(pool.map(read, blocks))
    return time.perf_counter() - began


def read(block: NDArray[np.uint8]) -> int:
    """Read every byte; the greatest one."""
    return int(block.max())
