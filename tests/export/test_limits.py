"""Sizes that a hostile checkpoint may claim. Each is refused before anything of that size is built."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.conftest import toy_checkpoint, toy_config
from tests.export.codecs.test_codecs import as_file, peer
from tests.export.importers.peers import Lifeiteng
from valle2.export import CheckpointError, read_checkpoint, save_checkpoint
from valle2.export.checkpoint import METADATA, empty_checkpoint
from valle2.export.codecs import CodecConfig, EncodecConfig, read_encodec, read_vocos
from valle2.export.codecs.fourier import Fourier, InverseFourier
from valle2.export.codecs.vocos import VocosConfig
from valle2.export.graphs import ar_graph
from valle2.export.importers import lifeiteng, read_any

ENCODEC_SIZES: dict[str, dict[str, Any]] = {
    "filters": {"filters": 512},
    "a filter": {"filters": 1},
    "very many filters": {"filters": 2**40},
    "dimension": {"dimension": 2**16},
    "no ratios": {"ratios": ()},
    "60 ratios": {"ratios": (2,) * 60},
    "12 ratios": {"ratios": (2,) * 12},
    "width": {"filters": 256, "ratios": (2,) * 5},
    "a ratio of 0": {"ratios": (2, 0)},
    "a large ratio": {"ratios": (2**30,)},
    "hop": {"ratios": (64, 64)},
    "sample rate": {"sample_rate": 10**30},
}
VOCOS_SIZES: dict[str, dict[str, Any]] = {
    "hop 0": {"hop": 0},
    "hop": {"hop": 3840},
    "very large hop": {"hop": 2**38},
    "width": {"width": 8192},
    "ffn": {"ffn": 8192},
    "dimension": {"dimension": 2**40},
    "blocks": {"blocks": 3000},
}


def one_line(error: BaseException) -> str:
    text = str(error)
    assert text.isprintable() and len(text) < 500
    return text


@pytest.mark.parametrize("name", ENCODEC_SIZES)
def test_encodec_of_a_size_out_of_range(name: str) -> None:
    with pytest.raises(ValueError, match=r"EnCodec: .* is .*; expected .* to") as refused:
        EncodecConfig(**ENCODEC_SIZES[name])
    one_line(refused.value)


@pytest.mark.parametrize("name", VOCOS_SIZES)
def test_vocos_of_a_size_out_of_range(name: str) -> None:
    with pytest.raises(ValueError, match=r"Vocos: .* is .*; expected .* to") as refused:
        VocosConfig(**VOCOS_SIZES[name])
    one_line(refused.value)


def test_published_codecs_are_within_the_limits() -> None:
    assert EncodecConfig().hop == VocosConfig().hop == CodecConfig().hop == 320
    tokenizer = EncodecConfig(64, 1024, (2, 4, 5, 8), 16000, causal=False, both_ways=True)
    assert tokenizer.width == 1024


def encodec_claim(filters: int, ratios: tuple[int, ...], dimension: int = 8) -> dict[str, Tensor]:
    """Only those tensors of EnCodec that tell its sizes, with all their numbers."""
    kernels = [2 * ratio for ratio in (*ratios, 3)]
    table = torch.zeros(1024, dimension)
    return (
        {"encoder.model.0.conv.conv.weight_v": torch.zeros(filters, 1, 7)}
        | {
            f"encoder.model.{3 * i + 3}.conv.conv.weight_v": torch.zeros(1, 1, k)
            for i, k in enumerate(kernels)
        }
        | {f"quantizer.vq.layers.{k}._codebook.embed": table for k in range(8)}
    )


def vocos_claim(rows: int, width: int, ffn: int, blocks: int = 1) -> dict[str, Tensor]:
    """Only those tensors of Vocos that tell its sizes."""
    found = {
        "backbone.embed.weight": torch.zeros(width, 1, 1),
        "head.out.weight": torch.zeros(rows, 1),
        "feature_extractor.codebook_weights": torch.zeros(8192, 1),
        "backbone.convnext.0.pwconv1.weight": torch.zeros(ffn, 1),
    }
    return found | {f"backbone.convnext.{i}.gamma": torch.zeros(1) for i in range(blocks)}


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        (encodec_claim(512, (2, 4)), "filters is 512; expected 2 to 256"),
        (encodec_claim(32, (2,) * 60), "levels is 60; expected 1 to 8"),
        (encodec_claim(32, (100,)), "ratio is 100; expected 2 to 64"),
        (encodec_claim(32, (64, 64)), "hop is 4096; expected 2 to 2048"),
        (encodec_claim(2, (2,), 5000), "dimension is 5000; expected 1 to 4096"),
        (encodec_claim(256, (2,) * 4), "its shapes say .* weights; is the file complete"),
        ({"\n\x1b[31m\u202e.x": torch.zeros(1)}, r"it has '\\n\\x1b\[31m\\u202e.x'"),
    ],
)
def test_an_encodec_that_claims_too_much_is_refused_in_a_line(
    weights: dict[str, Tensor], said: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=said) as refused:
        read_encodec(as_file(weights, tmp_path / "encodec.th"))
    one_line(refused.value)


def test_a_sample_rate_out_of_range_is_refused_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"sample_rate": 99999999999}', encoding="utf-8")
    with pytest.raises(CheckpointError, match="sample_rate is 99999999999; expected 4000 to"):
        read_encodec(as_file(peer("speechtokenizer")[0], tmp_path / "SpeechTokenizer.pt"))


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        (vocos_claim(2, 1, 1), "hop is 0; expected 4 to 640"),
        (vocos_claim(15362, 1, 1), "hop is 3840; expected 4 to 640"),
        (vocos_claim(1282, 5000, 1), "width is 5000; expected 1 to 4096"),
        (vocos_claim(1282, 1, 5000), "ffn is 5000; expected 1 to 4096"),
        (vocos_claim(1282, 1, 1, blocks=65), "blocks is 65; expected 0 to 64"),
        (vocos_claim(1282, 4096, 4096), "its shapes say .* weights; is the file complete"),
    ],
)
def test_a_vocos_that_claims_too_much_is_refused_in_a_line(
    weights: dict[str, Tensor], said: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=said) as refused:
        read_vocos(as_file(weights, tmp_path / "pytorch_model.bin"))
    one_line(refused.value)


LARGEST = {"width": 4096, "ffn": 4096, "blocks": 64, "decoder_width": 4096, "decoder_blocks": 64, "hop": 640}


def test_an_own_codec_takes_no_memory_until_it_fits_its_file(tmp_path: Path) -> None:
    """Its weights would take about 20 GB."""
    values = {"model": toy_config(1).to_dict(), "codec": LARGEST}
    codec = empty_checkpoint(values).codec
    assert codec is not None and all(weight.is_meta for part in codec[:2] for weight in part.parameters())
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(1)}, str(path), metadata={METADATA: json.dumps(values)})
    with pytest.raises(CheckpointError, match="missing weights") as refused:
        read_checkpoint(path)
    one_line(refused.value)


def test_an_own_codec_that_was_read_codes_as_it_did(tmp_path: Path) -> None:
    """Filters and Fourier bases are not in the file, so they must be computed after loading."""
    toy = toy_checkpoint(2)
    assert toy.codec is not None
    stored = read_checkpoint(save_checkpoint(toy, tmp_path / "toy")).codec
    assert stored is not None
    audio = torch.randn(1, 8 * 320, generator=torch.manual_seed(0))
    with torch.inference_mode():
        codes = toy.codec[0](audio)
        assert torch.equal(stored[0](audio), codes)
        assert torch.equal(stored[1](codes), toy.codec[1](codes))


@pytest.mark.parametrize("kind", [Fourier, InverseFourier])
def test_a_basis_on_meta_is_the_real_one(kind: type[Fourier]) -> None:
    with torch.device("meta"):
        made = kind(160)
    expected = kind(160)
    for found, wanted in zip(made.bases(), expected.bases(), strict=True):
        assert torch.equal(found, wanted)
    assert torch.equal(made.remembered(), made.gathered(80))


def test_a_basis_that_inference_made_first_can_be_trained_through() -> None:
    fourier = Fourier(16)
    with torch.inference_mode():
        fourier(torch.ones(1, 16))
    frames = torch.ones(1, 16, requires_grad=True)
    fourier(frames)[0].sum().backward()
    assert frames.grad is not None


def test_caches_that_no_bundle_allows_are_refused_before_the_export() -> None:
    with pytest.raises(CheckpointError, match=r"too large for a bundle: .* give a smaller --cache-length"):
        ar_graph(toy_checkpoint(2).ar, "portable", 2**30)


def plain_sinusoids(rows: int, width: int, scale: Tensor) -> Tensor:
    """The code base's own formula: all rows at once."""
    rate = torch.exp(torch.arange(0, width, 2, dtype=torch.float32) * -(math.log(10000.0) / width))
    phase = torch.arange(rows, dtype=torch.float32)[:, None] * rate
    return torch.stack([phase.sin(), phase.cos()], dim=2).flatten(1)[:, :width] * scale


@pytest.mark.parametrize("rows", [1, 63, 64, 65, 1024, 3002])
@pytest.mark.parametrize("width", [1, 2, 7, 30, 128, 333, 1024])
def test_sinusoids_are_the_same_to_the_bit(rows: int, width: int) -> None:
    scale = torch.tensor([1.7])
    assert torch.equal(lifeiteng.sinusoids(rows, width, scale), plain_sinusoids(rows, width, scale))


def test_a_misshapen_file_is_refused_before_its_positions_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: object) -> Tensor:
        raise AssertionError("made too early")

    monkeypatch.setattr(lifeiteng, "sinusoids", never)
    container = Lifeiteng().container()
    name = next(name for name in container["model"] if name.startswith("nar_decoder") and "linear2" in name)
    container["model"][name] = torch.zeros(3)
    torch.save(container, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"linear2.* is \(3,\)"):
        read_any([tmp_path / "model.pt"])
