"""The NAR of CUDA for one row and for several, in float32 on the CPU, which has kernels of all operators."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from tests.conftest import Trace, toy_config
from tests.engine.build.cuda.on_cpu import captured_wrongly, need_cuda
from valle2.engine import Backend, BackendError, Placement, open_backend
from valle2.engine.backends.ladder import Ladder, Sizes
from valle2.engine.build.cuda.check import check_fused, of_targets
from valle2.engine.build.cuda.nar import nar_graph
from valle2.engine.build.cuda.nar_batch import nar_batch_graph
from valle2.engine.build.cuda.nodes import count_nodes, transfers
from valle2.engine.build.cuda.step import written_spec
from valle2.engine.build.external_data import write_graph
from valle2.engine.build.precision import convert, load_graph
from valle2.engine.bundle.contract import LOGITS, NAR_BATCH, NAR_ROW
from valle2.engine.bundle.nar_inputs import NARInputs
from valle2.engine.bundle.signatures import check_graph
from valle2.engine.bundle.specs import GraphSpec
from valle2.export.bundle import graph_spec
from valle2.export.graphs import nar_graph as exported
from valle2.export.models import NARModel
from valle2.export.models.config import Style
from valle2.runtime.generation.ladders import ONE, example, nar_rungs

MOST_PER_LAYER, MOST_BESIDE = 9, 45
STYLES = {
    "paper": (Style(), 0),
    "rotary": (Style(positions="rotary", prompt_mean=True), 4),
    "narrow": (Style(positions="rotary"), 4),
    "length": (Style(norm="l2", qkv_bias=False, head="one", head_bias=True, one_table=True), 0),
    "stages": (Style(stage="norm"), 0),
    "last": (Style(norm_first=False, activation="relu", prenet=True, head="own", stage_position=False), 0),
    "gated": (Style(norm="rms", activation="silu", gated=True, bias=False, qkv_bias=False, head="own"), 0),
}
NARROW = ("narrow",)
"""Styles whose heads are too narrow for `GroupQueryAttention`. They have 8 numbers, the others 16."""
FEWEST = {"paper": (7, 25), "rotary": (9, 30), "length": (7, 25), "stages": (7, 23), "last": (7, 41)}
"""Nodes a layer and beside the layers, at most."""
FEWEST_OF_BATCH = {"paper": (7, 31), "rotary": (9, 43), "length": (7, 31), "stages": (7, 27), "last": (7, 54)}
"""The same of the graph of several rows, whose positions are moved. A prenet masks the text at each layer."""
Make = Callable[[str], tuple[NARModel, Path]]


@pytest.fixture(scope="session")
def made(trace: Trace, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Style -> a toy NAR and the file of its graph."""

    @cache
    def make(name: str) -> tuple[NARModel, Path]:
        torch.manual_seed(1)
        style, vectors = STYLES[name]
        config = replace(
            toy_config(2, 400), style=style, vector_width=vectors, nar_d_model=32 if name in NARROW else 64
        )
        model = NARModel(config).eval()
        for weight in model.parameters():
            torch.nn.init.normal_(weight, std=0.15) if weight.dim() > 1 else weight.data.add_(
                0.1 * torch.randn_like(weight)
            )
        return model, trace(exported(model, "portable"), tmp_path_factory.mktemp(name) / "nar.onnx")

    return make


def one_row(stage: int, rng: np.random.Generator) -> NARInputs[torch.Tensor]:
    """A row without padding."""
    return NARInputs(
        text=torch.from_numpy(rng.integers(0, 30, (1, 11))),
        text_lengths=torch.tensor([11]),
        codes=torch.from_numpy(rng.integers(0, 1024, (1, 23, 8))),
        prompt_lengths=torch.tensor([9]),
        frame_lengths=torch.tensor([23]),
        stage=torch.tensor(stage),
    )


def written(
    write: Callable[..., onnx.ModelProto], name: str, model: NARModel, path: Path, folder: Path, *, half: bool
) -> GraphSpec:
    """Write a graph of a NAR into a folder."""
    graph = write(load_graph(path, "fp32"), model.config.sizes())
    if half:
        convert(graph, onnx.TensorProto.FLOAT16)
    spec = written_spec(graph, f"{name}.onnx")
    check_graph(name, spec, model.config.sizes(), 0)
    write_graph(graph, folder / spec.file)
    return spec


