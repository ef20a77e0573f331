"""The codec's decoder of CUDA, in float32 on the CPU, where all of its operators have kernels."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from tests.conftest import Trace
from tests.engine.build.cuda.on_cpu import captured_wrongly, need_cuda
from valle2.engine import BackendError, Placement, open_backend
from valle2.engine.backends.ladder import Ladder, Sizes
from valle2.engine.build.cuda.check import check_fused
from valle2.engine.build.cuda.codec import codec_graph
from valle2.engine.build.cuda.codec_padded import padded_codec_graph
from valle2.engine.build.cuda.nodes import count_nodes, transfers
from valle2.engine.build.cuda.reader import UnsupportedGraphError
from valle2.engine.build.cuda.step import written_spec
from valle2.engine.build.external_data import write_graph
from valle2.engine.build.precision import load_graph
from valle2.engine.bundle.contract import DECODER, FUSED_DECODER, PADDED_DECODER
from valle2.engine.bundle.signatures import check_graph
from valle2.export.bundle import graph_spec
from valle2.export.codecs.demo import CodecConfig, CodecDecoder, CodecEncoder
from valle2.export.codecs.vocos import VocosConfig, VocosDecoder
from valle2.export.graphs import codec_graphs
from valle2.runtime.generation.ladders import ONE, codec_ladder, example

SMALL = CodecConfig(width=32, ffn=48, blocks=1, decoder_width=32, decoder_ffn=48, decoder_blocks=3)
DECODERS: dict[str, Callable[[], nn.Module]] = {
    "demo": lambda: CodecDecoder(SMALL),
    "vocos": lambda: VocosDecoder(VocosConfig(32, 48, 96, 2)),
}
A_BLOCK = 8
BESIDE = {"demo": 21, "vocos": 37}
"""Nodes beside the blocks, at most. Vocos also divides by the sum of its windows."""
MASKS = 5
"""Nodes that make the masks and use them beside the blocks. A block has one more."""
Make = Callable[[str], tuple[nn.Module, Path]]


@pytest.fixture(scope="session")
def made(trace: Trace, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Codec -> a small decoder and the file of its graph."""

    @cache
    def make(name: str) -> tuple[nn.Module, Path]:
        torch.manual_seed(1)
        decoder = DECODERS[name]().eval()
        for weight in decoder.parameters():
            torch.nn.init.normal_(weight, std=0.15)
        graphs = codec_graphs(CodecEncoder(SMALL).eval(), decoder, SMALL.hop)
        graph = next(graph for graph in graphs if graph.name == DECODER)
        return decoder, trace(graph, tmp_path_factory.mktemp(name) / "codec_decoder.onnx")

    return make


@torch.no_grad()
@pytest.mark.parametrize("codec", DECODERS)
def test_samples_are_those_of_the_model(made: Make, codec: str, tmp_path: Path) -> None:
    decoder, path = made(codec)
    graph = codec_graph(load_graph(path, "fp32"), {})
    spec = written_spec(graph, f"{FUSED_DECODER}.onnx")
    check_graph(FUSED_DECODER, spec, {}, 0)
    write_graph(graph, tmp_path / spec.file)
    rng = np.random.default_rng(0)
    with open_backend(tmp_path, spec) as backend:
        for rows, frames in ((1, 1), (1, 2), (2, 5), (3, 40)):
            codes = rng.integers(0, 1024, (rows, frames, 8))
            expected = decoder(torch.from_numpy(codes)).numpy()
            found = backend.run({"codes": codes})["audio"]
            assert found.shape == expected.shape
            assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.gpu
