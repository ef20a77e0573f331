"""EnCodec, SpeechTokenizer and Vocos against the libraries' outputs, and bundles that speak through them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from tests.conftest import shared
from tests.export.codecs.make_codec_peers import PEERS, drawn, random_audio, random_codes
from valle2.engine import Manifest, open_backend, read_manifest
from valle2.engine.backends.stateful import Stateful
from valle2.export import export_checkpoint
from valle2.export.codecs import EncodecStream, read_encodec, read_vocos
from valle2.export.codecs.common import neutral_codes
from valle2.export.codecs.encodec import elu, mirrored, reflected
from valle2.export.codecs.fourier import Fourier, InverseFourier
from valle2.export.errors import CheckpointError
from valle2.runtime import Prompt, Settings, Valle2
from valle2.runtime.audio.prepare import PAUSE_SECONDS
from valle2.runtime.cli.main import main

AUDIO_TOLERANCE = 2e-5
"""Relative to the loudest sample."""


def peer(name: str) -> tuple[dict[str, Tensor], NDArray[np.int16], NDArray[np.float32]]:
    """A library's state dict, codes (B, T, 8), and every seventh sample of its audio (B, N)."""
    with np.load(PEERS) as kept:
        shapes = json.loads(str(kept[f"{name}_shapes"]))
        return drawn(shapes), kept[f"{name}_codes"], kept[f"{name}_wave"]


@pytest.mark.parametrize("size", [8, 12, 1280])
def test_fourier_transforms(size: int) -> None:
    forward, inverse = Fourier(size), InverseFourier(size)
    frames, hann = torch.randn(2, 3, size), torch.hann_window(size)
    expected = torch.fft.rfft(frames * hann)
    found = torch.complex(*forward(frames))
    rounding = 1e-6 * float(expected.abs().max())
    torch.testing.assert_close(found, expected[..., forward.order], rtol=0, atol=rounding)
    back = torch.fft.irfft(expected) * hann / 1.5
    torch.testing.assert_close(inverse(expected.real, expected.imag), back)


