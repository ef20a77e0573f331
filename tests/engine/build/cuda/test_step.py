"""The decode graph of CUDA in float32 on the CPU, where all of its operators have kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from tests.conftest import Trace, toy_config
from tests.engine.build.cuda.on_cpu import captured_wrongly
from tests.export import test_parity as parity
from valle2.engine import (
    Backend,
    BackendError,
    GraphSpec,
    Placement,
    find_graphs,
    open_backend,
    read_manifest,
)
from valle2.engine.backends.ort.providers import PROVIDERS
from valle2.engine.build.cuda.check import check_fused, random_step
from valle2.engine.build.cuda.nodes import count_bundle, count_nodes, transfers
from valle2.engine.build.cuda.reader import UnsupportedGraphError
from valle2.engine.build.cuda.step import step_graph, written_spec
from valle2.engine.build.external_data import write_graph
from valle2.engine.build.ort import BuildOptions, build_graph, build_graphs
from valle2.engine.build.precision import convert, load_graph
from valle2.engine.build.quantize import quantise
from valle2.engine.bundle.contract import (
    BUILT_GRAPHS,
    CACHE_PREFIX,
    FUSED_DECODER,
    NAR_BATCH,
    NAR_ROW,
    PADDED_DECODER,
    STEP,
)
from valle2.engine.bundle.precisions import CUDA_METHODS, METHODS, graph_folder, read_build_record
from valle2.export.bundle import graph_spec
from valle2.export.graphs import ar_graph, cache_names
from valle2.export.models import ARModel
from valle2.export.models.config import Style
from valle2.runtime import Settings
from valle2.runtime.generation.ar_runner import ARRunner
from valle2.runtime.tts import find_model

CAPACITY, WINDOW = parity.CAPACITY, 10
MOST_PER_LAYER, MOST_BESIDE, MOST_OF_A_CODEC = 9, 45, 61
CPU, GPU = Placement("cpu"), Placement("cuda", precision="fp16")
HALF_SAME = 0.9
STYLES = {
    "paper": Style(),
    "rotary": Style(
        norm="rms",
        activation="silu",
        gated=True,
        qkv_bias=False,
        bias=False,
        positions="rotary",
        head="own",
        text_ahead=True,
    ),
    "last": Style(norm_first=False, activation="relu", text_ahead=True, head="own", prenet=True),
    "length": Style(norm="l2", qkv_bias=False, head="one", head_bias=True, code_bos=False),
    "ends": Style(positions="rotary", argmax_ends=True),
}


@dataclass(frozen=True, slots=True)
class Made:
    """A model, its AR graph, and the decode graph in float32."""

    model: ARModel
    folder: Path
    spec: GraphSpec
    step: onnx.ModelProto

    @property
    def sizes(self) -> dict[str, Any]:
        return self.model.config.sizes()

    def decoder(
        self, folder: Path, step: onnx.ModelProto | None = None, placement: Placement = CPU
    ) -> Backend:
        """The decode graph as a backend."""
        copy = onnx.ModelProto.FromString((step or self.step).SerializeToString())
        spec = written_spec(copy, f"{STEP}.onnx")
        folder.mkdir(exist_ok=True)
        write_graph(copy, folder / spec.file)
        return open_backend(folder, spec, placement, stepped=True)


Make = Callable[[int, str], Made]


@pytest.fixture(scope="session")
def made(trace: Trace, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """(group size, style) -> a toy model with its graphs."""

    @cache
    def make(group_size: int, style: str) -> Made:
        torch.manual_seed(group_size)
        config = replace(toy_config(group_size, 256 * group_size), style=STYLES[style], d_model=64)
        model = ARModel(config).eval()
        for weight in model.parameters():
            torch.nn.init.normal_(weight, std=0.15) if weight.dim() > 1 else weight.data.add_(
                0.1 * torch.randn_like(weight)
            )
        row = ar_graph(model, "portable", CAPACITY)
        path = trace(row, tmp_path_factory.mktemp(f"{style}{group_size}") / "ar.onnx")
        step = step_graph(load_graph(path, "fp32"), config.sizes(), WINDOW)
        return Made(model, path.parent, graph_spec(path, row), step)

    return make


@torch.no_grad()
def logits_beside_eager(found: Made, decoder: Backend, steps: int) -> float:
    """Prefill each of three rows, then take steps with the decoder. Returns the greatest difference."""
    model, config, rng = found.model, found.model.config, np.random.default_rng(0)
    rows, kinds = 3, {tensor.name: tensor.dtype for tensor in decoder.spec.inputs}
    past = np.array([4, 17, 90])
    lengths = np.array([3, 9, 40])
    text = torch.from_numpy(rng.integers(0, config.vocab_size + 1, (rows, 90)))
    codes = torch.from_numpy(rng.integers(0, 1024, (rows, 90, config.group_size)))
    counts, start = torch.from_numpy(lengths), torch.zeros(rows, dtype=torch.int64)
    window = model.window(start, torch.from_numpy(past), 90, CAPACITY, counts)
    _, caches = model.forward_cached(text, codes, counts, window, model.empty_caches(rows, CAPACITY))
    names = cache_names(config.layers)
    flat = [part.numpy() for pair in caches for part in pair]
    feeds = {name: part.astype(kinds[name]) for name, part in zip(names, flat, strict=True)}
    axes = next(tensor.axes for tensor in decoder.spec.inputs if tensor.name == "uniforms")
    draws = tuple(map(int, axes[1:]))
    feeds |= {
        "history": np.full((rows, WINDOW), -1),
        "uniforms": np.zeros((rows, *draws), np.float32),
        "top_p": np.zeros(rows, np.float32),
        "repeat_window": np.full(rows, WINDOW),
        "threshold": np.ones(rows, np.float32),
        "steps": np.zeros(rows, np.int64),
        "text_lengths": lengths,
        "new_lengths": np.ones(rows, np.int64),
    }
    worst = 0.0
    for _ in range(steps):
        drawn = rng.integers(0, 1024, (rows, 1, config.group_size))
        one = torch.ones(rows, dtype=torch.int64)
        window = model.window(torch.from_numpy(past), one, 1, CAPACITY, counts)
        step = torch.from_numpy(drawn)
        expected, caches = model.forward_cached(text[:, :1], step, counts, window, caches)
        taken = [tensor.name for tensor in decoder.spec.inputs]
        inputs = feeds | {"codes": drawn, "past_lengths": past}
        # a cache is bound to one buffer, as the runtime does: with two, old positions are lost
        buffers = {name: decoder.buffer(inputs[name].shape, inputs[name].dtype) for name in taken}
        for name, buffer in buffers.items():
            buffer.write(inputs[name])
        out = decoder.buffer(tuple(map(int, expected.shape)), np.float32)
        outputs = {f"{name}_out": buffers[name] for name in names} | {"logits": out}
        decoder.bind(buffers, outputs)()
        feeds |= {name: buffers[name].read() for name in names}
        worst = max(worst, float(np.abs(out.read() - expected.numpy()).max()))
        past = past + 1
    return worst


@pytest.mark.parametrize(
    ("group_size", "style"),
    [*((group, "paper") for group in parity.GROUPS), *((2, style) for style in STYLES if style != "paper")],
)
def test_logits_of_steps_at_different_positions(
    made: Make, group_size: int, style: str, tmp_path: Path
) -> None:
    found = made(group_size, style)
    assert logits_beside_eager(found, found.decoder(tmp_path), 30) < parity.TOLERANCE


@pytest.mark.parametrize("group_size", parity.GROUPS)
@pytest.mark.parametrize(
    "settings", [Settings(top_p=0.0, threshold=1.0), Settings(top_p=0.6)], ids=["greedy", "seeded"]
)
def test_codes_equal_the_reference_in_a_ragged_batch(
    made: Make, group_size: int, settings: Settings, tmp_path: Path
) -> None:
    found, steps = made(group_size, "paper"), 40
    prefill = open_backend(found.folder, found.spec)
    sizes = {**found.sizes}
    runner = ARRunner(prefill, sizes, CAPACITY, 4, WINDOW, decoder=found.decoder(tmp_path))
    rows = parity.ragged_rows(found.model, settings, steps)
    batch = parity.decoded(runner, rows, steps)
    alone = [parity.decoded(runner, [row], steps)[0] for row in rows]
    assert batch == alone
    agreed = [
        parity.agrees(found.model, row, one, steps, cached=True) for row, one in zip(rows, batch, strict=True)
    ]
    assert sum(agreed) >= len(rows) - (settings.top_p > 0)
    runner.close()


def test_a_bias_before_relu_costs_no_node(made: Make) -> None:
    """It is part of `Max` and of the next product's bias. Gates without biases take two more nodes."""
    counts = count_nodes(made(2, "last").step)
    assert counts["per_layer"] <= MOST_PER_LAYER and counts["beside"] <= MOST_BESIDE
    assert count_nodes(made(2, "rotary").step)["per_layer"] <= MOST_PER_LAYER + 1