@torch.no_grad()
@pytest.mark.parametrize("codec", DECODERS)
def test_on_a_gpu(made: Make, codec: str, tmp_path: Path) -> None:
    """Samples of chunks of several lengths, as a stream has them, beside eager PyTorch."""
    need_cuda()
    decoder, path = made(codec)
    graph = codec_graph(load_graph(path, "fp32"), {})
    spec = written_spec(graph, f"{FUSED_DECODER}.onnx")
    write_graph(graph, tmp_path / spec.file)
    with open_backend(tmp_path, spec, Placement("cuda", precision="fp16")) as backend:
        for frames in (1, 30, 60, 300):
            codes = np.random.default_rng(frames).integers(0, 1024, (1, frames, 8))
            expected = decoder(torch.from_numpy(codes)).numpy()
            found = backend.run({"codes": codes})["audio"]
            assert np.abs(found - expected).max() <= 1e-3 * np.abs(expected).max()


@torch.no_grad()
def test_padding_is_not_heard(made: Make, tmp_path: Path) -> None:
    """Rows of different lengths with codes behind them, in several sizes: the samples of each row alone."""
    decoder, path = made("demo")
    graph = padded_codec_graph(load_graph(path, "fp32"), {})
    assert count_nodes(graph)["total"] <= A_BLOCK * 3 + BESIDE["demo"] + 3 + MASKS and transfers(graph) == []
    feeds = {"codes": np.zeros((3, 7, 8), np.int64), "frame_lengths": np.array([7, 2, 1])}
    assert captured_wrongly(graph, feeds) == []
    spec = written_spec(graph, f"{PADDED_DECODER}.onnx")
    check_graph(PADDED_DECODER, spec, {}, 0)
    write_graph(graph, tmp_path / spec.file)
    rng = np.random.default_rng(0)
    with open_backend(tmp_path, spec) as backend:
        for rows, frames in ((1, 8), (2, 8), (4, 16), (8, 24)):
            sizes = {"batch": rows, "frames": frames}
            ladder = Ladder(backend, [sizes], lambda sizes: {"audio": shape_of_audio(sizes)}, ONE)
            lengths = np.arange(frames, 0, -3)[: rows - rows // 4]
            codes = rng.integers(0, 1024, (len(lengths), frames, 8))
            found = ladder.run({"codes": codes, "frame_lengths": lengths})
            assert found is not None
            for row, length in enumerate(lengths):
                expected = decoder(torch.from_numpy(codes[row : row + 1, :length])).numpy()[0]
                differ = np.abs(found["audio"][row, : len(expected)] - expected).max()
                assert len(expected) == SMALL.hop * length and differ <= 1e-4 * np.abs(expected).max()


def shape_of_audio(sizes: Sizes) -> tuple[int, ...]:
    return sizes["batch"], SMALL.hop * sizes["frames"]


def test_a_decoder_that_mixes_frames_elsewhere_takes_no_padding(made: Make) -> None:
    """Vocos divides by the sum of its windows, which depends on the number of frames."""
    with pytest.raises(UnsupportedGraphError, match="more than one sum of overlapping frames"):
        padded_codec_graph(load_graph(made("vocos")[1], "fp32"), {})
    stored = load_graph(made("demo")[1], "fp32")
    node = next(node for node in stored.graph.node if node.op_type == "Conv")
    next(entry for entry in node.attribute if entry.name == "pads").ints[:] = [0, 0]
    with pytest.raises(UnsupportedGraphError, match="a convolution changes the number of frames"):
        padded_codec_graph(stored, {})
    stored = load_graph(made("demo")[1], "fp32")
    next(node for node in stored.graph.node if node.op_type == "LayerNormalization").op_type = "Softmax"
    with pytest.raises(UnsupportedGraphError, match="Softmax may mix frames"):
        padded_codec_graph(stored, {})


@pytest.mark.parametrize("broken", ["Conv", "Reshape"])
def test_a_padded_graph_without_a_mask_is_refused(made: Make, broken: str) -> None:
    """One whose convolution, or whose sum of frames, reads what lies behind a row."""
    _, path = made("demo")
    graphs = codec_graphs(CodecEncoder(SMALL).eval(), made("demo")[0], SMALL.hop)
    spec = graph_spec(path, next(graph for graph in graphs if graph.name == DECODER))
    graph = padded_codec_graph(load_graph(path, "fp32"), {})
    check_fused(path.parent, spec, graph, {})
    masked = {node.output[0]: node.input[0] for node in graph.graph.node if node.op_type == "Mul"}
    node = next(n for n in graph.graph.node if n.op_type == broken and n.input[0].endswith(".masked"))
    node.input[0] = masked[node.input[0]]
    with pytest.raises(BackendError, match=r"differs from codec_decoder\.onnx in audio"):
        check_fused(path.parent, spec, graph, {})


@pytest.mark.gpu
@torch.no_grad()
def test_captured_calls_on_a_gpu(made: Make, tmp_path: Path) -> None:
    """All sizes are captured, then replayed in another order, between calls that are not captured."""
    need_cuda()
    decoder, path = made("demo")
    graph, rng = padded_codec_graph(load_graph(path, "fp32"), {}), np.random.default_rng(0)
    spec = written_spec(graph, f"{PADDED_DECODER}.onnx")
    write_graph(graph, tmp_path / spec.file)
    with open_backend(tmp_path, spec, Placement("cuda", precision="fp16"), stepped=True) as backend:
        assert backend.captures_calls
        ladder = codec_ladder(backend, SMALL.hop, 8)
        assert ladder.warm_up(partial(example, spec))
        for index in rng.permutation(len(ladder.rungs)):
            sizes = ladder.rungs[index].sizes
            codes = rng.integers(0, 1024, (sizes["batch"], sizes["frames"] - 3, 8))
            feeds = {"codes": codes, "frame_lengths": np.full(len(codes), codes.shape[1])}
            expected = decoder(torch.from_numpy(codes)).numpy()
            for found in (ladder.run(feeds), backend.run(feeds)):
                assert found is not None
                differ = np.abs(found["audio"][:, : expected.shape[1]] - expected).max()
                assert differ <= 1e-3 * np.abs(expected).max()


@pytest.mark.parametrize(("codec", "blocks"), [("demo", 3), ("vocos", 2)])
def test_it_has_few_nodes(made: Make, codec: str, blocks: int) -> None:
    stored = load_graph(made(codec)[1], "fp32")
    count = count_nodes(codec_graph(stored, {}))["total"]
    assert count <= A_BLOCK * blocks + BESIDE[codec] < 0.6 * count_nodes(stored)["total"]


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("SkipLayerNormalization", lambda node: node.input.__setitem__(4, node.input[2])),
        ("Pad", lambda node: node.attribute.append(onnx.helper.make_attribute("mode", "edge"))),
        ("Sin", lambda node: setattr(node, "op_type", "Cos")),
    ],
    ids=["bias", "padding", "phase"],
)
def test_a_wrong_graph_is_refused(made: Make, kind: str, change: Callable[[onnx.NodeProto], object]) -> None:
    _, path = made("demo")
    graphs = codec_graphs(CodecEncoder(SMALL).eval(), made("demo")[0], SMALL.hop)
    spec = graph_spec(path, next(graph for graph in graphs if graph.name == DECODER))
    graph = codec_graph(load_graph(path, "fp32"), {})
    check_fused(path.parent, spec, graph, {})
    change(next(node for node in graph.graph.node if node.op_type == kind))
    with pytest.raises(BackendError, match=r"differs from codec_decoder\.onnx in audio"):
        check_fused(path.parent, spec, graph, {})


def test_a_decoder_of_another_form_is_kept_as_it_is() -> None:
    codes = onnx.helper.make_tensor_value_info("codes", onnx.TensorProto.INT64, ["batch", "frames", 8])
    audio = onnx.helper.make_tensor_value_info("audio", onnx.TensorProto.FLOAT, None)
    node = onnx.helper.make_node("Cast", ["codes"], ["audio"], to=onnx.TensorProto.FLOAT)
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "other", [codes], [audio]))
    with pytest.raises(UnsupportedGraphError, match="no part of it"):
        codec_graph(model, {})
