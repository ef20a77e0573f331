"""If float32 cannot represent the logits, float64 decides: right graphs pass, wrong ones are refused.

The networks here have sharp attention and large logits. Right graphs therefore differ from eager float32 by
several times the plain bound. A random checkpoint of VALL-E X's published size does, too.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from tests.conftest import Trace, toy_config
from tests.export.models.test_nar import STYLES, toy_nar
from valle2.engine import Backend, Placement, open_backend, read_manifest
from valle2.export import ParityError, export_checkpoint
from valle2.export import bundle as bundle_module
from valle2.export.bundle import ACCEPTED, graph_spec
from valle2.export.graphs import Graph, ar_graph, nar_graph
from valle2.export.models import ARModel, ModelConfig, NARModel, Style
from valle2.export.models.ar import Window
from valle2.export.models.layers import EPSILON
from valle2.export.verify.float64 import in_float64
from valle2.export.verify.judge import LOGITS_TOLERANCE, MULTIPLE, Judge, Sides
from valle2.export.verify.parity import ar_calls, nar_inputs, run_module, verify_ar, verify_nar
from valle2.runtime.cli.main import main

CAPACITY = 128
NO_ROUNDING = 1e-12
AHEAD = {"text_ahead": True, "prenet": True, "head": "own", "stage": "norm", "activation": "relu"}
Model = ARModel | NARModel


def deep(kind: type[ARModel] | type[NARModel], vector_width: int = 0) -> Model:
    """Three layers with random weights four times as large as usual, and heads with large logits."""
    torch.manual_seed(0)
    style = Style(stage="norm", head="own", head_bias=True)
    sizes = {"vocab_size": 40, "d_model": 64, "heads": 4, "layers": 3, "ffn": 256, "group_size": 2}
    model = kind(ModelConfig(**sizes, max_text=96, max_frames=400, style=style, vector_width=vector_width))
    for name, weight in model.named_parameters():
        if weight.dim() > 1 and "norm" not in name:
            head = name in ("heads", "predict.weight")
            nn.init.normal_(weight, std=(8 if head else 4) / weight.shape[-1] ** 0.5)
        elif name.endswith("bias"):
            nn.init.normal_(weight, std=0.1)
    return model.eval().requires_grad_(False)


@dataclass(frozen=True)
class Pair:
    """A module, its graph, and the comparison of the two."""

    model: Model
    backend: Backend

    def verify(self, judge: Judge, model: Model | None = None) -> float:
        model = model or self.model
        if isinstance(model, ARModel):
            return verify_ar(model, self.backend, CAPACITY, judge)
        return verify_nar(model, self.backend, judge)


def paired(model: Model, trace: Trace, folder: Path) -> Pair:
    row = ar_graph(model, "ort", CAPACITY) if isinstance(model, ARModel) else nar_graph(model, "ort")
    spec = graph_spec(trace(row, folder / f"{row.name}.onnx"), row)
    return Pair(model, open_backend(folder, spec, Placement(threads=1)))


@pytest.fixture(scope="module", params=[ARModel, NARModel], ids=["ar", "nar"])
def pair(request: pytest.FixtureRequest, trace: Trace, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return paired(deep(request.param), trace, tmp_path_factory.mktemp("deep"))


def toy_ar(style: dict[str, object]) -> ARModel:
    torch.manual_seed(0)
    model = ARModel(replace(toy_config(2, 400), style=Style(**style))).eval()  # type: ignore[arg-type]
    for weight in model.parameters():
        if weight.dim() > 1:
            nn.init.normal_(weight, std=0.15)
    return model


@pytest.mark.parametrize("style", [*STYLES.values(), AHEAD], ids=[*STYLES, "ahead"])
@torch.no_grad()
def test_in_float64_is_the_module_in_float64(style: dict[str, object]) -> None:
    """And the module is unchanged."""
    nar, ar = toy_nar(style, 5), toy_ar(style)
    inputs = nar_inputs(nar.config, 3, np.random.default_rng(0)).map(torch.from_numpy)
    calls = ar_calls(ar.config, 3)
    before = [copy.deepcopy(model.state_dict()) for model in (nar, ar)]
    with in_float64():
        logits, (steps, caches) = nar(inputs), run_module(ar, calls)
        codes = nar.choose(logits, inputs)
    for model, state in zip((nar, ar), before, strict=True):
        for name, weight in model.state_dict().items():
            assert weight.dtype == torch.float32 and torch.equal(weight, state[name])
    wide_nar, wide_ar = copy.deepcopy(nar).double(), copy.deepcopy(ar).double()
    wide_ar.empty_caches = lambda *sizes: [  # type: ignore[method-assign]
        (key.double(), value.double()) for key, value in ar.empty_caches(*sizes)
    ]
    expected, (wide_steps, wide_caches) = wide_nar(inputs), run_module(wide_ar, calls)
    assert logits.dtype == torch.float64 and steps.dtype == caches[-1].dtype == np.float64
    assert (logits - expected).abs().max() < NO_ROUNDING and np.abs(steps - wide_steps).max() < NO_ROUNDING
    assert np.abs(caches[-1] - wide_caches[-1]).max() < NO_ROUNDING
    assert torch.equal(codes, wide_nar.choose(expected, inputs))
    assert (logits - nar(inputs)).abs().max() > NO_ROUNDING


def test_right_graphs_with_large_logits_pass(pair: Pair) -> None:
    judge = Judge()
    difference, name = pair.verify(judge), "ar" if isinstance(pair.model, ARModel) else "nar"
    off, rounding = judge.parity[f"{name}_float64"], judge.parity[f"{name}_eager_float64"]
    assert difference == judge.parity[name] > 3 * LOGITS_TOLERANCE
    assert LOGITS_TOLERANCE < off < MULTIPLE * rounding and not judge.accepted


def test_codes_by_vectors_are_judged_too(trace: Trace, tmp_path: Path) -> None:
    judge = Judge()
    paired(deep(NARModel, 5), trace, tmp_path).verify(judge)
    assert judge.parity["nar_float64"] > LOGITS_TOLERANCE


def test_logits_within_the_plain_bound_need_no_float64(trace: Trace, tmp_path: Path) -> None:
    judge = Judge()
    paired(toy_nar({}), trace, tmp_path).verify(judge)
    assert set(judge.parity) == {"nar"} and judge.parity["nar"] < LOGITS_TOLERANCE


def no_bias(model: Model, patch: pytest.MonkeyPatch) -> None:
    model.blocks[1].down.bias.zero_()  # type: ignore[union-attr, operator]


def one_weight(model: Model, patch: pytest.MonkeyPatch) -> None:
    model.blocks[0].up.weight[5, 7] += 0.1  # type: ignore[union-attr, index, operator]


def one_head_weight(model: Model, patch: pytest.MonkeyPatch) -> None:
    weight = model.predict.weight if isinstance(model, ARModel) else model.heads[2]
    weight[100, 7] += 0.1


def half(model: Model, patch: pytest.MonkeyPatch) -> None:
    for weight in model.parameters():
        weight.copy_(weight.half())


def tanh_gelu(model: Model, patch: pytest.MonkeyPatch) -> None:
    for block in model.blocks:
        block.act.activation = partial(functional.gelu, approximate="tanh")  # type: ignore[union-attr]


def epsilon(model: Model, patch: pytest.MonkeyPatch) -> None:
    patch.setitem(EPSILON, "layer", 1e-6)


def mask(model: Model, patch: pytest.MonkeyPatch) -> None:
    """Let a query see a position that it must not see, or hide one that it must see."""
    if isinstance(model, NARModel):
        masked = model.masked
        patch.setattr(
            model, "masked", lambda x, seen, *rest: masked(x, seen.logical_not().cumsum(1) < 2, *rest)
        )
        return
    window = model.window

    def shifted(*args: object) -> Window:
        found: Window = window(*args)  # type: ignore[arg-type]
        return replace(found, mask=found.mask | found.mask.roll(1, dims=3))

    patch.setattr(model, "window", shifted)


PLACE = {
    "ar": r"^ar: .* at step \d, row \d, slot \d.* float64\b.*; nothing was written.* --accept-difference",
    "nar": r"^nar: .* of stage \d at row \d, position \d+.* float64\b.*; nothing was written.* --accept-diff",
}
CHANGES: list[Callable[[Model, pytest.MonkeyPatch], None]] = [
    no_bias,
    one_weight,
    one_head_weight,
    half,
    tanh_gelu,
    epsilon,
    mask,
]


@pytest.mark.parametrize("change", CHANGES, ids=[change.__name__ for change in CHANGES])
@torch.no_grad()
def test_wrong_graphs_are_refused(
    pair: Pair, change: Callable[[Model, pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The module changes and the graph stays. It makes no difference which of the two is wrong."""
    model = copy.deepcopy(pair.model)
    change(model, monkeypatch)
    judge = Judge()
    with pytest.raises(ParityError, match=PLACE["ar" if isinstance(model, ARModel) else "nar"]):
        pair.verify(judge, model)
    assert len(judge.parity) == 3


