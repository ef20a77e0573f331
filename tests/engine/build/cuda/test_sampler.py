"""The fused sampler against the rule in NumPy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from tests.conftest import near_a_boundary
from valle2.engine.build.cuda.sampler import CLASSES, SamplerSizes, write_sampler
from valle2.engine.build.cuda.step import OPSET
from valle2.engine.build.cuda.writer import GraphWriter
from valle2.engine.bundle.contract import EOS_CODE
from valle2.runtime.generation.sampling import sample_group

ROWS, DRAWS, WINDOW = 250, 4, 12
SIZES = SamplerSizes(2, WINDOW, DRAWS)
ROUNDING = 3e-6
"""Of a cumulative sum of 1025 float32 numbers."""


def sampler(sizes: SamplerSizes) -> ort.InferenceSession:
    """A graph of the sampler alone."""
    graph, group = GraphWriter(), sizes.group
    write_sampler(graph, "logits", sizes)
    kinds: dict[str, tuple[int, list[int | str]]] = {
        "logits": (TensorProto.FLOAT, ["b", group, CLASSES]),
        "steps": (TensorProto.INT64, ["b"]),
        "history": (TensorProto.INT64, ["b", sizes.window]),
        "uniforms": (TensorProto.FLOAT, ["b", sizes.draws, group, 2]),
        "top_p": (TensorProto.FLOAT, ["b"]),
        "repeat_window": (TensorProto.INT64, ["b"]),
        "threshold": (TensorProto.FLOAT, ["b"]),
    }
    inputs = [helper.make_tensor_value_info(name, *kind) for name, kind in kinds.items()]
    outputs = [
        helper.make_tensor_value_info("codes_out", TensorProto.INT64, ["b", 1, group]),
        helper.make_tensor_value_info("history_out", TensorProto.INT64, ["b", sizes.window]),
        helper.make_tensor_value_info("log_probs", TensorProto.FLOAT, ["b", group]),
    ]
    model = graph.model("sampler", inputs, outputs, OPSET)
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def random_feeds(group: int, rng: np.random.Generator) -> dict[str, NDArray[np.generic]]:
    """Rows with few likely codes, which their histories repeat, so that every branch of the rule is taken."""
    logits = rng.normal(scale=2, size=(ROWS, group, CLASSES)).astype(np.float32)
    likely = rng.integers(0, 6, (ROWS, group)) + np.where(rng.random((ROWS, 1)) < 0.2, EOS_CODE - 5, 0)
    np.put_along_axis(logits, likely[..., None], rng.uniform(4, 14, (ROWS, group, 1)), axis=2)
    return {
        "logits": logits.astype(np.float16).astype(np.float32),  # with ties
        "steps": rng.integers(0, DRAWS + 2, ROWS),
        "history": rng.integers(-1, 6, (ROWS, WINDOW)),
        "uniforms": rng.random((ROWS, DRAWS, group, 2), np.float32),
        "top_p": rng.choice(np.array([0, 0.3, 0.8, 0.95, 1, 1.5], np.float32), ROWS),
        "repeat_window": rng.integers(1, WINDOW + 1, ROWS),
        "threshold": rng.choice(np.array([0, 0.1, 0.25, 0.3, 0.5, 0.7, 1], np.float32), ROWS),
    }


@pytest.mark.parametrize(("group", "calls"), [(1, 8), (2, 20), (4, 2), (8, 1)])
def test_codes_are_those_of_the_rule(group: int, calls: int) -> None:
    """10,000 codes at group size 2. A draw within rounding of a boundary may take the class next to it."""
    session, rng = sampler(replace(SIZES, group=group)), np.random.default_rng(group)
    differ = total = redrawn = 0
    for _ in range(calls):
        feeds = random_feeds(group, rng)
        codes, history, log_probs = session.run(None, feeds)
        for row in range(ROWS):
            logits, seen = feeds["logits"][row], feeds["history"][row]
            top_p, limit = float(feeds["top_p"][row]), float(feeds["threshold"][row])
            window = int(feeds["repeat_window"][row])
            draws = feeds["uniforms"][row, min(int(feeds["steps"][row]), DRAWS - 1)]
            rule = {"top_p": top_p, "window": window}
            expected, grown, ended = sample_group(logits, seen, draws, threshold=limit, **rule)  # type: ignore[arg-type]
            found = codes[row, 0]
            total += group
            redrawn += not np.array_equal(
                expected,
                sample_group(logits, seen, draws, threshold=1.0, **rule)[0],  # type: ignore[arg-type]
            )
            whole = [*expected, EOS_CODE] if ended else expected
            if not np.array_equal(found[: len(whole)], whole):
                slot = int(np.flatnonzero(found[: len(whole)] != whole)[0])
                assert near_a_boundary(logits[slot], draws[slot], top_p, ROUNDING), (found, whole)
                differ += 1
                continue
            if not ended:
                assert np.array_equal(history[row], grown[-WINDOW:])
            full = logits - logits.max(axis=1, keepdims=True)
            full -= np.log(np.exp(full).sum(axis=1, keepdims=True))
            assert np.allclose(log_probs[row], np.take_along_axis(full, found[:, None], 1)[:, 0], atol=1e-4)
    assert total >= 2000 and redrawn > total // (20 * group) and differ <= total // 500


def test_an_end_that_is_likeliest_is_drawn_if_the_model_ends_so() -> None:
    session = sampler(replace(SIZES, argmax_ends=True))
    feeds = random_feeds(2, np.random.default_rng(0))
    codes = session.run(["codes_out"], feeds)[0][:, 0]
    likeliest = feeds["logits"].argmax(axis=2)
    assert (likeliest == EOS_CODE).any() and np.all(codes[likeliest == EOS_CODE] == EOS_CODE)
