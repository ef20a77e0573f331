"""Graphs on a device against eager PyTorch on the CPU: logits, and greedy codes of ragged batches.

Models of every group size with random weights are exported in every lowering that the device takes, and
built in every precision. Rows of different lengths are prefilled and decoded together.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from valle2.benchmarks.speed.on_gpu.setup import Result, Setup
from valle2.benchmarks.stages import ARRow, ar_row, decode_together
from valle2.engine import Backend, BackendError, GraphSpec, Placement, open_backend
from valle2.engine.backends.ort.providers import lowerings_for
from valle2.engine.build.cuda.check import of_targets
from valle2.engine.build.cuda.reader import UnsupportedGraphError
from valle2.engine.build.cuda.sampler import CLASSES
from valle2.engine.build.ort import build_fused, build_graph
from valle2.engine.bundle.contract import EOS_CODE, LOGITS, NAR_BATCH, NAR_ROW, OUT_SUFFIX, STEP
from valle2.engine.bundle.nar_inputs import NARInputs
from valle2.engine.bundle.precisions import CUDA_LOWERING, CUDA_METHODS, METHODS, Method
from valle2.export import ARModel, ModelConfig, NARModel
from valle2.export.bundle import graph_spec
from valle2.export.graphs import Graph, ar_graph, cache_names, export_graph, nar_graph
from valle2.export.models.reference import generate
from valle2.export.verify import Judge, verify_ar, verify_nar
from valle2.runtime import Settings

Model = TypeVar("Model", ARModel, NARModel)
CAPACITY, STEPS, BATCHES = 161, 24, (1, 4)
STEP_POSITIONS, STEP_TEXTS, LOGITS_STEPS = (4, 17, 90), (3, 9, 40), 8
"""Positions and texts of rows that step together."""
GREEDY = Settings(top_p=0.0, threshold=1.0)
LENGTHS = ((5, 6), (11, 0), (3, 9), (8, 1))
"""Text ids and groups of prompt of the rows that decode together."""
SIZES: dict[str, Any] = {
    "vocab_size": 40,
    "d_model": 256,
    "heads": 4,
    "layers": 3,
    "ffn": 512,
    "max_text": 96,
}
"""Heads of 64 numbers, which the fused kernels ask for."""
BOUNDS = {"fp32": (1e-4, 1.0), "fp16": (0.02, 0.8)}
"""By precision: the greatest difference of the logits, and the least share of equal codes.

