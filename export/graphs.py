"""The table of graphs, and the export of one graph.

A row of the table holds the module to trace, its example inputs and its dynamic axes.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from valle2.engine.build.external_data import EXTERNAL_FROM, write_graph
from valle2.engine.bundle.contract import (
    AR,
    CACHE_PREFIX,
    CODEBOOKS,
    DECODER,
    ENCODER,
    NAR,
    OUT_SUFFIX,
    STATE_PREFIX,
    STREAM,
)
from valle2.engine.bundle.nar_inputs import NARInputs
from valle2.engine.bundle.signatures import Signature, ar_tensors, nar_tensors
from valle2.export.attention import FULL_ATTENTION, LOWERINGS, OPSETS, PORTABLE_OPSET, use_blockwise_attention
from valle2.export.codecs import EncodecDecoder, EncodecStream, Recurrent
from valle2.export.errors import CheckpointError
from valle2.export.models import ARModel, ModelConfig, NARModel
from valle2.export.models.ar import Attend
from valle2.export.models.nar import FullAttend
from valle2.export.models.sampler import EMPTY, Sampling, sample_group

PRODUCER = "valle2"


class ARGraph(nn.Module):
    """One AR call: embed, attend over the cache, predict a group and sample it.

    Prefill and decode are the same graph. The outputs `*_out` are the inputs of the next step, so a decode
    loop only swaps two sets of small buffers.
    """

    def __init__(self, model: ARModel, attend: Attend) -> None:
        super().__init__()
        self.model = model
        self.attend = attend

    def forward(
        self,
        text: Tensor,
        codes: Tensor,
        text_lengths: Tensor,
        past_lengths: Tensor,
        new_lengths: Tensor,
        steps: Tensor,
        history: Tensor,
        uniforms: Tensor,
        top_p: Tensor,
        repeat_window: Tensor,
        threshold: Tensor,
        *caches: Tensor,
    ) -> tuple[Tensor, ...]:
        """See `ar_inputs` for the shapes."""
        steps_new, capacity = text.shape[1], caches[0].shape[2]
        window = self.model.window(past_lengths, new_lengths, steps_new, capacity, text_lengths)
        pairs = list(zip(caches[::2], caches[1::2], strict=True))
        logits, updated = self.model.forward_cached(text, codes, text_lengths, window, pairs, self.attend)
        last = torch.arange(uniforms.shape[1])[-1:]  # as data; a size would lie on the host, see `choose`
        index = torch.minimum(steps, last)[:, None, None, None]
        draws = uniforms.gather(1, index.expand(-1, 1, *uniforms.shape[2:]))[:, 0]
        sampling = Sampling(history, draws, top_p, repeat_window, threshold)
        group, history_out, finished, log_probs = sample_group(
            logits, sampling, self.model.config.style.argmax_ends
        )
        flat = [tensor for pair in updated for tensor in pair]
        state = (past_lengths + new_lengths, steps + 1, history_out)
        return (group[:, None], *state, finished, log_probs, logits, *flat)


class NARGraph(nn.Module):
    """One NAR stage: logits of the target frames, and the codes chosen by them."""

    def __init__(self, model: NARModel, attend: FullAttend | None) -> None:
        super().__init__()
        self.model = model
        self.attend = attend

    def forward(
        self,
        text: Tensor,
        text_lengths: Tensor,
        codes: Tensor,
        prompt_lengths: Tensor,
        frame_lengths: Tensor,
        stage: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """See `NARInputs`. The inputs have names here, from which the exporter names dimensions."""
        inputs = NARInputs(text, text_lengths, codes, prompt_lengths, frame_lengths, stage)
        logits = self.model(inputs, self.attend)
        return self.model.choose(logits, inputs), logits


@dataclass(frozen=True, slots=True)
class Graph:
    """One row of the table.

    Args:
        inputs: example inputs by name, in the module's order. axes: by input, the names of its dynamic axes.
        variadic: the inputs that the module takes as `*arguments`; they are the last ones.
    """

    name: str
    module: nn.Module
    inputs: dict[str, Tensor]
    axes: dict[str, dict[int, str]]
    outputs: tuple[str, ...]
    opset: int = PORTABLE_OPSET
    variadic: tuple[str, ...] = field(default=())


def cache_names(layers: int, suffix: str = "") -> tuple[str, ...]:
    """Names of the caches in the graph's order: `cache_key_0`, `cache_value_0`, `cache_key_1`, ..."""
    parts = ("key", "value")
    return tuple(f"{CACHE_PREFIX}{part}_{layer}{suffix}" for layer in range(layers) for part in parts)


