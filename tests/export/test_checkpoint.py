"""Checkpoints and bundles: bad ones are refused, and no file is lost or half written."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.conftest import toy_checkpoint, write_toy
from valle2.engine import Valle2Error, open_backend, read_manifest
from valle2.engine.bundle.nar_inputs import NARInputs
from valle2.export import CheckpointError, ParityError, export_checkpoint, read_checkpoint
from valle2.export import bundle as bundle_module
from valle2.export.carried import POINTER, copy_carried, copy_folder
from valle2.export.checkpoint import METADATA
from valle2.export.codecs.demo import CodecConfig, CodecEncoder
from valle2.runtime.tts import find_model


def altered(folder: Path, out: Path, change: str) -> Path:
    """The toy checkpoint with one error."""
    weights = load_file(str(folder / "model.safetensors"))
    from safetensors import safe_open

    with safe_open(str(folder / "model.safetensors"), framework="pt") as opened:
        metadata = dict(opened.metadata())
    if change == "missing":
        del weights["ar.bos"]
    elif change == "extra":
        weights["ar.surplus"] = torch.zeros(3)
    elif change == "misshapen":
        weights["nar.code_eos"] = torch.zeros(5)
    elif change == "nan":
        weights["ar.bos"][0] = float("nan")
    elif change == "metadata":
        metadata = {}
    elif change == "sizes":
        metadata[METADATA] = json.dumps({"model": {"vocab_size": -1}})
    out.mkdir()
    save_file(weights, str(out / "model.safetensors"), metadata=metadata)
    return out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", r"missing weights \['ar.bos'\]"),
        ("extra", r"unknown weights \['ar.surplus'\]"),
        ("misshapen", r"nar.code_eos is \(5,\); expected \(32,\)"),
        ("nan", "ar.bos holds NaN or infinity"),
        ("metadata", "no 'valle2' metadata"),
        ("sizes", "vocab_size is -1; expected a positive integer"),
    ],
)
def test_bad_weights_name_the_key(checkpoint_folder: Path, tmp_path: Path, change: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(altered(checkpoint_folder, tmp_path / "bad", change))


class Exploit:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemExit('code of the pickle ran')",))


def test_a_pickle_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(pickle.dumps(Exploit()))
    with pytest.raises(CheckpointError, match=r"expected a \.safetensors file"):
        read_checkpoint(path)


def test_a_pickle_named_safetensors_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(pickle.dumps(Exploit()))
    with pytest.raises(CheckpointError, match="not a readable safetensors"):
        read_checkpoint(path)


def test_export_writes_parity_hashes_and_half_size_weights(bundle: Path, checkpoint_folder: Path) -> None:
    manifest = read_manifest(bundle)
    assert set(manifest.parity) == {"ar", "nar", "codec_encoder", "codec_decoder"}
    assert max(manifest.parity["ar"], manifest.parity["nar"]) < 1e-4
    assert {"voices/amber.safetensors", "text/lexicon.tsv", "ar.onnx", "ar.weights"} <= set(manifest.files)
    parameters = sum(p.numel() for p in read_checkpoint(checkpoint_folder).ar.parameters())
    assert (bundle / "ar.weights").stat().st_size < 2.3 * parameters


def test_a_codec_may_have_a_trunk_for_its_details(tmp_path: Path) -> None:
    """Codebook 0 depends on one trunk, the others on both."""
    toy = toy_checkpoint(2, 400)  # as in `checkpoint_folder`, so that only the encoder is traced anew
    assert toy.codec is not None and isinstance(toy.codec[2], CodecConfig)
    sizes = replace(toy.codec[2], detail=2, residual=20)
    encoder = CodecEncoder(sizes).eval()
    source = write_toy(tmp_path / "toy", replace(toy, codec=(encoder, toy.codec[1], sizes)))
    bundle = export_checkpoint(source, tmp_path / "bundle")
    stored = read_checkpoint(source).codec
    assert stored is not None and isinstance(stored[0], CodecEncoder) and stored[0].detail is not None
    audio = torch.randn(1, 40 * 320, generator=torch.manual_seed(0)) * 0.1
    graph = open_backend(bundle, read_manifest(bundle).graphs["codec_encoder"])
    codes = stored[0](audio)
    assert np.array_equal(graph.run({"audio": audio.numpy()})["codes"], codes.numpy())
    stored[0].detail.out.bias.data += 1.0
    changed = stored[0](audio)
    assert torch.equal(changed[..., 0], codes[..., 0]) and not torch.equal(changed[..., 1], codes[..., 1])


def test_a_graph_that_differs_is_refused_and_nothing_is_left(
    checkpoint_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> float:
        raise ParityError("ar: the graph differs")

    monkeypatch.setattr(bundle_module, "verify_ar", fail)
    with pytest.raises(ParityError, match="ar: the graph differs"):
        export_checkpoint(checkpoint_folder, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["a link to a file elsewhere", "a link to a folder elsewhere", "a pipe"])
def test_what_lies_beside_a_checkpoint_is_copied_from_there_alone(
    kind: str, checkpoint_folder: Path, tmp_path: Path
) -> None:
    """An unpacked checkpoint may hold links to other files of this machine."""
    folder, secret = tmp_path / "checkpoint", tmp_path / "secret"
    shutil.copytree(checkpoint_folder, folder)
    secret.mkdir()
    (secret / "key").write_text("private")
    (folder / "text" / "again.json").symlink_to("tokenizer.json")
    if kind == "a pipe":
        os.mkfifo(folder / "text" / "odd")
    else:
        (folder / "text" / "odd").symlink_to(secret if "folder" in kind else secret / "key")
    with pytest.raises(CheckpointError, match="odd is no plain file of the checkpoint"):
        export_checkpoint(folder, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
    (folder / "text" / "odd").unlink()
    copy_folder(folder / "text", tmp_path / "text", folder)
    assert (tmp_path / "text" / "again.json").read_bytes() == (folder / "text/tokenizer.json").read_bytes()


def test_text_and_voices_of_an_embedded_model(tmp_path: Path) -> None:
    """A checkpoint that names the embedded model gets that model's files."""
    folder, out = tmp_path / "checkpoint", tmp_path / "bundle"
    folder.mkdir()
    (folder / POINTER).write_text('{"text": "demo", "voices": "demo"}')
    copy_carried(folder, out, folder)
    demo = find_model("demo")
    expected = {
        path.relative_to(demo): path.read_bytes()
        for name in ("text", "voices")
        for path in (demo / name).iterdir()
    }
    found = {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert found == expected and len(expected) >= 9


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ('["demo"]', "expected an object with the entries text and voices"),
        ('{"weights": "demo"}', "expected an object with the entries text and voices"),
        ('{"text": "other"}', "unknown embedded model 'other'; expected one of demo"),
        ('{"text": "../demo"}', "unknown embedded model"),
        ('{"text": 1}', "unknown embedded model 1"),
        ('{"voices": "demo"}', "has the folder voices and embedded.json names it too"),
        (" " * 2000, "cannot be read"),
    ],
)
def test_a_bad_pointer_to_an_embedded_model(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "voices").mkdir()
    (tmp_path / POINTER).write_text(text)
    with pytest.raises(CheckpointError, match=message):
        copy_carried(tmp_path, tmp_path / "bundle", tmp_path)


