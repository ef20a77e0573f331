"""How fast this machine reads memory: the bound of an AR step, which reads every weight once."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

BYTES_PER_THREAD = 2**28
REPEATS = 5


def read_bandwidth(threads: int, bytes_per_thread: int = BYTES_PER_THREAD) -> float:
    """Bytes per second that `threads` threads read together: the best of several dot products with itself.

    bytes_per_thread: far more than the caches hold.
    """
    blocks = [np.ones(bytes_per_thread // 4, np.float32) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        times = [timed(pool, blocks) for _ in range(REPEATS)]
    return threads * bytes_per_thread / min(times)


def timed(pool: ThreadPoolExecutor, blocks: list[np.ndarray]) -> float:
    """Seconds for every thread to read its block once; BLAS releases the interpreter while it runs."""
    began = time.perf_counter()
    list(pool.map(lambda block: float(block @ block), blocks))
    return time.perf_counter() - began