def ar_inputs(
    config: ModelConfig, batch: int, steps: int, capacity: int, *, slots: int = 10, draws: int = 5
) -> dict[str, Tensor]:
    """AR inputs for an empty batch: no positions are cached, and all uniform numbers are zero.

    Args:
        batch: rows (B). steps: new positions (S). capacity: cache positions (C). slots: codes of history.
        draws: steps with uniform numbers.
    """
    group = config.group_size
    rows = torch.zeros(batch, dtype=torch.int64)
    inputs = {
        "text": torch.zeros(batch, steps, dtype=torch.int64),
        "codes": torch.zeros(batch, steps, group, dtype=torch.int64),
        "text_lengths": torch.ones_like(rows),
        "past_lengths": rows,
        "new_lengths": torch.full_like(rows, steps),
        "steps": torch.zeros_like(rows),
        "history": torch.full((batch, slots), EMPTY),
        "uniforms": torch.zeros(batch, draws, group, 2),
        "top_p": torch.zeros(batch),
        "repeat_window": torch.full_like(rows, slots),
        "threshold": torch.ones(batch),
    }
    shape = (batch, config.heads, capacity, config.ar_head)
    caches = {name: torch.zeros(shape) for name in cache_names(config.layers)}
    return inputs | caches


def dynamic_axes(wanted: Signature) -> dict[str, dict[int, str]]:
    """By input of a graph, the names of its dynamic axes."""
    return {
        name: {axis: label for axis, label in enumerate(axes) if isinstance(label, str)}
        for name, (_, axes) in wanted.inputs.items()
    }


def ar_graph(model: ARModel, lowering: str, capacity: int) -> Graph:
    """The AR row. The cache length is dynamic if the lowering allows it, otherwise `capacity`.

    Raises:
        CheckpointError: its caches are larger than a bundle allows.
    """
    try:
        wanted = ar_tensors(model.config.sizes(), 0 if lowering == "ort" else capacity)
    except ValueError as error:
        raise CheckpointError(
            f"the AR is too large for a bundle: {error}; give a smaller --cache-length"
        ) from None
    return Graph(
        AR,
        ARGraph(model, LOWERINGS[lowering]),
        ar_inputs(model.config, 2, 3, capacity),
        dynamic_axes(wanted),
        tuple(wanted.outputs),
        opset=OPSETS[lowering],
        variadic=cache_names(model.config.layers),
    )


def nar_graph(model: NARModel, lowering: str) -> Graph:
    """The NAR row: one graph for all stages."""
    inputs = NARInputs(
        text=torch.zeros(2, 5, dtype=torch.int64),
        text_lengths=torch.tensor([5, 3]),
        codes=torch.zeros(2, 12, model.config.codebooks, dtype=torch.int64),
        prompt_lengths=torch.tensor([4, 3]),
        frame_lengths=torch.tensor([12, 9]),
        stage=torch.tensor(1),
    ).feeds()
    wanted = nar_tensors(model.config.codebooks)
    module = NARGraph(model, FULL_ATTENTION[lowering])
    return Graph(NAR, module, inputs, dynamic_axes(wanted), tuple(wanted.outputs))