@pytest.mark.parametrize("settings", parity.EARLY, ids=["first draw", "redraw"])
@pytest.mark.parametrize("group_size", parity.GROUPS)
def test_an_early_end_is_rejected_as_in_the_reference(
    made: Make, group_size: int, settings: Settings, tmp_path: Path
) -> None:
    found = made(group_size, "paper")
    prefill = open_backend(found.folder, found.spec)
    runner = ARRunner(prefill, {**found.sizes}, CAPACITY, 4, WINDOW, decoder=found.decoder(tmp_path))
    parity.check_early_ends(found.model, runner, settings)
    runner.close()


def test_a_step_has_few_nodes(made: Make) -> None:
    found = made(2, "paper")
    counts = count_nodes(found.step)
    assert counts["per_layer"] <= MOST_PER_LAYER and counts["beside"] <= MOST_BESIDE
    feeds = random_step(written_spec(found.step, f"{STEP}.onnx"), found.sizes, np.random.default_rng(0))
    taken = {value.name for value in found.step.graph.input}
    feeds = {name: value for name, value in feeds.items() if name in taken}
    assert transfers(found.step) == captured_wrongly(found.step, feeds) == []
    stored = count_nodes(onnx.load(found.folder / found.spec.file, load_external_data=False))
    assert stored["per_layer"] > 2 * counts["per_layer"] and stored["beside"] > 2 * counts["beside"]
    for precision in ("int8", "int4"):
        model = onnx.ModelProto.FromString(found.step.SerializeToString())
        method = replace(CUDA_METHODS[precision][STEP], kind="blocks")
        assert quantise(model, method) == 4 * found.model.config.layers + 2
        fewer = count_nodes(model)  # a bias is part of the product
        assert fewer["per_layer"] == counts["per_layer"] - 1 and fewer["beside"] <= counts["beside"]