def compare_stages(
    model: NARModel, backend: Backend, make: Callable[[int], NARInputs[torch.Tensor]], *, half: bool
) -> None:
    """Logits and codes of every stage beside eager PyTorch in float32. make: the inputs of a stage."""
    for stage in range(1, 8):
        inputs = make(stage)
        expected = model(inputs)
        feeds = inputs.map(torch.Tensor.numpy).feeds()
        found = backend.run(feeds)
        frames = inputs.codes.shape[1] if backend.spec.graph == NAR_BATCH else expected.shape[1]
        assert found[LOGITS].shape == (len(expected), frames, 1024)
        differ = of_targets(feeds, found[LOGITS]) - of_targets(feeds, expected.numpy())
        assert np.abs(differ).max() < (0.05 if half else 1e-4)
        wanted = of_targets(feeds, model.choose(expected, inputs).numpy())
        assert (of_targets(feeds, found["codes_out"]) == wanted).mean() >= (0.9 if half else 1.0)


@torch.no_grad()
@pytest.mark.parametrize(
    ("style", "half"), [*((style, False) for style in STYLES), ("paper", True), ("rotary", True)]
)
def test_logits_and_codes_of_every_stage(made: Make, style: str, half: bool, tmp_path: Path) -> None:
    model, path = made(style)
    spec = written(nar_graph, NAR_ROW, model, path, tmp_path, half=half)
    rng = np.random.default_rng(0)
    with open_backend(tmp_path, spec) as backend:
        compare_stages(model, backend, lambda stage: one_row(stage, rng), half=half)


@pytest.mark.parametrize("style", FEWEST)
def test_it_has_few_nodes(made: Make, style: str) -> None:
    model, path = made(style)
    stored = load_graph(path, "fp32")
    counts = count_nodes(nar_graph(stored, model.config.sizes()))
    layer, beside = FEWEST[style]
    assert counts["per_layer"] <= layer <= MOST_PER_LAYER and counts["beside"] <= beside
    assert beside <= MOST_BESIDE
    before = count_nodes(stored)
    assert before["per_layer"] > 2 * layer and before["beside"] > 2 * beside


