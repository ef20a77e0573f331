"""Buffers use memory only where they are written, and freed memory returns to the system."""

from __future__ import annotations

import mmap
import platform
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest

from valle2.benchmarks.process_memory import resident_bytes
from valle2.engine.backends.ort.memory import HUGE_PAGE, allocated, in_huge_pages, sparse_zeros, trim_heap

MIB = 2**20


def resident() -> int:
    found = resident_bytes()
    assert found
    return found


@pytest.mark.parametrize("shape", [(2, 3, 2), (2, HUGE_PAGE // 4, 2)])
def test_zeros(shape: tuple[int, ...]) -> None:
    zeros = sparse_zeros(shape, np.float32)
    assert zeros.shape == shape and zeros.dtype == np.float32 and not zeros.any()
    zeros[1, 2] = 3
    assert zeros.flags.c_contiguous and zeros.sum() == 6


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_only_what_is_written_is_resident() -> None:
    zeros, before = sparse_zeros((256, MIB), np.uint8), resident()
    zeros[:, :4096] = 1
    assert MIB / 2 <= resident() - before < 8 * MIB


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="about glibc")
def test_freed_memory_returns_to_the_system() -> None:
    kept = [bytearray(2**16) for _ in range(1600)]
    del kept[:-1]  # the last keeps the heap from shrinking by itself
    before = resident()
    trim_heap()
    assert before - resident() > 50 * MIB
    assert len(kept) == 1


def huge_bytes() -> int:
    rollup = Path("/proc/self/smaps_rollup").read_text()
    return 1024 * int(rollup.split("AnonHugePages:")[1].split()[0])


def small_pages(size: int) -> mmap.mmap:
    """Written anonymous memory, without a request for huge pages."""
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.write(b"x" * size)
    return memory


def grown_in_huge_pages() -> int:
    """Bytes of huge pages after 16 pages of memory are allocated inside the block and 4 outside."""
    outside, before = small_pages(4 * HUGE_PAGE), huge_bytes()
    with in_huge_pages():
        inside = small_pages(16 * HUGE_PAGE)
    grown = huge_bytes() - before
    assert inside[:] == b"x" * len(inside) and outside[:] == b"x" * len(outside)
    return grown


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_memory_that_the_block_allocates_moves_to_huge_pages() -> None:
    """In a process of its own, because memory of other tests would move as well."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        grown = pool.submit(grown_in_huge_pages).result()
    if not grown:
        pytest.skip("this system moves nothing to huge pages")
    assert 8 * HUGE_PAGE <= grown <= 16 * HUGE_PAGE, "all memory of the block, and none from outside"


def test_a_system_that_does_not_list_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("valle2.engine.backends.ort.memory.MAPS", tmp_path / "absent")
    assert allocated() == []
    with in_huge_pages():
        kept = small_pages(HUGE_PAGE)
    assert kept[:1] == b"x"