@pytest.mark.parametrize(("kind", "most"), [("half", 0.05), ("int8", 0.2), ("int4", 3.0)])
def test_half_precision_and_stored_weights(made: Make, kind: str, most: float, tmp_path: Path) -> None:
    """The CPU computes float16 in float32 where it has no kernel, so this is the rounding of the weights."""
    found = made(2, "paper")
    model = onnx.ModelProto.FromString(found.step.SerializeToString())
    if kind != "half":
        quantise(model, replace(CUDA_METHODS[kind][STEP], kind="blocks"))
    convert(model, onnx.TensorProto.FLOAT16)
    decoder = found.decoder(tmp_path, model)
    caches = {t.dtype for t in decoder.spec.inputs if t.name.startswith(CACHE_PREFIX)}
    assert caches == {"float16"}
    assert logits_beside_eager(found, decoder, 10) < most


def set_attribute(name: str, value: int | float) -> Callable[[onnx.NodeProto], None]:
    """Replace an attribute of a node."""

    def change(node: onnx.NodeProto) -> None:
        kept = [entry for entry in node.attribute if entry.name != name]
        del node.attribute[:]
        node.attribute.extend([*kept, onnx.helper.make_attribute(name, value)])

    return change


def drop_bias(node: onnx.NodeProto) -> None:
    del node.input[4]


