"""Engines of the codecs that others published, in small sizes with random weights, built without a GPU.

EnCodec and its stream by default; SpeechTokenizer and Vocos with `-m slow`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.export.codecs.test_codecs import as_file, peer
from valle2.engine import Manifest, read_manifest
from valle2.engine.backends.trt.api import load
from valle2.engine.build.tensorrt import Plan, build_graph
from valle2.engine.bundle.profiles import Limits
from valle2.export import export_checkpoint

RTX = "tensorrt-rtx"


@pytest.mark.parametrize(
    ("codec", "vocoder", "graphs"),
    [
        ("encodec_24khz.th", "", ["codec_encoder", "codec_decoder", "codec_stream"]),
        pytest.param("SpeechTokenizer.pt", "", ["codec_encoder", "codec_decoder"], marks=pytest.mark.slow),
        pytest.param("encodec_24khz.th", "pytorch_model.bin", ["codec_decoder"], marks=pytest.mark.slow),
    ],
    ids=["EnCodec", "SpeechTokenizer", "Vocos"],
)
def test_a_codec_builds(
    codec: str, vocoder: str, graphs: list[str], checkpoint_folder: Path, tmp_path: Path
) -> None:
    """Every graph passes the audit and builds. The engines do not run here."""
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX: pip install tensorrt-rtx-cu13")
    names = {
        "encodec_24khz.th": "encodec",
        "SpeechTokenizer.pt": "speechtokenizer",
        "pytorch_model.bin": "vocos",
    }
    files = {file: as_file(peer(names[file])[0], tmp_path / file) for file in (codec, vocoder) if file}
    bundle = export_checkpoint(
        checkpoint_folder, tmp_path / "b", lowering="portable", codec=files[codec], vocoder=files.get(vocoder)
    )
    for graph in graphs:
        (record,) = build_graph(load(RTX), plan(bundle, read_manifest(bundle)), graph, lambda message: None)
        assert record.key["graph"] == graph and record.key["precision"] == "fp32"


def plan(bundle: Path, manifest: Manifest) -> Plan:
    return Plan(bundle, manifest, RTX, "fp16", ("sm89",), Limits(2, 256), 0)
