"""The AR in float16 through ONNX Runtime, as `valle2 build --precision fp16` makes it, and eager PyTorch."""

from __future__ import annotations

import numpy as np
import pytest

from tests.conftest import near_a_boundary
from tests.export import test_parity as parity
from valle2.export.graphs import ar_inputs
from valle2.runtime import Settings
from valle2.runtime.decode import Slots
from valle2.runtime.sampling import sample_group

LOGITS = 0.01  # measured: 0.003 to 0.005, of logits that span some 3
SAME = 0.99  # of the likeliest codes; measured: 0.998 to 1
STEPS = 40


@pytest.mark.parametrize("group_size", parity.GROUPS)
def test_logits_of_a_ragged_prefill_and_cached_steps(
    built_backend: parity.MakeBuilt, group_size: int
) -> None:
    made = built_backend(group_size, "ort", parity.CAPACITY, "fp16")
    worst, same = parity.steps_beside_eager(*made, batch=4, steps=STEPS)
    assert parity.TOLERANCE < worst < LOGITS
    assert same > SAME


@pytest.mark.parametrize("group_size", parity.GROUPS)
def test_greedy_codes_alone_and_in_a_ragged_batch(built_backend: parity.MakeBuilt, group_size: int) -> None:
    model, backend = built_backend(group_size, "ort", parity.CAPACITY, "fp16")
    slots = Slots(backend, model.config.to_dict(), parity.CAPACITY, 4, 10)
    assert {str(cache.read().dtype) for cache in slots.caches.values()} == {"float16"}
    rows = parity.ragged_rows(model, Settings(top_p=0.0, threshold=1.0), STEPS)
    batch = parity.decoded(slots, rows, STEPS)
    assert [parity.decoded(slots, [row], STEPS)[0] for row in rows] == batch
    for row, found in zip(rows, batch, strict=True):
        assert parity.as_likely(model, row, found, STEPS, 2 * LOGITS)


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
