"""Mapped weights leave memory and are the same at the next use. Other weights stay."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from valle2.export.weights.mapped import unload, untouched

SIZE = 4_000_000
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs Linux's /proc")


def resident() -> int:
    """Bytes of mapped files that are resident now."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssFile")) * 1024


def mapped(path: Path) -> nn.Module:
    """A module whose weight is mapped from a file."""
    torch.save({"weight": torch.arange(SIZE, dtype=torch.float32)}, path)
    module = nn.Module()
    weight = torch.load(path, mmap=True)["weight"]
    module.register_parameter("weight", nn.Parameter(weight, requires_grad=False))
    return module


@LINUX
def test_mapped_weights_are_dropped_and_read_again(tmp_path: Path) -> None:
    module = mapped(tmp_path / "file.pt")
    total, full = float(module.weight.double().sum()), resident()  # type: ignore[operator]
    unload(module)
    assert resident() < full - 3 * SIZE
    assert float(module.weight.double().sum()) == total  # type: ignore[operator]


@LINUX
def test_weights_that_were_changed_or_are_not_mapped_stay(tmp_path: Path) -> None:
    changed, own = mapped(tmp_path / "file.pt"), nn.Linear(500, 500)
    changed.weight[100] = -1.0  # type: ignore[operator]
    before = own.weight.clone()
    unload(changed)
    unload(own)
    assert changed.weight[100] == -1.0  # type: ignore[index]
    assert torch.equal(own.weight, before)


def test_only_files_without_changed_pages_count() -> None:
    table = """1000-3000 rw-p 00000000 fe:00 12 /a file.pt
Rss: 8 kB
Anonymous: 0 kB
VmFlags: rd wr
3000-4000 rw-p 00000000 fe:00 13 /other.pt
Anonymous: 4 kB
4000-6000 rw-p 00000000 00:00 0
Anonymous: 0 kB
6000-7000 rw-p 00000000 00:00 0 [heap]
Anonymous: 0 kB
"""
    assert untouched(table) == [range(0x1000, 0x3000)]