def test_the_first_cache_that_is_out_is_named(trace: Trace, tmp_path: Path) -> None:
    right = paired(deep(ARModel), trace, tmp_path)
    for change, hint in (
        (one_weight, "the first cache that is out is cache_key_1"),
        (one_head_weight, "no cache"),
    ):
        model = copy.deepcopy(right.model)
        change(model, pytest.MonkeyPatch())
        with pytest.raises(ParityError, match=f"{hint}.*nothing was written"):
            right.verify(Judge(), model)


def test_an_accepted_difference_is_noted_and_nan_is_not_accepted(pair: Pair) -> None:
    model, judge = copy.deepcopy(pair.model), Judge(accept=True, suffix="-portable")
    one_head_weight(model, pytest.MonkeyPatch())
    difference, name = pair.verify(judge, model), "ar" if isinstance(model, ARModel) else "nar"
    assert difference == judge.parity[f"{name}-portable"] > 0.1
    assert len(judge.accepted) == 1 and judge.accepted[0].startswith(f"{name}-portable: the logit")
    weight = model.predict.weight if isinstance(model, ARModel) else model.heads
    weight.fill_(torch.nan)
    with pytest.raises(ParityError, match="nan in eager float32"):
        pair.verify(Judge(accept=True), model)


def test_only_a_tie_may_be_chosen_otherwise() -> None:
    truth = np.array([[[1.0, 1.0003, 0.0]], [[2.0, 0.0, 1.999]]])
    sides = Sides("the logit", ("row", "position", "code"), truth, truth, truth, np.array([[0], [0]]))
    assert sides.choice(5e-4).right and not sides.choice(1e-4).right
    assert (
        "at row 0, position 0 the graph chooses code 0 and float64 chooses 1" in sides.choice(1e-4).sentence
    )
    assert replace(sides, chosen=np.array([[1], [0]])).choice(0.0).right
    assert not replace(sides, chosen=np.array([[1], [2]])).choice(5e-4).right