def swap_caches(node: onnx.NodeProto) -> None:
    node.input[3], node.input[4] = node.input[4], node.input[3]


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("GroupQueryAttention", set_attribute("scale", 0.5)),
        ("GroupQueryAttention", set_attribute("local_window_size", 4)),
        ("GroupQueryAttention", swap_caches),
        ("SkipLayerNormalization", set_attribute("epsilon", 0.1)),
        ("SkipLayerNormalization", drop_bias),
    ],
)
def test_a_wrong_graph_is_refused(made: Make, kind: str, change: Callable[[onnx.NodeProto], None]) -> None:
    found = made(2, "paper")
    check_fused(found.folder, found.spec, found.step, found.sizes)
    wrong = onnx.ModelProto.FromString(found.step.SerializeToString())
    change([node for node in wrong.graph.node if node.op_type == kind and len(node.input) > 3][-1])
    with pytest.raises(BackendError, match=r"differs from ar\.onnx in .*logits"):
        check_fused(found.folder, found.spec, wrong, found.sizes)


def test_the_tanh_form_of_gelu_is_kept_apart(made: Make) -> None:
    """`BiasGelu` is exact, `FastGelu` is the tanh form: the graph has the one that the model has."""
    found = made(2, "paper")
    assert {n.op_type for n in found.step.graph.node} & {"BiasGelu", "FastGelu"} == {"BiasGelu"}
    model = load_graph(found.folder / found.spec.file, "fp32")
    for node in model.graph.node:
        if node.op_type == "Gelu":
            set_attribute("approximate", "tanh")(node)  # type: ignore[arg-type]
    tanh = step_graph(model, found.sizes, WINDOW)
    assert {n.op_type for n in tanh.graph.node} & {"BiasGelu", "FastGelu"} == {"FastGelu"}


@pytest.mark.parametrize("kind", ["Gelu", "Attention", "TensorScatter", "LayerNormalization"])
def test_an_unknown_form_is_no_reason_to_fail(made: Make, kind: str) -> None:
    found = made(2, "paper")
    model = load_graph(found.folder / found.spec.file, "fp32")
    next(node for node in model.graph.node if node.op_type == kind).op_type = "Tanh"
    with pytest.raises(UnsupportedGraphError):
        step_graph(model, found.sizes, WINDOW)