def codec_graphs(encoder: nn.Module, decoder: nn.Module, hop: int) -> list[Graph]:
    """The codec's rows: encoder, decoder, and a stream if the decoder is causal. Audio is whole frames."""
    for module in (*encoder.modules(), *decoder.modules()):
        if isinstance(module, Recurrent):
            module.arrange()
    audio = {"audio": torch.zeros(2, 8 * hop)}
    codes = {"codes": torch.zeros(2, 7, CODEBOOKS, dtype=torch.int64)}
    rows = [
        Graph(ENCODER, encoder, audio, {"audio": {0: "batch", 1: "samples"}}, ("codes",)),
        Graph(DECODER, decoder, codes, {"codes": {0: "batch", 1: "frames"}}, ("audio",)),
    ]
    if isinstance(decoder, EncodecDecoder) and decoder.causal:
        rows.append(stream_graph(decoder))
    return rows


def stream_graph(decoder: EncodecDecoder) -> Graph:
    """The decoder on the next chunk: the input `state_N` is the `state_N_out` of the call before."""
    module = EncodecStream(decoder)
    states = module.zero_states(2)
    names = [f"{STATE_PREFIX}{index}" for index in range(len(states))]
    inputs = {
        "codes": torch.zeros(2, 9, CODEBOOKS, dtype=torch.int64),
        "started": torch.tensor(True),
        **dict(zip(names, states, strict=True)),
    }
    axes: dict[str, dict[int, str]] = {"codes": {0: "batch", 1: "frames"}, "started": {}}
    axes |= {name: {0: "batch"} for name in names}
    outputs = ("audio", *(f"{name}{OUT_SUFFIX}" for name in names))
    return Graph(STREAM, module, inputs, axes, outputs, variadic=tuple(names))


def dynamic_shapes(graph: Graph) -> list[Any]:
    """Dynamic axes in the order of the inputs. The variadic inputs are one tuple at the end."""
    dim = torch.export.Dim.DYNAMIC
    rows = [{axis: dim for axis in graph.axes[name]} for name in graph.inputs if name not in graph.variadic]
    if not graph.variadic:
        return rows
    return [*rows, tuple({axis: dim for axis in graph.axes[name]} for name in graph.variadic)]


@contextmanager
def quiet_export() -> Iterator[None]:
    """Hide the exporter's notes on its own deprecations and on missing packages."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def export_graph(graph: Graph, path: Path, shared: Path | None = None) -> Path:
    """Trace one row and write its graph.

    Args:
        path: of the `.onnx` file. shared: a graph whose weights file this one shares.

    Returns:
        The path.
    """
    with torch.no_grad(), quiet_export():
        program = torch.onnx.export(
            graph.module.eval(),
            tuple(graph.inputs.values()),
            dynamo=True,
            opset_version=graph.opset,
            dynamic_shapes=dynamic_shapes(graph),
            input_names=list(graph.inputs),
            output_names=list(graph.outputs),
            verbose=False,
        )
    assert program is not None
    apart = without_weights(program.model)
    model = ir.to_proto(program.model)
    name_axes(model, graph)
    use_blockwise_attention(model.graph)
    return write_graph(model, path, shared, apart)


def without_weights(model: ir.Model) -> dict[str, NDArray[Any]]:
    """Take the large weights out of a traced graph. Returns their values by name, without a copy."""
    taken = {}
    for name, value in model.graph.initializers.items():
        weight = value.const_value
        if weight is not None and weight.nbytes >= EXTERNAL_FROM:
            taken[name] = weight.numpy()
            shape = ir.Shape(taken[name].shape)
            value.const_value = ir.ExternalTensor("", None, None, weight.dtype, shape=shape, name=name)
    return taken


def name_axes(model: onnx.ModelProto, graph: Graph) -> None:
    """Name the dynamic input axes, and remove paths and stack traces of this machine from the graph."""
    for value in model.graph.input:
        for axis, name in graph.axes[value.name].items():
            value.type.tensor_type.shape.dim[axis].dim_param = name
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    del model.graph.metadata_props[:]
    model.producer_name = PRODUCER