def off_in_the_nar(trace: Trace, row: Graph, path: Path, shared: Path | None = None) -> Path:
    """`export_graph` with wrong weights in the NAR."""
    if row.name == "nar":
        module = copy.deepcopy(row.module)
        with torch.no_grad():
            module.model.blocks[0].up.weight[5, 7] += 1.0  # type: ignore[union-attr, index]
        row = replace(row, module=module)
    return trace(row, path, shared)  # type: ignore[call-arg]


def test_a_bundle_with_an_accepted_difference_says_so(
    checkpoint_folder: Path,
    tmp_path: Path,
    trace: Trace,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(bundle_module, "export_graph", partial(off_in_the_nar, trace))
    with pytest.raises(ParityError, match="--accept-difference"):
        export_checkpoint(checkpoint_folder, tmp_path / "out", codec=False)
    command = ["export", str(checkpoint_folder), "-o", str(tmp_path / "out"), "--no-codec", "--json"]
    assert main(command) == 1 and "nar: the logit of stage" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert main([*command, "--accept-difference"]) == 0
    printed, manifest = capsys.readouterr(), read_manifest(tmp_path / "out")
    said = manifest.provenance[ACCEPTED]
    assert said.startswith("nar: the logit of stage") and "more than" in said
    assert manifest.parity["nar"] > LOGITS_TOLERANCE > manifest.parity["nar_eager_float64"]
    assert manifest.parity["nar_float64"] == pytest.approx(manifest.parity["nar"], rel=0.1)
    assert printed.err == f"warning: {said}; written all the same\n"
    assert json.loads(printed.out) == {
        "bundle": str(tmp_path / "out"),
        "lowering": "ort",
        "parity": manifest.parity,
        ACCEPTED: said,
    }
