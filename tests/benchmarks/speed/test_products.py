"""`bench products`: every way computes the product, and a row does not depend on its neighbours."""

from __future__ import annotations

import json

import numpy as np
import pytest

from valle2.benchmarks.speed import products
from valle2.runtime.cli.main import main

WEIGHT = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)
X = np.random.default_rng(1).standard_normal((1, 5, 64)).astype(np.float32)


@pytest.mark.parametrize("way", ["fp32", "rows", "int8", "int4", "dynamic"])
def test_a_way_computes_the_product(way: str) -> None:
    session = products.opened(products.ways(WEIGHT)[way], 1)
    found, exact = session.run(None, {"x": X})[0], X @ WEIGHT + 1
    bound = {"fp32": 1e-5, "int4": 0.2}.get(way, 0.03)
    assert found.shape == exact.shape and np.abs(found - exact).max() < bound * np.abs(exact).max()


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    session = products.opened(products.ways(WEIGHT)["rows"], 1)
    neighbours = X.copy()
    neighbours[0, 1:] *= 1000
    whole, other = (session.run(None, {"x": x})[0] for x in (X, neighbours))
    alone = session.run(None, {"x": X[:, :1]})[0]
    assert np.array_equal(whole[0, 0], other[0, 0]) and np.array_equal(whole[0, 0], alone[0, 0])


def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(products, "SHAPES", ((64, 32),))
    assert main(["bench", "products", "--repeats", "2", "--threads", "1", "--table"]) == 0
    out = capsys.readouterr().out
    assert "| product | rows | fp32, ms | rows, ms | int8, ms | int4, ms | dynamic, ms |" in out
    result = json.loads(out[out.index("result: ") + 8 :])
    assert [line["rows"] for line in result["products"]] == list(products.COUNTS)
    assert all(ms > 0 for line in result["products"] for ms in line["ms"].values())