def as_file(weights: dict[str, Tensor], path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file(weights, str(path))
    else:
        torch.save(weights, path)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("codecs")
    names = {
        "encodec": "encodec_24khz.th",
        "transformers": "model.safetensors",
        "speechtokenizer": "SpeechTokenizer.pt",
        "vocos": "pytorch_model.bin",
    }
    return {name: as_file(peer(name)[0], folder / file) for name, file in names.items()}


@pytest.fixture(scope="module")
def encodec_bundle(
    checkpoint_folder: Path, files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    target = tmp_path_factory.mktemp("bundles") / "encodec"
    return export_checkpoint(checkpoint_folder, target, codec=files["encodec"])


def assert_wave(found: Any, expected: NDArray[np.float32]) -> None:
    difference = np.abs(np.asarray(found)[:, ::7] - expected).max()
    assert difference <= AUDIO_TOLERANCE * np.abs(expected).max()


@pytest.mark.parametrize(
    ("form", "rate"), [("encodec", 24000), ("transformers", 24000), ("speechtokenizer", 16000)]
)
@torch.no_grad()
def test_a_codec_is_the_librarys(form: str, rate: int, files: dict[str, Path]) -> None:
    _, codes, wave = peer(form)
    encoder, decoder, config = read_encodec(files[form])
    assert (config.hop, config.sample_rate) == (320, rate)
    np.testing.assert_array_equal(encoder(random_audio()).numpy(), codes)
    assert_wave(decoder(torch.from_numpy(codes.astype(np.int64))), wave)


@torch.no_grad()
def test_vocos_is_the_librarys(files: dict[str, Path]) -> None:
    decoder, config = read_vocos(files["vocos"].parent)
    assert config.hop == 320
    assert_wave(decoder(random_codes()), peer("vocos")[2])


@torch.no_grad()
def test_graphs_are_the_librarys(encodec_bundle: Path) -> None:
    """Codes and audio of the graphs agree. Streamed chunks of any sizes join to the whole."""
    graphs = read_manifest(encodec_bundle).graphs
    _, codes, wave = peer("encodec")
    encoder, decoder, stream = (
        open_backend(encodec_bundle, graphs[f"codec_{name}"]) for name in ("encoder", "decoder", "stream")
    )
    np.testing.assert_array_equal(encoder.run({"audio": random_audio().numpy()})["codes"], codes)
    whole = decoder.run({"codes": codes.astype(np.int64)})["audio"]
    assert_wave(whole, wave)
    for seams in ((7,), (8, 9, 10), (20, 33), ()):
        one = Stateful(stream)
        parts = [one.run({"codes": part.astype(np.int64)})["audio"] for part in np.split(codes[:1], seams, 1)]
        np.testing.assert_allclose(
            np.concatenate(parts, 1), whole[:1], atol=AUDIO_TOLERANCE * np.abs(whole).max()
        )


def test_the_stream_reads_the_decoders_weights(encodec_bundle: Path) -> None:
    own = encodec_bundle / "codec_stream.weights"
    size = own.stat().st_size if own.is_file() else 0
    assert size < 0.01 * (encodec_bundle / "codec_decoder.weights").stat().st_size


@torch.no_grad()
def test_a_state_left_out_is_heard(files: dict[str, Path]) -> None:
    """Each state changes the audio, so the streaming test depends on all of them."""
    _, decoder, _ = read_encodec(files["encodec"])
    stream, codes = EncodecStream(decoder), random_codes()
    first = stream(codes[:, :20], torch.tensor(False), *stream.zero_states(2))
    for lost in range(1, len(first)):
        states = [state * (index != lost) for index, state in enumerate(first)][1:]
        audio = stream(codes[:, 20:], torch.tensor(True), *states)[0]
        assert (audio - decoder(codes)[:, 20 * 320 :]).abs().max() > 1e-3 * decoder(codes).abs().max()


def test_lengths_shorter_than_the_mirror() -> None:
    x = torch.tensor([[[1.0, 2.0]]])
    assert reflected(x, 4).tolist() == [[[0.0, 0.0, 0.0, 2.0]]]
    values = torch.tensor([-200.0, -1.0, 0.0, 3.0])
    assert mirrored(x, 1).tolist() == [[[1.0]]] and mirrored(x, 3).tolist() == [[[1.0, 0.0, 0.0]]]
    torch.testing.assert_close(elu(values), torch.nn.functional.elu(values))


def test_a_bundle_speaks_through_it(encodec_bundle: Path, tmp_path: Path) -> None:
    """A recording becomes a voice. Streamed and whole speech are the same audio."""
    tts = Valle2.load(encodec_bundle, threads=1)
    soundfile.write(tmp_path / "me.wav", 0.3 * np.sin(np.arange(44100 * 2) / 30), 44100)
    prompt = tts.prompt(tmp_path / "me.wav", "hello there")
    assert prompt.codes.shape == (round((2 + PAUSE_SECONDS) * 75), 8)
    speech = tts.synthesize("hello there the fox", prompt, Settings(seed=3))
    assert len(speech.audio) == 320 * len(speech.codes)
    again = tts.codec.decode(speech.codes) if tts.codec else None
    assert again is not None
    fade = 400
    np.testing.assert_allclose(speech.audio[fade:-fade], again[fade:-fade], atol=1e-5)
    parts = list(tts.stream("hello there the fox", prompt, Settings(seed=3), latency=0.1))
    assert len(parts) > 2 and sum(map(len, parts)) % 320 == 0


def test_real_codes_are_prompts(encodec_bundle: Path) -> None:
    folder = shared("fixtures/encodec-codes")
    tts = Valle2.load(encodec_bundle, threads=1)
    paths = sorted(folder.glob("*.npz"))[:3] + sorted(folder.glob("*.npy"))[:3]
    assert paths
    for path in paths:
        codes = real_codes(path)
        speech = tts.synthesize("a fox", Prompt(codes[:200], "hello there", "real"), Settings(seed=1))
        assert len(speech.audio) == 320 * len(speech.codes)


def real_codes(path: Path) -> NDArray[np.int64]:
    """Codes (T, 8), from any layout of the file."""
    found = np.load(path)
    array = found if isinstance(found, np.ndarray) else found[found.files[0]]
    array = np.squeeze(array)
    return np.asarray(array.T if array.shape[0] in (8, 32) else array, np.int64)[:, :8]


def test_export_command_takes_vocos(
    checkpoint_folder: Path, files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = [
        "export",
        str(checkpoint_folder),
        "-o",
        str(tmp_path / "b"),
        "--codec",
        str(files["transformers"]),
    ]
    assert main([*args, "--vocoder", str(files["vocos"].parent)]) == 0
    assert "codec_decoder" in capsys.readouterr().out
    manifest = read_manifest(tmp_path / "b")
    assert "codec_stream" not in manifest.graphs and sizes(manifest) == {"sample_rate": 24000, "hop": 320}
    assert len(manifest.provenance["checkpoint_sha256"].split()) == 3


def sizes(manifest: Manifest) -> dict[str, int]:
    """The codec's sizes, after a look at its neutral codes."""
    values = dict(manifest.codec)
    neutral = values.pop("neutral")
    assert len(neutral) == 8 and all(0 <= code < 1024 for code in neutral)
    return values


def test_neutral_codes_have_the_shortest_vectors() -> None:
    tables = torch.ones(8, 1024, 4)
    for book in range(8):
        tables[book, 100 + book] = 0.01
    assert neutral_codes(tables) == list(range(100, 108))


def test_a_bundle_speaks_through_speechtokenizer(
    checkpoint_folder: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    """Its graphs agree with the library, for short chunks too: 50 frames per second, no streaming graph."""
    folder = export_checkpoint(checkpoint_folder, tmp_path / "b", codec=files["speechtokenizer"].parent)
    manifest = read_manifest(folder)
    assert "codec_stream" not in manifest.graphs and sizes(manifest) == {"sample_rate": 16000, "hop": 320}
    _, codes, wave = peer("speechtokenizer")
    encoder, decoder = (
        open_backend(folder, manifest.graphs[f"codec_{name}"]) for name in ("encoder", "decoder")
    )
    np.testing.assert_array_equal(encoder.run({"audio": random_audio().numpy()})["codes"], codes)
    assert_wave(decoder.run({"codes": codes.astype(np.int64)})["audio"], wave)
    eager = read_encodec(files["speechtokenizer"])[1]
    part = codes[:1, :5].astype(np.int64)
    expected = eager(torch.from_numpy(part)).detach().numpy()
    np.testing.assert_allclose(
        decoder.run({"codes": part})["audio"], expected, atol=AUDIO_TOLERANCE * np.abs(expected).max()
    )
    tts = Valle2.load(folder, threads=1)
    soundfile.write(tmp_path / "me.wav", 0.3 * np.sin(np.arange(44100 * 2) / 30), 44100)
    prompt = tts.prompt(tmp_path / "me.wav", "hello there")
    assert prompt.codes.shape == (round((2 + PAUSE_SECONDS) * 50), 8)
    speech = tts.synthesize("hello there the fox", prompt, Settings(seed=3))
    assert speech.sample_rate == 16000 and len(speech.audio) == 320 * len(speech.codes)
    parts = list(tts.stream("hello there the fox", prompt, Settings(seed=3), latency=0.1))
    assert sum(map(len, parts)) == len(speech.audio)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"strides": [4, 4, 4, 4]}', "strides is .* expected .8, 5, 4, 2."),
        ('{"activation": "Snake"}', "expected 'ELU'"),
        ('{"bidirectional": false}', "bidirectional is False; expected True"),
        ('{"sample_rate": 0}', "positive integer"),
        ('{"sample_rate": true}', "positive integer"),
        ("[]", "not a readable JSON object"),
        ("{", "not a readable JSON object"),
    ],
)
def test_another_speechtokenizer_is_refused(
    text: str, said: str, files: dict[str, Path], tmp_path: Path
) -> None:
    copy = Path(shutil.copy(files["speechtokenizer"], tmp_path))
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError, match=said):
        read_encodec(copy)


