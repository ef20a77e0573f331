"""`bench precision`: float32 is like itself, fewer bits are further from it, and a broken graph shows."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from valle2.benchmarks.quality.precision import agreement, noise, precision, table
from valle2.engine.build.ort import build_graphs
from valle2.engine.bundle.precisions import graph_folder


@pytest.fixture(scope="module")
def built(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(shutil.copytree(bundle, tmp_path_factory.mktemp("precision") / "toy"))
    for name in ("int8", "int4"):
        build_graphs(folder, name)
    return folder


def test_fewer_bits_are_further_from_float32(built: Path) -> None:
    found = precision(str(built), "hello there", 0, 1, ["int8", "int4"], frames=40)
    whole, eight, four = (found["precisions"][name] for name in ("fp32", "int8", "int4"))
    assert whole["ar_noise"] == whole["nar_noise"] == 0
    assert whole["ar_codes_percent"] == whole["nar_codes_percent"] == 100
    assert 0 < eight["ar_noise"] < 0.05 < four["ar_noise"] < 0.3
    assert 0 < eight["nar_noise"] < 0.03
    assert eight["nar_codes_percent"] > 90
    stored = {name: graph_folder(built, name, "ort") / "ar.weights" for name in ("int8", "int4")}
    assert stored["int4"].stat().st_size < stored["int8"].stat().st_size
    assert four["mb"]["ar"] <= eight["mb"]["ar"]  # in tenths of a megabyte, which the toy hardly has
    assert found["frames"] > 0
    assert len(table(found).splitlines()) == 5


def test_measures() -> None:
    whole = np.array([3.0, 4.0], np.float32)
    assert noise(whole, whole + np.array([0.3, -0.4], np.float32)) == pytest.approx(0.1)
    assert agreement(np.array([1, 2, 3, 4]), np.array([1, 2, 3, 5])) == 75
