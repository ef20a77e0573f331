"""Vocos on EnCodec's codes (Siuzdak, 2023, section 3), the paper's decoder, its inverse STFT in the graph.

Read from the folder of `charactr/vocos-encodec-24khz` or its `pytorch_model.bin`; the shapes say the sizes.
The bandwidth it is told of is fixed at 6 kbps, so its adaptive norms are plain ones.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from valle2.engine.bundle.untrusted import is_folder
from valle2.export.checkpoint import check_backed, put
from valle2.export.codecs.demo import (
    MAX_HOP,
    OVERLAP,
    ConvNeXt,
    InverseFourier,
    Limits,
    check_sizes,
    embedded,
    inverse_stft,
    overlap_add,
)
from valle2.export.errors import CheckpointError
from valle2.export.models.config import CODEBOOK_SIZE, CODEBOOKS
from valle2.export.weights.state_dict import read_tensors
from valle2.export.weights.tensors import Claims

FILE = "pytorch_model.bin"
MARKS = ("head.out.weight", "backbone.embed.weight")
"""Names that every Vocos has."""
BANDWIDTH = 2
"""6 kbps among 1.5, 3, 6 and 12."""
BANDWIDTHS = 4
EPS = 1e-6
LOUDEST = 100.0
KERNEL = 7
VOCOS_LIMITS: Limits = {"blocks": (0, 64), "hop": (4, MAX_HOP)}
"""Least and greatest sizes; the others lie between 1 and `codec.MAX_WIDTH`.

The published vocoder has 8 blocks, hop 320, dimension 128, width 384 and ffn 1152.
"""


@dataclass(frozen=True, slots=True)
class VocosConfig:
    """Sizes. dimension: of the codebooks' vectors.

    Raises:
        ValueError: a size is no whole number in `VOCOS_LIMITS`.
    """

    dimension: int = 128
    width: int = 384
    ffn: int = 1152
    blocks: int = 8
    hop: int = 320

    def __post_init__(self) -> None:
        check_sizes("Vocos", asdict(self), VOCOS_LIMITS)


class VocosDecoder(nn.Module):
    """codes (B, T, 8) int64 -> audio (B, T * hop) float32."""

    def __init__(self, config: VocosConfig) -> None:
        super().__init__()
        self.hop, size = config.hop, OVERLAP * config.hop
        self.bins = size // 2 + 1
        self.tables = nn.Parameter(torch.empty(CODEBOOKS, CODEBOOK_SIZE, config.dimension))
        self.embed = nn.Conv1d(config.dimension, config.width, KERNEL, padding=KERNEL // 2)
        self.norm = nn.LayerNorm(config.width, EPS)
        self.blocks = nn.Sequential(*(ConvNeXt(config.width, config.ffn, EPS) for _ in range(config.blocks)))
        self.last_norm = nn.LayerNorm(config.width, EPS)
        self.out = nn.Linear(config.width, 2 * self.bins)
        self.fourier = InverseFourier(size)

    def forward(self, codes: Tensor) -> Tensor:
        features = embedded(codes, self.tables).transpose(1, 2)
        hidden = self.blocks(self.norm(self.embed(features).transpose(1, 2)))
        return self.waves(self.out(self.last_norm(hidden)))

    def waves(self, out: Tensor) -> Tensor:
        """Log magnitude and phase (B, T, 2 * bins) -> audio (B, T * hop), the windows' sum divided out."""
        magnitude = out[..., : self.bins].exp().clamp(max=LOUDEST)
        gain = (
            self.fourier.get_buffer("hann").square() / 1.5
        )  # the basis has the inner frames' 1.5 divided out
        envelope = overlap_add(gain.expand(1, out.shape[1], -1), self.hop)
        return inverse_stft(magnitude, out[..., self.bins :], self.fourier, self.hop) / envelope


def read_vocos(path: Path) -> tuple[VocosDecoder, VocosConfig]:
    """Load a vocoder of EnCodec's codes.

    Raises:
        CheckpointError: another file, a vocoder of mel spectrograms, or weights missing or misshapen.
    """
    file = vocos_file(path)
    claims = Claims(file, read_tensors(file, lambda names: all(name in names for name in MARKS)))
    if not all(name in claims for name in MARKS):
        raise CheckpointError(f"{file} is no Vocos checkpoint; expected that of charactr/vocos-encodec-24khz")
    if "feature_extractor.codebook_weights" not in claims:
        raise CheckpointError(
            f"{file} decodes mel spectrograms; expected a Vocos of EnCodec's codes (vocos-encodec-24khz)"
        )
    config = sizes(claims)
    with torch.device("meta"):  # it takes no memory until the file's weights are in it
        decoder = VocosDecoder(config).eval()
    check_backed(file, decoder)
    fill(decoder, config, claims)
    return decoder, config


def vocos_file(path: Path) -> Path:
    """The weights' file of a folder, or the file itself."""
    return path / FILE if is_folder(path) else path


def sizes(claims: Claims) -> VocosConfig:
    """What the shapes say."""
    width, dimension, _ = claims.shape("backbone.embed.weight", 3)
    ffn = claims.shape("backbone.convnext.0.pwconv1.weight", 2)[0]
    rows = claims.shape("head.out.weight", 2)[0]
    if (rows - 2) % (4 * OVERLAP):
        raise CheckpointError(
            f"{claims.path}: the head has {rows} rows; expected 1282, an STFT of 1280 samples"
        )
    count = claims.count("backbone.convnext.{}.gamma")
    try:
        return VocosConfig(dimension, width, ffn, count, (rows - 2) // OVERLAP)
    except ValueError as error:
        raise CheckpointError(f"{claims.path}: {error}") from None


def fill(decoder: VocosDecoder, config: VocosConfig, claims: Claims) -> None:
    """Put the file's weights into the decoder, uncopied where they can be."""
    books, dimension = claims.shape("feature_extractor.codebook_weights", 2)
    if books < CODEBOOKS * CODEBOOK_SIZE:
        raise CheckpointError(
            f"{claims.path} has {books} code vectors; expected {CODEBOOKS} times {CODEBOOK_SIZE}"
        )
    vectors = claims.take("feature_extractor.codebook_weights", books, dimension)
    tables = vectors[: CODEBOOKS * CODEBOOK_SIZE].reshape(CODEBOOKS, CODEBOOK_SIZE, dimension)
    put(decoder, {"tables": tables})

    def take(module: nn.Module, name: str) -> None:
        shapes = {part: value.shape for part, value in module.named_parameters()}
        put(module, {part: claims.take(f"{name}.{part}", *shape) for part, shape in shapes.items()})

    def adaptive(norm: nn.LayerNorm, name: str) -> None:
        parts = {"weight": "scale", "bias": "shift"}
        tables = {
            ours: claims.take(f"{name}.{part}.weight", BANDWIDTHS, config.width)
            for ours, part in parts.items()
        }
        put(norm, {ours: table[BANDWIDTH] for ours, table in tables.items()})

    take(decoder.embed, "backbone.embed")
    adaptive(decoder.norm, "backbone.norm")
    for index, block in enumerate(decoder.blocks):
        assert isinstance(block, ConvNeXt)
        place = f"backbone.convnext.{index}"
        take(block.conv, f"{place}.dwconv")
        adaptive(block.norm, f"{place}.norm")
        take(block.up, f"{place}.pwconv1")
        take(block.down, f"{place}.pwconv2")
        put(block, {"scale": claims.take(f"{place}.gamma", config.width)})
    take(decoder.last_norm, "backbone.final_layer_norm")
    take(decoder.out, "head.out")