def ragged(
    rows: int, stage: int, rng: np.random.Generator, tokens: int = 12, most: int = 24
) -> NARInputs[torch.Tensor]:
    """Rows of different lengths of text, prompt and speech, the first one without padding."""
    text, frames = rng.integers(3, tokens, rows), rng.integers(9, most, rows)
    text[0], frames[0] = tokens, most
    return NARInputs(
        text=torch.from_numpy(rng.integers(0, 30, (rows, tokens))),
        text_lengths=torch.from_numpy(text),
        codes=torch.from_numpy(rng.integers(0, 1024, (rows, most, 8))),
        prompt_lengths=torch.from_numpy(frames // 3 * (stage % 3)),
        frame_lengths=torch.from_numpy(frames),
        stage=torch.tensor(stage),
    )


@torch.no_grad()
@pytest.mark.parametrize(
    ("style", "half"), [*((style, False) for style in STYLES), ("paper", True), ("rotary", True)]
)
def test_rows_of_different_lengths(made: Make, style: str, half: bool, tmp_path: Path) -> None:
    model, path = made(style)
    spec = written(nar_batch_graph, NAR_BATCH, model, path, tmp_path, half=half)
    rng = np.random.default_rng(0)
    with open_backend(tmp_path, spec) as backend:
        compare_stages(model, backend, lambda stage: ragged((1, 2, 4, 8)[stage % 4], stage, rng), half=half)


@torch.no_grad()
@pytest.mark.parametrize("style", ["paper", "rotary"])
def test_rows_together_are_those_alone(made: Make, style: str, tmp_path: Path) -> None:
    """The logits are the same but for rounding, and the codes are the same."""
    worst, same = rows_beside_alone(*made(style), tmp_path, Placement(), half=False)
    assert worst < 1e-4 and same == 1.0


@pytest.mark.gpu
@torch.no_grad()
@pytest.mark.parametrize("style", ["paper", "rotary", "stages", "last"])
def test_rows_together_are_those_alone_on_a_gpu(made: Make, style: str, tmp_path: Path) -> None:
    """The same in half precision, in which the last bit of a product depends on the number of rows."""
    need_cuda()
    worst, same = rows_beside_alone(*made(style), tmp_path, Placement("cuda", precision="fp16"), half=True)
    assert worst < 0.05 and same >= 0.9


@torch.no_grad()
@pytest.mark.parametrize(
    ("style", "half"),
    [
        ("rotary", False),
        *(
            pytest.param(style, half, marks=pytest.mark.slow)
            for style in STYLES
            for half in (False, True)
            if (style, half) != ("rotary", False)
        ),
    ],
)
def test_every_rung_of_a_ladder(made: Make, style: str, half: bool, tmp_path: Path) -> None:
    """Rows of different lengths in calls of every padded size, also where the rung has more rows."""
    model, path = made(style)
    spec = written(nar_batch_graph, NAR_BATCH, model, path, tmp_path, half=half)
    rng = np.random.default_rng(0)
    rungs = nar_rungs(model.config.sizes(), 8)
    assert {rung["batch"] for rung in rungs} == {1, 2, 4, 8}
    with open_backend(tmp_path, spec) as backend:
        for stage, rung in enumerate(rungs):
            ladder = Ladder(backend, [rung], whole_outputs, ONE)
            compare_rung(model, ladder, rung, 1 + stage % 7, rng, half=half)


@pytest.mark.gpu
@torch.no_grad()
@pytest.mark.parametrize("style", ["paper", "rotary", "stages", "last"])
def test_captured_calls_on_a_gpu(made: Make, style: str, tmp_path: Path) -> None:
    """All sizes are captured, then replayed in another order, between calls that are not captured."""
    need_cuda()
    model, path = made(style)
    spec = written(nar_batch_graph, NAR_BATCH, model, path, tmp_path, half=True)
    rng = np.random.default_rng(0)
    rungs = nar_rungs(model.config.sizes(), 8)
    with open_backend(tmp_path, spec, Placement("cuda", precision="fp16"), stepped=True) as backend:
        assert backend.captures_calls
        ladder = Ladder(backend, rungs, whole_outputs, ONE)
        assert ladder.warm_up(partial(example, spec))
        for stage, index in enumerate(rng.permutation(len(rungs))):
            backend.run(one_row(1 + stage % 7, rng).map(torch.Tensor.numpy).feeds())
            compare_rung(model, ladder, rungs[index], 1 + stage % 7, rng, half=True)


def compare_rung(
    model: NARModel, ladder: Ladder, rung: dict[str, int], stage: int, rng: np.random.Generator, *, half: bool
) -> None:
    """A call of a rung that fills most of it, beside eager PyTorch."""
    shape = rung["tokens"] - 3, rung["frames"] - 5
    inputs = ragged(rung["batch"] - rung["batch"] // 4, stage, rng, *shape)
    feeds = inputs.map(torch.Tensor.numpy).feeds()
    expected, found = model(inputs), ladder.run(feeds)
    assert found is not None and found[LOGITS].shape == (rung["batch"], rung["frames"], 1024)
    (count, frames, _), wanted = inputs.codes.shape, model.choose(expected, inputs).numpy()
    logits, codes = (of_targets(feeds, found[name][:count, :frames]) for name in (LOGITS, "codes_out"))
    assert np.abs(logits - of_targets(feeds, expected.numpy())).max() < (0.05 if half else 1e-4)
    assert (codes == of_targets(feeds, wanted)).mean() >= (0.9 if half else 1.0)


def whole_outputs(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    """Logits and codes of a rung."""
    shape = sizes["batch"], sizes["frames"]
    return {LOGITS: (*shape, 1024), "codes_out": shape}


def rows_beside_alone(
    model: NARModel, path: Path, folder: Path, placement: Placement, *, half: bool
) -> tuple[float, float]:
    """Each row of joint calls beside the row alone, as the runtime runs them: `nar_batch`, `nar_row`.

    Returns:
        The greatest difference of logits, and the share of codes that are the same, of all stages.
    """
    worst, same, rng = 0.0, [], np.random.default_rng(0)
    joint_graph = written(nar_batch_graph, NAR_BATCH, model, path, folder, half=half)
    row_graph = written(nar_graph, NAR_ROW, model, path, folder, half=half)
    with (
        open_backend(folder, joint_graph, placement) as joint,
        open_backend(folder, row_graph, placement) as alone,
    ):
        for stage in range(1, 8):
            inputs = ragged((2, 4, 8)[stage % 3], stage, rng)
            together = joint.run(inputs.map(torch.Tensor.numpy).feeds())
            for row in range(len(inputs.text)):
                single = row_of(inputs, row)
                expected = alone.run(single.map(torch.Tensor.numpy).feeds())
                target = slice(int(single.prompt_lengths[0]), int(single.frame_lengths[0]))
                worst = max(worst, float(np.abs(together[LOGITS][row, target] - expected[LOGITS][0]).max()))
                same.append(together["codes_out"][row, target] == expected["codes_out"][0])
    return worst, float(np.concatenate(same).mean())


def row_of(inputs: NARInputs[torch.Tensor], row: int) -> NARInputs[torch.Tensor]:
    """One row without its padding."""
    only = slice(row, row + 1)
    text, frames = int(inputs.text_lengths[row]), int(inputs.frame_lengths[row])
    return NARInputs(
        text=inputs.text[only, :text],
        text_lengths=inputs.text_lengths[only],
        codes=inputs.codes[only, :frames],
        prompt_lengths=inputs.prompt_lengths[only],
        frame_lengths=inputs.frame_lengths[only],
        stage=inputs.stage,
    )


@pytest.mark.parametrize("style", FEWEST_OF_BATCH)
def test_a_batch_has_few_nodes(made: Make, style: str) -> None:
    """No size depends on data, so that the graph can be captured."""
    model, path = made(style)
    stored = load_graph(path, "fp32")
    graph = nar_batch_graph(stored, model.config.sizes())
    counts, (layer, beside) = count_nodes(graph), FEWEST_OF_BATCH[style]
    assert counts["per_layer"] <= layer <= MOST_PER_LAYER and counts["beside"] <= beside, counts
    assert beside <= MOST_BESIDE or style == "last"
    assert transfers(graph) == []
    feeds = ragged(3, 2, np.random.default_rng(0)).map(torch.Tensor.numpy).feeds()
    assert captured_wrongly(stored, feeds) and captured_wrongly(graph, feeds) == []


def test_a_wrong_graph_of_a_batch_is_refused(made: Make) -> None:
    """One that looks at the padding."""
    model, path = made("paper")
    spec, sizes = graph_spec(path, exported(model, "portable")), model.config.sizes()
    graph = nar_batch_graph(load_graph(path, "fp32"), sizes)
    check_fused(path.parent, spec, graph, sizes)
    for node in graph.graph.node:
        if node.op_type == "Attention":
            del node.input[3]
    with pytest.raises(BackendError, match=r"differs from nar\.onnx in logits"):
        check_fused(path.parent, spec, graph, sizes)


def test_a_wrong_graph_is_refused(made: Make) -> None:
    model, path = made("paper")
    spec, sizes = graph_spec(path, exported(model, "portable")), model.config.sizes()
    graph = nar_graph(load_graph(path, "fp32"), sizes)
    check_fused(path.parent, spec, graph, sizes)
    node = next(node for node in graph.graph.node if node.op_type == "Attention")
    node.attribute.append(onnx.helper.make_attribute("unidirectional", 1))
    with pytest.raises(BackendError, match=r"differs from nar\.onnx in logits"):
        check_fused(path.parent, spec, graph, sizes)


@pytest.mark.parametrize("length", [0, 1, 22])
def test_any_length_of_prompt(made: Make, length: int, tmp_path: Path) -> None:
    """Without a prompt there is no mean to move to."""
    model, path = made("rotary")
    spec = written(nar_graph, NAR_ROW, model, path, tmp_path, half=False)
    inputs = replace(one_row(3, np.random.default_rng(0)), prompt_lengths=torch.tensor([length]))
    with open_backend(tmp_path, spec) as backend, torch.no_grad():
        expected = model(inputs)
        found = backend.run(inputs.map(torch.Tensor.numpy).feeds())
        assert np.abs(found[LOGITS] - expected.numpy()).max() < 1e-4
        assert np.array_equal(found["codes_out"], model.choose(expected, inputs).numpy())


def test_codes_that_are_wrong_are_refused(made: Make) -> None:
    """The logits are right, and the move towards the prompt's mean is not."""
    model, path = made("rotary")
    spec, sizes = graph_spec(path, exported(model, "portable")), model.config.sizes()
    graph = nar_graph(load_graph(path, "fp32"), sizes)
    check_fused(path.parent, spec, graph, sizes)
    node = next(node for node in graph.graph.node if node.op_type == "Gemm")
    node.attribute[0].f *= -1
    with pytest.raises(BackendError, match=r"differs from nar\.onnx in codes_out"):
        check_fused(path.parent, spec, graph, sizes)


@pytest.mark.gpu
@torch.no_grad()
@pytest.mark.parametrize("style", ["paper", "rotary", "stages", "last"])
def test_on_a_gpu(made: Make, style: str, tmp_path: Path) -> None:
    """Logits and codes of every stage in half precision, beside eager PyTorch in float32."""
    need_cuda()
    model, path = made(style)
    spec = written(nar_graph, NAR_ROW, model, path, tmp_path, half=True)
    rng, same = np.random.default_rng(0), []
    with open_backend(tmp_path, spec, Placement("cuda", precision="fp16")) as backend:
        for stage in range(1, 8):
            inputs = one_row(stage, rng)
            expected = model(inputs)
            found = backend.run(inputs.map(torch.Tensor.numpy).feeds())
            assert np.abs(found[LOGITS] - expected.numpy()).max() < 0.05
            same.append(found["codes_out"] == model.choose(expected, inputs).numpy())
    assert np.mean(np.concatenate(same)) >= 0.9


def test_it_takes_one_row(made: Make, tmp_path: Path) -> None:
    model, path = made("paper")
    spec = written(nar_graph, NAR_ROW, model, path, tmp_path, half=False)
    feeds = one_row(1, np.random.default_rng(0)).map(torch.Tensor.numpy).feeds()
    two = {
        name: value if value.ndim == 0 else np.concatenate([value, value]) for name, value in feeds.items()
    }
    with open_backend(tmp_path, spec) as backend, pytest.raises(BackendError, match=r"expected int64 \(1,"):
        backend.run(two)
