"""Bundles with several lowerings: weights are stored once, and every engine gets the graphs that it takes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from valle2.engine import BackendError, ManifestError, Placement, find_graphs, read_manifest, select_variant
from valle2.engine.backends.ort.providers import GPU_CHUNK
from valle2.engine.backends.trt.api import TARGETS
from valle2.engine.build.ort import build_graphs
from valle2.engine.bundle.precisions import graph_folder
from valle2.engine.bundle.profiles import PREFILL_CHUNK
from valle2.export import export_checkpoint
from valle2.export.attention import LOWERINGS
from valle2.runtime import Prompt, Settings, Valle2
from valle2.runtime.cli.main import main


@pytest.fixture(scope="module")
def every(checkpoint_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("every") / "toy"
    return export_checkpoint(checkpoint_folder, folder, lowering=list(LOWERINGS))


def locations(path: Path) -> set[str]:
    """The files that hold a graph's weights."""
    weights = onnx.load(str(path), load_external_data=False).graph.initializer
    return {entry.value for w in weights for entry in w.external_data if entry.key == "location"}


def test_weights_are_stored_once(every: Path, bundle: Path) -> None:
    for lowering in ("portable", "primitive"):
        for graph in ("ar", "nar"):
            assert f"{graph}.weights" in locations(every / f"{graph}-{lowering}.onnx")
    assert locations(every / "codec_decoder-primitive.onnx") == {"codec_decoder.weights"}
    alone, together = (sum(f.stat().st_size for f in at.glob("*.weights")) for at in (bundle, every))
    assert together < 1.1 * alone


def test_a_shared_weight_equals_that_of_its_lowering(every: Path, fixed_bundles: dict[str, Path]) -> None:
    for lowering, folder in fixed_bundles.items():
        ours, alone = (
            {w.name: onnx.numpy_helper.to_array(w) for w in onnx.load(str(path)).graph.initializer}
            for path in (every / f"ar-{lowering}.onnx", folder / "ar.onnx")
        )
        assert set(ours) == set(alone)
        assert all(np.array_equal(value, alone[name]) for name, value in ours.items())