def test_interrupt_leaves_the_earlier_bundle(
    checkpoint_folder: Path, broken: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (broken / "manifest.json").read_bytes()

    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(bundle_module, "export_graph", interrupt)
    with pytest.raises(KeyboardInterrupt):
        export_checkpoint(checkpoint_folder, broken)
    assert (broken / "manifest.json").read_bytes() == before
    assert [path.name for path in broken.parent.iterdir()] == ["broken"]


def test_targets_that_would_lose_something_are_refused(checkpoint_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    refusals = {"full": "holds other files", "file": "is not a folder", "absent/out": "does not exist"}
    for target, message in refusals.items():
        with pytest.raises(Valle2Error, match=message):
            export_checkpoint(checkpoint_folder, tmp_path / target)
    assert (tmp_path / "full" / "thesis.txt").read_text() == "mine"


def test_half_stored_weights_are_exact(bundle: Path, checkpoint_folder: Path) -> None:
    model = read_checkpoint(checkpoint_folder).nar
    manifest = read_manifest(bundle)
    inputs = NARInputs(
        text=np.arange(5)[None],
        text_lengths=np.array([5]),
        codes=np.arange(80).reshape(1, 10, 8),
        prompt_lengths=np.array([4]),
        frame_lengths=np.array([10]),
        stage=np.array(1),
    )
    with torch.no_grad():
        expected = model(inputs.map(torch.from_numpy)).numpy()
    found = open_backend(bundle, manifest.graphs["nar"]).run(inputs.feeds())["logits"]
    assert np.abs(found - expected).max() < 1e-5