In half precision a code may be another one where two are nearly as likely, and so are those that follow.
"""
SMALLER_WEIGHTS = {8: 0.4, 4: 4.0}
"""By bits of a weight, the greatest difference of the logits of a fused step. They range over some tens."""
WEIGHTS = 0.08
"""Standard deviation of the weights. It is large, so that codes depend on all inputs."""


def compare_graphs(setup: Setup) -> list[Result]:
    """One row per graph, lowering, precision and group size. A graph that does not run has an error."""
    lowerings, _ = lowerings_for("ort", setup.device)
    rows = []
    for group_size in setup.groups:
        config = ModelConfig(group_size=group_size, max_frames=64 * group_size, **SIZES)
        ar = varied(ARModel(config).eval())
        nar = varied(NARModel(config).eval()) if group_size == min(setup.groups) else None
        for lowering in lowerings:
            graphs: list[tuple[Graph, ARModel | NARModel]] = [(ar_graph(ar, lowering, CAPACITY), ar)]
            graphs += [(nar_graph(nar, lowering), nar)] if nar else []
            for graph, model in graphs:
                for precision, compared in compare_precisions(setup, graph, model, lowering):
                    about = {"graph": graph.name, "lowering": lowering, "precision": precision}
                    rows.append(about | {"group_size": group_size} | compared)
                    print(rows[-1], flush=True)
    return rows


def varied(model: Model) -> Model:
    """The model with weights so large that its codes vary."""
    torch.manual_seed(0)
    for weight in model.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=WEIGHTS)
    if isinstance(model, ARModel):
        with torch.no_grad():
            model.code_table.weight[EOS_CODE] = 0  # it stays unlikely
    return model


def compare_precisions(
    setup: Setup, graph: Graph, model: ARModel | NARModel, lowering: str
) -> Iterator[tuple[str, Result]]:
    """Export a graph once, and compare it in every precision, and the fused graphs that are made of it."""
    with tempfile.TemporaryDirectory() as name:
        stored = Path(name) / "stored"
        stored.mkdir()
        path = export_graph(graph, stored / f"{graph.name}.onnx")
        spec = graph_spec(path, graph)
        for precision in setup.precisions:
            folder, tensors = stored, spec
            if precision in METHODS:
                folder = Path(name) / precision
                folder.mkdir()
                method = METHODS[precision][graph.name]
                tensors = build_graph(stored, folder, spec, method, model.config.to_dict())[1]
            yield precision, compare_graph(setup, folder, tensors, model, precision)
        if lowering == CUDA_LOWERING:
            half = Path(name) / "fp16", tensors
            for precision, methods in CUDA_METHODS.items():
                yield f"{precision}, fused", compare_fused(setup, stored, spec, half, model, methods)
            if isinstance(model, NARModel):
                methods = CUDA_METHODS["fp16"]
                found = compare_fused(setup, stored, spec, half, model, methods, rows=max(BATCHES))
                yield "fp16, fused, several rows", found


def compare_graph(
    setup: Setup, folder: Path, spec: GraphSpec, model: ARModel | NARModel, precision: str
) -> Result:
    """The greatest difference of the logits, and the share of equal codes."""
    placement = Placement(setup.device, precision=precision, threads=setup.threads)
    most, least = BOUNDS[precision]
    try:
        with open_backend(folder, spec, placement, stepped=isinstance(model, ARModel)) as backend:
            if isinstance(model, ARModel):
                found = max(
                    verify_ar(model, backend, CAPACITY, Judge(accept=True), batch=batch) for batch in BATCHES
                )
                same = equal_codes(model, backend)
            else:
                found, same = verify_nar(model, backend, Judge(accept=True)), 1.0  # it compares the codes too
    except BackendError as error:
        return {"right": False, "error": str(error)}
    return {"logits": found, "same_codes": same, "right": found <= most and same >= least}


def compare_fused(
    setup: Setup,
    stored: Path,
    spec: GraphSpec,
    half: tuple[Path, GraphSpec],
    model: ARModel | NARModel,
    methods: Mapping[str, Method],
    rows: int = 1,
) -> Result:
    """The graph of fused operators: its logits, and for the AR the codes of steps after prefills.

    half: folder and tensors of the AR graph in half precision. rows: of the NAR, of different lengths.
    """
    name = STEP if isinstance(model, ARModel) else NAR_BATCH if rows > 1 else NAR_ROW
    sizes, placement = model.config.sizes(), Placement(setup.device, threads=setup.threads)
    same = 1.0
    try:
        with tempfile.TemporaryDirectory() as folder:
            _, made = build_fused(stored, Path(folder), spec, sizes, name, methods[name])
            with open_backend(Path(folder), made, placement, stepped=name == STEP) as fused:
                if isinstance(model, ARModel):
                    difference = step_logits(model, fused)
                    with open_backend(*half, placement) as prefill:
                        same = equal_codes(model, prefill, fused)
                else:
                    difference = nar_logits(model, fused, rows)
    except (BackendError, UnsupportedGraphError) as error:
        return {"right": False, "error": str(error)}
    bits = methods[name].bits
    most, least = BOUNDS["fp16"]
    right = difference <= SMALLER_WEIGHTS.get(bits, most) and (bits < 16 or same >= least)
    return {"logits": difference, "same_codes": same, "right": right}


@torch.no_grad()
def step_logits(model: ARModel, fused: Backend) -> float:
    """The greatest difference of the logits of steps at different positions, on caches of eager PyTorch.

    The caches are bound to one buffer as input and output, as the runtime does, and each step is replayed.
    """
    config, draws, rows = model.config, np.random.default_rng(0), len(STEP_POSITIONS)
    past, lengths = torch.tensor(STEP_POSITIONS), torch.tensor(STEP_TEXTS)
    longest = max(STEP_POSITIONS)
    text = torch.from_numpy(draws.integers(0, config.vocab_size, (rows, longest)))
    codes = torch.from_numpy(draws.integers(0, 1024, (rows, longest, config.group_size)))
    start = torch.zeros(rows, dtype=torch.int64)
    window = model.window(start, past, longest, CAPACITY, lengths)
    _, caches = model.forward_cached(text, codes, lengths, window, model.empty_caches(rows, CAPACITY))
    flat = [part.numpy() for pair in caches for part in pair]
    feeds = dict(zip(cache_names(config.layers), flat, strict=True))
    tensors = {tensor.name: tensor for tensor in fused.spec.inputs}
    shapes = {name: tuple(rows if isinstance(a, str) else a for a in t.axes) for name, t in tensors.items()}
    buffers = {name: fused.buffer(shapes[name], tensors[name].dtype) for name in tensors}
    feeds |= {"text_lengths": lengths.numpy(), "new_lengths": np.ones(rows), "repeat_window": np.ones(rows)}
    for name, values in feeds.items():
        buffers[name].write(values.astype(tensors[name].dtype))
    out = fused.buffer((rows, config.group_size, CLASSES), np.float32)
    outputs = {f"{name}{OUT_SUFFIX}": buffers[name] for name in cache_names(config.layers)}
    step, worst = fused.bind(buffers, outputs | {LOGITS: out}), 0.0
    for _ in range(LOGITS_STEPS):
        drawn = torch.from_numpy(draws.integers(0, 1024, (rows, 1, config.group_size)))
        buffers["codes"].write(drawn.numpy())
        buffers["past_lengths"].write(past.numpy())
        step()
        window = model.window(past, torch.ones_like(past), 1, CAPACITY, lengths)
        expected, caches = model.forward_cached(text[:, :1], drawn, lengths, window, caches)
        worst = max(worst, float(np.abs(out.read() - expected.numpy()).max()))
        past = past + 1
    return worst


@torch.no_grad()
def nar_logits(model: NARModel, fused: Backend, rows: int) -> float:
    """The greatest difference of the logits over all stages. The rows have different lengths."""
    draws, worst = np.random.default_rng(0), 0.0
    for stage in range(1, model.config.codebooks):
        inputs = NARInputs(
            text=draws.integers(0, model.config.nar_text_rows, (rows, 9)),
            text_lengths=9 - np.arange(rows),
            codes=draws.integers(0, 1024, (rows, 40 + stage, model.config.codebooks)),
            prompt_lengths=12 - 2 * np.arange(rows),
            frame_lengths=40 + stage - 7 * np.arange(rows),
            stage=np.array(stage),
        )
        feeds = {tensor.name for tensor in fused.spec.inputs}
        given = {name: value for name, value in inputs.feeds().items() if name in feeds}
        found = of_targets(inputs.feeds(), fused.run(given, (LOGITS,))[LOGITS])
        expected = of_targets(inputs.feeds(), model(inputs.map(torch.from_numpy)).numpy())
        worst = max(worst, float(np.abs(found - expected).max()))
    return worst


def equal_codes(model: ARModel, backend: Backend, decoder: Backend | None = None) -> float:
    """The share of greedy codes that are eager PyTorch's, of rows that decode together."""
    rows = ragged_rows(model.config)
    found = decode_together(backend, model.config.sizes(), CAPACITY, rows, STEPS, decoder)
    expected = [generate(model, row.text, row.prompt, STEPS)[0] for row in rows]
    equal = [np.mean(a[: len(b)] == b[: len(a)]) for a, b in zip(found, expected, strict=True)]
    return float(np.mean(equal))


def ragged_rows(config: ModelConfig) -> list[ARRow]:
    """Rows with texts and prompts of different lengths."""
    draws, group = np.random.default_rng(config.group_size), config.group_size
    uniforms = np.zeros((STEPS, group, 2), np.float32)
    return [
        ar_row(
            np.append(draws.integers(0, config.vocab_size, text), config.vocab_size),
            draws.integers(0, 1024, groups * group),
            uniforms,
            GREEDY,
        )
        for text, groups in LENGTHS
    ]