def test_steps_that_are_read_together(made: Make, tmp_path: Path) -> None:
    """The same codes and log-probabilities as when each is read, beside a row that stays idle."""
    found = made(2, "paper")
    rows, drawn = parity.ragged_rows(found.model, Settings(), 10), []
    decoder = found.decoder(tmp_path)
    for at_once in (1, 3):
        prefill = open_backend(found.folder, found.spec)
        runner = ARRunner(prefill, found.sizes, CAPACITY, 3, WINDOW, decoder=decoder, steps_per_read=at_once)
        runner.enter(0, rows[0])
        runner.enter(2, rows[2])
        drawn.append(
            [
                (output.codes[[0, 2]].copy(), output.log_probs[[0, 2]].copy())
                for _ in range(6 // at_once)
                for output in runner.steps(at_once, 3, (1,))
            ]
        )
        assert decoder.waits and runner.states[runner.turn]["past_lengths"].read()[1] == 0
    for one, other in zip(*drawn, strict=True):
        assert np.array_equal(one[0], other[0]) and np.array_equal(one[1], other[1])


def test_idle_rows_cost_the_host_nothing(made: Make, tmp_path: Path) -> None:
    """A row that stays idle is written once. Its position does not move."""
    found = made(2, "paper")
    prefill = open_backend(found.folder, found.spec)
    runner = ARRunner(prefill, found.sizes, CAPACITY, 3, WINDOW, decoder=found.decoder(tmp_path))
    rows = parity.ragged_rows(found.model, Settings(), 10)
    runner.enter(0, rows[0])
    runner.enter(2, rows[2])
    for steps in range(3):
        runner.step(3, (1,))
        past = runner.states[runner.turn]["past_lengths"].read()
        assert past[1] == 0 and past[0] == rows[0].positions(2) + steps + 1
    written = runner.states[runner.turn]["past_lengths"].read()
    written[1] = 7  # as nobody writes it again, it stays
    runner.step(3, (1,))
    assert runner.states[runner.turn]["past_lengths"].read()[1] == 7
    runner.enter(1, rows[1])
    runner.step(3)
    assert runner.states[runner.turn]["past_lengths"].read()[1] == rows[1].positions(2) + 1
    runner.close()


def test_a_warm_runner_binds_nothing_more(made: Make, tmp_path: Path) -> None:
    """A GPU captures a step at the second call of its binding, which must not happen while requests wait."""
    found, steps = made(2, "paper"), 12
    rows = parity.ragged_rows(found.model, Settings(top_p=0.0, threshold=1.0), steps)
    spoken = []
    for warm in (False, True):
        decoder = found.decoder(tmp_path / str(warm))
        calls: list[int] = []
        bind = decoder.bind

        def counted(*buffers: Any, bind: Any = bind, calls: list[int] = calls) -> Callable[[], None]:
            step, index = bind(*buffers), len(calls)
            calls.append(0)

            def run() -> None:
                calls[index] += 1
                step()

            return run

        decoder.bind = counted  # type: ignore[assignment, method-assign]
        prefill = open_backend(found.folder, found.spec)
        runner = ARRunner(prefill, found.sizes, CAPACITY, 4, WINDOW, decoder=decoder)
        if warm:
            runner.warm_up()
            assert calls == [2] * 2 * runner.rows
        spoken.append(parity.decoded(runner, rows, steps))
        assert not warm or len(calls) == 2 * runner.rows
        runner.close()
    assert spoken[0] == spoken[1]


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """A copy of the embedded bundle, which has the lowering "portable" among others, to be built."""
    import shutil

    return Path(shutil.copytree(find_model("demo"), tmp_path / "bundle"))


@pytest.mark.parametrize("precision", CUDA_METHODS)
def test_build_makes_it_for_cuda_alone(built: Path, precision: str) -> None:
    made = [row["graph"] for row in build_graphs(built, precision, BuildOptions("cuda"))]
    assert sorted(made) == ["ar", STEP, FUSED_DECODER, PADDED_DECODER, "nar", NAR_BATCH, NAR_ROW]
    placement, chosen = Placement("cuda", "ort", precision).resolve(built, read_manifest(built))
    graphs = placement.locate_graphs(built, chosen)
    assert graphs[STEP].folder == graphs["ar"].folder == graph_folder(built, precision, "portable")
    counts = count_bundle(graphs)
    assert counts[STEP]["per_layer"] <= MOST_PER_LAYER and counts[STEP]["beside"] <= MOST_BESIDE
    assert counts[NAR_ROW]["per_layer"] <= MOST_PER_LAYER and counts[NAR_ROW]["beside"] <= MOST_BESIDE
    assert counts[NAR_BATCH]["per_layer"] <= MOST_PER_LAYER and counts[NAR_BATCH]["beside"] <= MOST_BESIDE
    captured = replace(placement, capture_chunks=True).locate_graphs(built, chosen)
    assert graphs.keys() ^ captured.keys() == {NAR_ROW, PADDED_DECODER} and PADDED_DECODER in captured
    assert counts[FUSED_DECODER]["total"] <= MOST_OF_A_CODEC < counts["codec_decoder"]["total"] * 0.6
    on_cpu = Placement("cpu", "ort", precision)
    if precision == "fp16":
        assert not set(BUILT_GRAPHS) & set(on_cpu.locate_graphs(built, chosen))
    else:
        with pytest.raises(BackendError, match=f"the {precision} graphs of .* are for CUDA"):
            on_cpu.locate_graphs(built, chosen)


def test_an_older_onnx_runtime_runs_the_exported_nar(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its attention with rotary positions is causal alone."""
    build_graphs(built, "fp16", BuildOptions("cuda"))
    placement, chosen = Placement("cuda", "ort", "fp16").resolve(built, read_manifest(built))
    assert NAR_ROW in placement.locate_graphs(built, chosen)
    monkeypatch.setattr(onnxruntime, "__version__", "1.29.0")
    assert {NAR_ROW, NAR_BATCH, STEP} & set(placement.locate_graphs(built, chosen)) == {STEP}
    with pytest.raises(BackendError, match=r"capture_chunks needs the graph nar_batch, .* 1\.30 or newer"):
        replace(placement, capture_chunks=True).locate_graphs(built, chosen)
    said: list[str] = []
    build_graphs(built, "fp16", BuildOptions("cuda"), progress=said.append)
    assert f"no {NAR_ROW}: it needs onnxruntime 1.30 or newer" in said


def test_a_build_without_it_still_runs(built: Path) -> None:
    """Builds of earlier versions have no decode graph, nor have those of `--plain`."""
    build_graphs(built, "fp16", BuildOptions("cuda", fused=False))
    manifest = read_manifest(built).in_lowering(["portable"], "test")
    assert set(find_graphs(built, manifest, "fp16")) >= {"ar", "nar"}
    assert not set(BUILT_GRAPHS) & set(find_graphs(built, manifest, "fp16"))
    record = read_build_record(graph_folder(built, "fp16", "portable"))
    assert record and STEP not in record.about["methods"]


def test_smaller_weights_are_those_of_a_fused_step(built: Path) -> None:
    with pytest.raises(BackendError, match="int8 on CUDA is a graph of fused operators; leave --plain out"):
        build_graphs(built, "int8", BuildOptions("cuda", fused=False))


def test_an_unsupported_graph_is_built_without_it_and_says_why(
    built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from valle2.engine.build import ort as module

    def refuse(*_: object) -> onnx.ModelProto:
        raise UnsupportedGraphError("its form is unknown")

    monkeypatch.setattr(module, "step_graph", refuse)
    said: list[str] = []
    build_graphs(built, "fp16", BuildOptions("cuda"), progress=said.append)
    assert f"no {STEP}: its form is unknown" in said
    manifest = read_manifest(built).in_lowering(["portable"], "test")
    assert STEP not in find_graphs(built, manifest, "fp16")
    wanted = f"int8 on CUDA needs the graph {STEP}: its form is unknown"
    with pytest.raises(BackendError, match=wanted):
        build_graphs(built, "int8", BuildOptions("cuda"))


def test_cuda_needs_the_portable_lowering(bundle: Path) -> None:
    with pytest.raises(BackendError, match="--device cuda takes portable alone"):
        build_graphs(bundle, "fp16", BuildOptions("cuda"))


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("style", "precision", "most"),
    [("paper", "fp16", 0.05), ("rotary", "fp16", 0.05), ("paper", "int8", 0.2)],
)
def test_on_a_gpu(made: Make, style: str, precision: str, most: float, tmp_path: Path) -> None:
    """Logits of steps, then greedy codes of rows that share replayed captures, beside eager PyTorch."""
    if PROVIDERS["ort", "cuda"].name not in onnxruntime.get_available_providers():
        pytest.skip("needs an ONNX Runtime with CUDA, and a GPU")
    found = made(2, style)
    model = onnx.ModelProto.FromString(found.step.SerializeToString())
    if precision != "fp16":
        quantise(model, replace(CUDA_METHODS[precision][STEP], kind="blocks"))
    convert(model, onnx.TensorProto.FLOAT16)
    decoder = found.decoder(tmp_path / "step", model, GPU)
    providers = {part.ep_name for part in decoder.session.get_provider_graph_assignment_info()}  # type: ignore[attr-defined]
    assert providers == {PROVIDERS["ort", "cuda"].name}, "nodes on the CPU stop a capture"
    assert decoder.captures_calls
    assert logits_beside_eager(found, decoder, 30) < most
    if precision != "fp16":
        return
    half = tmp_path / "half"
    half.mkdir()
    spec = build_graph(found.folder, half, found.spec, METHODS["fp16"]["ar"], found.sizes)[1]
    prefill, steps = open_backend(half, spec, GPU), 40
    runner = ARRunner(prefill, found.sizes, CAPACITY, 4, WINDOW, decoder=decoder)
    runner.warm_up()
    rows = parity.ragged_rows(found.model, Settings(top_p=0.0, threshold=1.0), steps)
    same = []
    for row, (codes, _) in zip(rows, parity.decoded(runner, rows, steps), strict=True):
        expected = parity.reference_codes(found.model, row, steps, cached=True)[0]
        same += [a == b for a, b in zip(codes, expected, strict=False)]
    assert np.mean(same) >= HALF_SAME
    runner.close()
