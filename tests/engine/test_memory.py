"""Buffers take what is written, and freed memory goes back to the system."""

from __future__ import annotations

import platform
import sys

import numpy as np
import pytest

from valle2.benchmarks.process import resident_bytes
from valle2.engine.memory import HUGE_PAGE, give_back, sparse_zeros

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


@pytest.mark.skipif(sys.platform != "linux", reason="the system does not tell")
def test_only_what_is_written_is_resident() -> None:
    zeros, before = sparse_zeros((256, MIB), np.uint8), resident()
    zeros[:, :4096] = 1
    assert MIB / 2 <= resident() - before < 8 * MIB


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="about glibc")
def test_what_was_freed_is_given_back() -> None:
    kept = [bytearray(2**16) for _ in range(1600)]
    del kept[:-1]  # the last keeps the heap from shrinking by itself
    before = resident()
    give_back()
    assert before - resident() > 50 * MIB
    assert len(kept) == 1