@pytest.mark.parametrize("lowering", ["portable", "primitive"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_every_lowering_runs(
    every: Path, tts: Valle2, voice: Prompt, lowering: str, precision: str, tmp_path: Path
) -> None:
    folder = shutil.copytree(every, tmp_path / "toy")
    rows = build_graphs(folder, precision)
    assert {row["lowering"] for row in rows} == (set(LOWERINGS) if precision == "fp16" else set())
    manifest = read_manifest(folder).in_lowering([lowering], "the test")
    found = find_graphs(folder, manifest, precision)
    assert found["ar"].spec.file == f"ar-{lowering}.onnx"
    assert found["ar"].folder == (folder if precision == "fp32" else graph_folder(folder, "fp16", lowering))
    ours = Valle2(folder, manifest, 1, Placement(threads=1, precision=precision))
    settings = Settings(top_p=0.6, max_frames=24, seed=3)
    said, expected = (t.synthesize("hello", voice, settings).codes for t in (ours, tts))
    assert precision == "fp16" or np.array_equal(said, expected)
    assert said.shape[1] == 8 and len(said) > 1


def test_every_engine_gets_a_lowering_that_it_takes(every: Path, bundle: Path) -> None:
    manifest, alone = read_manifest(every), read_manifest(bundle)
    assert Valle2.load(every).manifest.lowering == "ort"
    on_gpu = select_variant(manifest, Placement("cuda", precision="fp16"))
    assert on_gpu.lowering == "portable" and on_gpu.cache_length > 0
    assert on_gpu.graphs["ar"].file == "ar-portable.onnx" and on_gpu.graphs["ar"].graph == "ar"
    assert on_gpu.graphs["codec_encoder"] == manifest.graphs["codec_encoder"]
    with pytest.raises(BackendError, match="has the lowering ort; ort on cuda takes portable or primitive"):
        select_variant(alone, Placement("cuda"))
    older, newer = (TARGETS["tensorrt"].lowerings(version) for version in ("10.3.0", "10.15.1.29"))
    assert manifest.in_lowering(older, "it").graphs["codec_decoder"].file == "codec_decoder-primitive.onnx"
    assert manifest.in_lowering(newer, "it").lowering == "portable"


def test_an_older_onnx_runtime_gets_what_it_runs(
    every: Path, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`onnxruntime-gpu` may be one release behind, and the lowering "ort" needs the newest."""
    monkeypatch.setattr(onnxruntime, "__version__", "1.31.1")
    assert Valle2.load(every).manifest.lowering == "portable"
    message = r"lowering ort; onnxruntime 1\.31\.1 on cpu, older than 1\.32, takes portable or primitive"
    with pytest.raises(BackendError, match=message):
        Valle2.load(bundle)
    monkeypatch.setattr(onnxruntime, "__version__", "1.24.4")  # opset 24, but no kernel of TensorScatter
    assert Valle2.load(every).manifest.lowering == "primitive"
    assert select_variant(read_manifest(every), Placement("cuda")).lowering == "primitive"
    with pytest.raises(
        BackendError, match=r"int8 needs the lowering ort; onnxruntime 1\.24\.4 .* takes primitive"
    ):
        build_graphs(every, "int8")
    monkeypatch.setattr(onnxruntime, "__version__", "1.22.1")
    with pytest.raises(BackendError, match=r"onnxruntime 1\.22\.1 is too old; install 1\.23 or newer with"):
        Valle2.load(every)


def test_a_gpu_prefills_more_at_once() -> None:
    assert Placement("cuda").prefill_chunk == GPU_CHUNK > PREFILL_CHUNK == Placement().prefill_chunk
    for engine in ("tensorrt", "ort-tensorrt"):  # the profiles of their engines
        assert Placement("cuda", engine).prefill_chunk == PREFILL_CHUNK


def test_engines_are_built_of_the_lowering_that_tensorrt_takes(every: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    from valle2.engine.build.tensorrt import build_engine

    found = build_engine(shutil.copytree(every, tmp_path / "toy"), "tensorrt-rtx", gpus=["sm89"])
    assert {record.key["graph"]: record.spec.file for record in found} == {
        "ar": "ar-portable.onnx",
        "nar": "nar-portable.onnx",
        "codec_encoder": "codec_encoder.onnx",
        "codec_decoder": "codec_decoder.onnx",
    }


def test_quantised_weights_are_of_the_lowering_ort(every: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(every, tmp_path / "toy")
    assert {row["lowering"] for row in build_graphs(folder, "int8")} == {"ort"}
    assert Valle2.load(folder, precision="int8").manifest.lowering == "ort"


def test_a_missing_graph_and_a_damaged_entry(every: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(every, tmp_path / "toy")
    (folder / "ar-portable.onnx").unlink()
    with pytest.raises(ManifestError, match=r"lacks the file ar-portable\.onnx"):
        read_manifest(folder)
    values = json.loads((folder / "manifest.json").read_text())
    del values["others"]["portable"]["cache_length"]
    (folder / "manifest.json").write_text(json.dumps(values))
    with pytest.raises(ManifestError, match="is damaged"):
        read_manifest(folder)


def test_the_command(checkpoint_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "toy"
    words = ["export", str(checkpoint_folder), "-o", str(out), "--lowering", "portable", "ort", "--json"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["lowering"] == "portable ort"
    manifest = read_manifest(out)
    assert manifest.lowering == "portable" and list(manifest.others) == ["ort"]
    assert manifest.in_lowering(["ort"], "it").cache_length == 0


def test_the_budget_of_a_lowering(every: Path, capsys: pytest.CaptureFixture[str]) -> None:
    read = {}
    for lowering in ("portable", "primitive"):
        assert main(["inspect", str(every), "--budget", "--lowering", lowering, "--json"]) == 0
        read[lowering] = json.loads(capsys.readouterr().out)
    assert read["primitive"]["slot_mb"] > read["portable"]["slot_mb"]
    assert main(["inspect", str(every), "--budget", "--lowering", "fused"]) == 1
    assert "has the lowering ort and portable and primitive; --budget takes fused" in capsys.readouterr().err


def test_a_build_takes_the_name_of_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", "demo", "--target", "ort", "--precision", "fp32", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["graphs"] == []
    assert main(["build", "nothing-of-that-name", "--target", "ort"]) == 1
    assert "unknown model" in capsys.readouterr().err
