"""The AR in float16 and in 8 bits, as `valle2 build --target ort` makes it, against eager PyTorch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.conftest import Trace, near_a_boundary, toy_config
from tests.export import test_parity as parity
from valle2.engine import open_backend
from valle2.engine.build.ort import build_graph
from valle2.engine.bundle.precisions import METHODS
from valle2.export.bundle import graph_spec
from valle2.export.graphs import ar_graph, ar_inputs
from valle2.export.models import ARModel, Style
from valle2.runtime import Settings
from valle2.runtime.generation.ar_runner import ARRunner
from valle2.runtime.generation.sampling import sample_group

STEPS = 40


@dataclass(frozen=True)
class Bounds:
    """Bounds of a precision.

    logits: greatest difference, of logits that span about 3. same: smallest share of equal likeliest codes.
    cache: the dtype of the caches.
    """

    logits: float
    same: float
    cache: str


BOUNDS = {
    "fp16": Bounds(0.01, 0.99, "float16"),  # measured: 0.003 to 0.005; 0.998 to 1
    "int8": Bounds(0.25, 0.9, "int8"),  # measured: 0.09 to 0.15, 0.95 to 0.99
}


@pytest.mark.parametrize("precision", BOUNDS)
@pytest.mark.parametrize("group_size", parity.GROUPS)
@pytest.mark.parametrize("batch", [1, 4])
def test_logits_of_a_ragged_prefill_and_cached_steps(
    built_backend: parity.MakeBuilt, group_size: int, batch: int, precision: str
) -> None:
    made = built_backend(group_size, "ort", parity.CAPACITY, precision)
    worst, same = parity.steps_beside_eager(*made, batch=batch, steps=STEPS)
    assert parity.TOLERANCE < worst < BOUNDS[precision].logits
    assert same > BOUNDS[precision].same


@pytest.mark.parametrize("precision", BOUNDS)
@pytest.mark.parametrize("group_size", parity.GROUPS)
def test_greedy_codes_alone_and_in_a_ragged_batch(
    built_backend: parity.MakeBuilt, group_size: int, precision: str
) -> None:
    model, backend = built_backend(group_size, "ort", parity.CAPACITY, precision)
    slots = ARRunner(backend, model.config.to_dict(), parity.CAPACITY, 4, 10)
    assert {str(cache.read().dtype) for cache in slots.caches.values()} == {BOUNDS[precision].cache}
    rows = parity.ragged_rows(model, Settings(top_p=0.0, threshold=1.0), STEPS)
    batch = parity.decoded(slots, rows, STEPS)
    assert [parity.decoded(slots, [row], STEPS)[0] for row in rows] == batch
    for row, found in zip(rows, batch, strict=True):
        assert parity.as_likely(model, row, found, STEPS, 2 * BOUNDS[precision].logits)


def test_text_that_sees_itself_both_ways_in_8_bits(trace: Trace, tmp_path: Path) -> None:
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
    assert parity.TOLERANCE < worst < BOUNDS["int8"].logits
    assert same > BOUNDS["int8"].same


@pytest.mark.parametrize("group_size", parity.GROUPS)
def test_the_sampler_draws_from_these_logits_in_float32(
    built_backend: parity.MakeBuilt, group_size: int
) -> None:
    model, backend = built_backend(group_size, "ort", parity.CAPACITY, "fp16")
    rng, batch, width, draws = np.random.default_rng(0), 4, 12, 20
    kinds = {tensor.name: tensor.dtype for tensor in backend.spec.inputs}
    feeds = {name: value.numpy() for name, value in ar_inputs(model.config, batch, width, 64).items()}
    feeds["text"] = rng.integers(0, model.config.vocab_size, (batch, width))
    feeds["codes"] = rng.integers(0, 1024, (batch, width, group_size))
    feeds |= {"text_lengths": np.arange(1, 5), "new_lengths": np.arange(9, 13)}
    feeds["top_p"] = np.full(batch, 0.6, np.float32)
    feeds["uniforms"] = rng.random((batch, draws, group_size, 2), np.float32)
    typed = {name: value.astype(kinds[name]) for name, value in feeds.items()}
    for step in range(draws):
        found = backend.run(typed | {"steps": np.full(batch, step)}, ("logits", "codes_out"))
        for row in range(batch):
            logits, uniform = found["logits"][row], feeds["uniforms"][row, step]
            expected, _, _ = sample_group(
                logits, feeds["history"][row], uniform, top_p=0.6, window=10, threshold=1.0
            )
            for slot in np.flatnonzero(found["codes_out"][row, 0] != expected):
                assert near_a_boundary(logits[slot], uniform[slot], 0.6, parity.LOGITS_ROUNDING)