@pytest.mark.parametrize(
    "name",
    [
        "encoder.model.1.block.0.alpha",  # Snake activations
        "encoder.model.13.lstm.weight_ih_l2",  # a third LSTM layer
        "stranger.weight",
    ],
)
def test_more_than_speechtokenizer_is_refused(name: str, tmp_path: Path) -> None:
    """Without a configuration, too. Weights that the module does not use must not be there."""
    weights = peer("speechtokenizer")[0] | {name: torch.ones(3)}
    with pytest.raises(CheckpointError, match=f"unknown weights .*{name}"):
        read_encodec(as_file(weights, tmp_path / "SpeechTokenizer.pt"))


def test_a_speechtokenizer_of_one_way_is_not_encodec(tmp_path: Path) -> None:
    weights = {name: v for name, v in peer("speechtokenizer")[0].items() if "_reverse" not in name}
    with pytest.raises(CheckpointError, match=r"lacks the weight .*lstm\.weight_ih_l0_reverse"):
        read_encodec(as_file(weights, tmp_path / "SpeechTokenizer.pt"))


def test_vocos_does_not_decode_speechtokenizer(
    checkpoint_folder: Path, files: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match="leave --vocoder out"):
        export_checkpoint(
            checkpoint_folder, tmp_path / "b", codec=files["speechtokenizer"], vocoder=files["vocos"]
        )


def wrong_codecs(folder: Path) -> list[tuple[Path, str]]:
    """Files that are not a 24 kHz EnCodec, and a part of each message."""
    weights = peer("encodec")[0]
    stereo = weights | {"encoder.model.0.conv.conv.weight_v": torch.ones(2, 2, 7)}
    few = {name: value for name, value in weights.items() if "layers.7." not in name}
    missing = {name: value for name, value in weights.items() if "lstm.bias_hh_l1" not in name}
    (folder / "empty.th").touch()
    return [
        (as_file(stereo, folder / "stereo.th"), "2 channels"),
        (as_file(few, folder / "few.th"), "7 codebooks"),
        (as_file(missing, folder / "missing.th"), "lacks the weight"),
        (as_file({"a": torch.ones(1)}, folder / "other.safetensors"), "no EnCodec checkpoint"),
        (folder / "empty.th", "0 bytes"),
        (folder / "absent.th", "no checkpoint there"),
    ]


def test_wrong_codecs_are_named(tmp_path: Path) -> None:
    for path, said in wrong_codecs(tmp_path):
        with pytest.raises(CheckpointError, match=said):
            read_encodec(path)


def test_wrong_vocoders_are_named(
    checkpoint_folder: Path, files: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mel = {name: value for name, value in peer("vocos")[0].items() if "codebook" not in name}
    with pytest.raises(CheckpointError, match="mel spectrograms"):
        read_vocos(as_file(mel, tmp_path / "mel.bin"))
    with pytest.raises(CheckpointError, match="no Vocos checkpoint"):
        read_vocos(files["encodec"])
    args = ["export", str(checkpoint_folder), "-o", str(tmp_path / "b"), "--vocoder", str(files["vocos"])]
    assert main(args) == 1
    assert "--codec" in capsys.readouterr().err and not (tmp_path / "b").exists()
