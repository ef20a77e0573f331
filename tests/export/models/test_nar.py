"""The NAR: its graphs, its choice of codes, and packed positions as in ONNX Runtime's graph."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from tests.conftest import Trace, toy_config
from valle2.engine import Placement, open_backend
from valle2.engine.build.ort import build_graph
from valle2.engine.bundle.nar_inputs import NARInputs
from valle2.engine.bundle.precisions import METHODS
from valle2.export.attention import LOWERINGS
from valle2.export.bundle import graph_spec
from valle2.export.graphs import nar_graph
from valle2.export.models import NARModel, Style
from valle2.export.models.ar import merge_heads, split_heads
from valle2.export.verify import ParityError, verify_nar
from valle2.export.verify.judge import LOGITS_TOLERANCE

STYLES: dict[str, dict[str, Any]] = {
    "valle2": {},
    "post-norm": {"norm_first": False, "activation": "relu"},
    "stage-norm": {"stage": "norm", "norm": "rms", "head": "own"},
    "rotary": {"positions": "rotary", "stage": "norm", "norm": "l2", "gated": True, "activation": "silu"},
    "rotary-token": {"nar_positions": "rotary"},
    "prenet": {"prenet": True, "head": "one", "head_bias": True},
}


def attend_lengths(query: Tensor, key: Tensor, value: Tensor, heads: int, lengths: Tensor) -> Tensor:
    mask = (torch.arange(query.shape[1])[None, :] < lengths[:, None])[:, None, None, :]
    query, key, value = (split_heads(part, heads) for part in (query, key, value))
    return merge_heads(functional.scaled_dot_product_attention(query, key, value, attn_mask=mask))


def toy_nar(style: dict[str, Any], vector_width: int = 0) -> NARModel:
    torch.manual_seed(0)
    config = replace(toy_config(2, 400), style=Style(**style), vector_width=vector_width)
    model = NARModel(config).eval()
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=0.15)
    return model


def without_text(codes: Tensor, prompts: list[int], frames: list[int], stage: int) -> NARInputs[Tensor]:
    """Inputs for the choice of codes, which does not read the text."""
    none = torch.zeros(len(codes), 0, dtype=torch.int64)
    lengths = torch.zeros(len(codes), dtype=torch.int64)
    return NARInputs(none, lengths, codes, torch.tensor(prompts), torch.tensor(frames), torch.tensor(stage))


@pytest.mark.parametrize("style", STYLES.values(), ids=STYLES)
@torch.no_grad()
def test_packed_is_masked_in_a_ragged_batch(style: dict[str, Any]) -> None:
    model, prompts, frames = toy_nar(style), torch.tensor([6, 4, 9]), torch.tensor([25, 30, 17])
    inputs = NARInputs(
        text=torch.randint(0, 30, (3, 11)),
        text_lengths=torch.tensor([5, 11, 8]),
        codes=torch.randint(0, 1024, (3, 30, 8)),
        prompt_lengths=prompts,
        frame_lengths=frames,
        stage=torch.tensor(3),
    )
    expected, found = model(inputs), model(inputs, attend_lengths)
    assert expected.shape == found.shape == (3, 26, 1024)
    for row in range(3):
        valid = slice(int(prompts[row]) - 4, int(frames[row]) - 4)
        gap = (expected[row, valid] - found[row, valid]).abs().max()
        assert gap < LOGITS_TOLERANCE


def test_the_graph_has_the_numbers(trace: Trace, tmp_path: Path) -> None:
    model = toy_nar({})
    row = nar_graph(model, "ort")
    path = trace(row, tmp_path / "nar.onnx")
    assert (
        verify_nar(model, open_backend(tmp_path, graph_spec(path, row), Placement(threads=1)))
        < LOGITS_TOLERANCE
    )


@torch.no_grad()
def test_codes_are_of_least_expected_squared_distance() -> None:
    model, logits = toy_nar({}, 5), 3 * torch.randn(2, 7, 1024)
    codes = torch.zeros(2, 7, 8, dtype=torch.int64)
    for stage in (1, 4, 7):
        vectors = model.vectors[stage - 1].double()
        distances = (vectors[:, None] - vectors[None, :]).square().sum(dim=2)
        risk = logits.double().softmax(dim=2) @ distances
        inputs = without_text(codes, [0, 0], [7, 7], stage)
        found = model.choose(logits, inputs)
        assert torch.equal(found, risk.argmin(dim=2))
        assert (found != logits.argmax(dim=2)).float().mean() > 0.5
        certain = functional.one_hot(found, 1024) * 50.0
        assert torch.equal(model.choose(certain, inputs), found)


@torch.no_grad()
def test_without_vectors_codes_are_the_likeliest() -> None:
    logits, codes = torch.randn(2, 7, 1024), torch.zeros(2, 9, 8, dtype=torch.int64)
    inputs = without_text(codes, [2, 2], [9, 9], stage=3)
    assert torch.equal(toy_nar({}).choose(logits, inputs), logits.argmax(dim=2))


@torch.no_grad()
def test_the_mean_is_moved_to_the_prompts() -> None:
    """Compared with NumPy, row by row, in a ragged batch with one row that has no prompt."""
    model, stage = toy_nar({"prompt_mean": True}, 5), 3
    vectors = model.vectors.numpy()
    prompts, frames, codes = [6, 0, 9], [25, 30, 17], torch.randint(0, 1024, (3, 30, 8))
    wanted = torch.randn(3, 30, 5)
    inputs = without_text(codes, prompts, frames, stage)
    found = model.to_prompt(wanted, inputs)
    for row, (start, end) in enumerate(zip(prompts, frames, strict=True)):
        said = [vectors[book - 1][codes[row, :, book]] for book in range(1, 8)]
        target = sum(said[:2])[start:end] + wanted[row, start:end].numpy()
        doubt = start / (start + 30) * (end - start) / (end - start + 30)
        shift = doubt * (sum(said)[:start].mean(axis=0) - target.mean(axis=0)) if start else np.zeros(5)
        np.testing.assert_allclose(found[row, 0], shift, atol=1e-6)
    logits = torch.randn(3, 30, 1024)
    moved = model.choose(logits, inputs)
    still = replace(model.config, style=Style())
    model.config = still
    assert (model.choose(logits, inputs) != moved)[[0, 2]].any(dim=1).all()


def test_a_mean_cannot_be_moved_without_vectors() -> None:
    with pytest.raises(ValueError, match="vector_width 0; expected vectors"):
        toy_nar({"prompt_mean": True})


@pytest.mark.parametrize("moved", [False, True], ids=["own mean", "prompt's mean"])
@pytest.mark.parametrize("style", ["valle2", "rotary-token"])
@pytest.mark.parametrize("lowering", LOWERINGS)
def test_every_lowering_chooses_as_the_module(
    lowering: str, style: str, moved: bool, trace: Trace, tmp_path: Path
) -> None:
    model = toy_nar(STYLES[style] | {"prompt_mean": moved}, 5)
    row = nar_graph(model, lowering)
    spec = graph_spec(trace(row, tmp_path / "nar.onnx"), row)
    assert verify_nar(model, open_backend(tmp_path, spec, Placement(threads=1))) < LOGITS_TOLERANCE


def test_a_graph_that_chooses_otherwise_is_refused(trace: Trace, tmp_path: Path) -> None:
    model = toy_nar({"prompt_mean": True}, 5)
    row = nar_graph(model, "ort")
    backend = open_backend(tmp_path, graph_spec(trace(row, tmp_path / "nar.onnx"), row), Placement(threads=1))
    whole = model.config
    model.config = replace(whole, style=Style())
    with pytest.raises(ParityError, match="nar codes"):
        verify_nar(model, backend)
    model.config = whole
    with torch.no_grad():
        model.vectors.normal_()
    with pytest.raises(ParityError, match="nar codes"):
        verify_nar(model, backend)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
@torch.no_grad()
def test_smaller_graphs_choose_by_their_logits_in_float32(
    precision: str, trace: Trace, tmp_path: Path
) -> None:
    model = toy_nar({"prompt_mean": True}, 5)
    row = nar_graph(model, "ort")
    spec, built = graph_spec(trace(row, tmp_path / "nar.onnx"), row), tmp_path / "built"
    built.mkdir()
    method = METHODS[precision]["nar"]
    _, spec = build_graph(tmp_path, built, spec, method, model.config.to_dict())
    inputs = NARInputs(
        text=torch.randint(0, 30, (2, 7)),
        text_lengths=torch.tensor([7, 5]),
        codes=torch.randint(0, 1024, (2, 30, 8)),
        prompt_lengths=torch.tensor([12, 9]),
        frame_lengths=torch.tensor([30, 26]),
        stage=torch.tensor(3),
    )
    with open_backend(built, spec, Placement(threads=1)) as backend:
        found = backend.run(inputs.map(Tensor.numpy).feeds())
    logits = torch.from_numpy(found["logits"]).float()
    assert (logits - model(inputs)).abs().max() > LOGITS_TOLERANCE
    assert (found["codes_out"] == model.choose(logits, inputs).numpy()).mean() > 0.99


@pytest.mark.parametrize("lengths", [[30], [30, 30], [30, 21]], ids=["one", "full", "ragged"])
def test_full_rows_attend_without_scores(lengths: list[int], trace: Trace, tmp_path: Path) -> None:
    """Rows without padding take the branch without scores, others the branch with lengths."""
    model, full = toy_nar({}), len(set(lengths)) == 1
    row = nar_graph(model, "ort")
    path = trace(row, tmp_path / "nar.onnx")
    options = onnxruntime.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / "profile")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    count, generator = len(lengths), torch.Generator().manual_seed(3)
    inputs = NARInputs(
        text=torch.randint(0, 30, (count, 7), generator=generator),
        text_lengths=torch.full((count,), 7),
        codes=torch.randint(0, 1024, (count, 30, 8), generator=generator),
        prompt_lengths=torch.full((count,), 9),
        frame_lengths=torch.tensor(lengths),
        stage=torch.tensor(4),
    )
    found = session.run(["logits"], inputs.map(Tensor.numpy).feeds())[0]
    ran = {event["args"].get("op_name") for event in json.loads(Path(session.end_profiling()).read_text())}
    assert ("MultiHeadAttention" in ran, "GroupQueryAttention" in ran) == (full, not full)
    with torch.no_grad():
        expected = model(inputs)
    for index, length in enumerate(lengths):
        gap = np.abs(found[index, : length - 9] - expected[index, : length - 9].numpy()).max()
        assert gap < LOGITS_TOLERANCE


def test_a_session_holds_the_code_tables_once(trace: Trace, tmp_path: Path) -> None:
    """They embed codes and give logits. ONNX Runtime would copy a table that the graph picks at run time."""
    graph = nar_graph(toy_nar({}), "ort")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(trace(graph, tmp_path / "nar.onnx"), options, ["CPUExecutionProvider"])
    shapes = [tuple(weight.dims) for weight in onnx.load(tmp_path / "optimised.onnx").graph.initializer]
    assert shapes.count((8 * 1024, 32)) == 1 and not {(8, 1024, 32), (1024, 32), (32, 1024)} & set(shapes)
