"""The AR with 8-bit weights and caches, as `valle2 build --precision int8` makes it, and eager PyTorch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.conftest import Trace, toy_config
from tests.export import test_parity as parity
from valle2.engine import open_backend
from valle2.engine.small import METHODS
from valle2.engine.smaller import build_graph
from valle2.export.bundle import graph_spec
from valle2.export.config import Style
from valle2.export.graphs import ar_graph
from valle2.export.model import ARModel
from valle2.runtime import Settings
from valle2.runtime.decode import Slots

LOGITS = 0.25  # measured: 0.09 to 0.15, of logits that span some 3; most of it the weights'
SAME = 0.9  # of the likeliest codes; measured: 0.95 to 0.99
STEPS = 40


@pytest.mark.parametrize("group_size", parity.GROUPS)
@pytest.mark.parametrize("batch", [1, 4])
def test_logits_of_a_ragged_prefill_and_cached_steps(
    built_backend: parity.MakeBuilt, group_size: int, batch: int
) -> None:
    made = built_backend(group_size, "ort", parity.CAPACITY, "int8")
    worst, same = parity.steps_beside_eager(*made, batch=batch, steps=STEPS)
    assert parity.TOLERANCE < worst < LOGITS
    assert same > SAME


@pytest.mark.parametrize("group_size", parity.GROUPS)
def test_greedy_codes_alone_and_in_a_ragged_batch(built_backend: parity.MakeBuilt, group_size: int) -> None:
    model, backend = built_backend(group_size, "ort", parity.CAPACITY, "int8")
    slots = Slots(backend, model.config.to_dict(), parity.CAPACITY, 4, 10)
    assert {str(cache.read().dtype) for cache in slots.caches.values()} == {"int8"}
    rows = parity.ragged_rows(model, Settings(top_p=0.0, threshold=1.0), STEPS)
    batch = parity.decoded(slots, rows, STEPS)
    assert [parity.decoded(slots, [row], STEPS)[0] for row in rows] == batch
    for row, found in zip(rows, batch, strict=True):
        assert parity.as_likely(model, row, found, STEPS, 2 * LOGITS)


def test_text_that_sees_itself_both_ways(trace: Trace, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = ARModel(replace(toy_config(2, 512), style=Style(text_ahead=True))).eval()
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.15)
    row = ar_graph(model, "ort", parity.CAPACITY)
    path = trace(row, tmp_path / "ar.onnx")
    (tmp_path / "built").mkdir()
    method, sizes = METHODS["int8"]["ar"], model.config.to_dict()
    _, spec = build_graph(path.parent, tmp_path / "built", graph_spec(path, row), method, sizes)
    with open_backend(tmp_path / "built", spec) as backend:
        worst, same = parity.steps_beside_eager(model, backend, batch=1, steps=STEPS)
    assert parity.TOLERANCE < worst < LOGITS
    assert same > SAME
