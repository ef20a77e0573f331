"""Vocos for EnCodec's codes (Siuzdak, 2023, section 3), the decoder of the paper, with its inverse STFT.

The weights are those of `charactr/vocos-encodec-24khz`: its folder or its `pytorch_model.bin`. Sizes follow
from the shapes. The bandwidth is fixed at 6 kbps, so the adaptive norms become plain LayerNorms.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from valle2.engine.bundle.contract import CODEBOOK_SIZE, CODEBOOKS
from valle2.engine.bundle.untrusted import is_folder
from valle2.export.codecs.common import MAX_HOP, Limits, check_sizes, embedded
from valle2.export.codecs.demo import ConvNeXt
from valle2.export.codecs.fourier import OVERLAP, InverseFourier, inverse_stft, overlap_add
from valle2.export.errors import CheckpointError
from valle2.export.weights import TensorReader, check_file_size, read_tensors, set_parameters

FILE = "pytorch_model.bin"
MARKS = ("head.out.weight", "backbone.embed.weight")
"""Names in every Vocos file."""
BANDWIDTH = 2
"""The index of 6 kbps among 1.5, 3, 6 and 12."""
BANDWIDTHS = 4
EPS = 1e-6
LOUDEST = 100.0
KERNEL = 7
VOCOS_LIMITS: Limits = {"blocks": (0, 64), "hop": (4, MAX_HOP)}
"""Smallest and greatest sizes. The others lie between 1 and `common.MAX_WIDTH`.

The published vocoder has 8 blocks, hop 320, dimension 128, width 384 and ffn 1152.
"""


@dataclass(frozen=True, slots=True)
class VocosConfig:
    """Sizes of the vocoder. dimension: of the codebooks' vectors. hop: samples per frame.

    Raises:
        ValueError: a size is not a whole number within `VOCOS_LIMITS`.
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
        """Log magnitude and phase (B, T, 2 * bins) -> audio (B, T * hop), over the sum of the windows."""
        magnitude = out[..., : self.bins].exp().clamp(max=LOUDEST)
        # The inverse transform divides by 1.5, the windows' sum of the inner frames.
        gain = self.fourier.get_buffer("hann").square() / 1.5
        envelope = overlap_add(gain.expand(1, out.shape[1], -1), self.hop)
        return inverse_stft(magnitude, out[..., self.bins :], self.fourier, self.hop) / envelope


def read_vocos(path: Path) -> tuple[VocosDecoder, VocosConfig]:
    """Load a vocoder for EnCodec's codes.

    Args:
        path: the folder of the model, or its weights file.

    Returns:
        The decoder in evaluation mode, and its sizes.

    Raises:
        CheckpointError: another file, a vocoder of mel spectrograms, or weights missing or of another shape.
    """
    file = vocos_file(path)
    reader = TensorReader(file, read_tensors(file, lambda names: all(name in names for name in MARKS)))
    if not all(name in reader for name in MARKS):
        raise CheckpointError(f"{file} is no Vocos checkpoint; expected that of charactr/vocos-encodec-24khz")
    if "feature_extractor.codebook_weights" not in reader:
        raise CheckpointError(
            f"{file} decodes mel spectrograms; expected a Vocos of EnCodec's codes (vocos-encodec-24khz)"
        )
    config = sizes(reader)
    with torch.device("meta"):  # no memory until the file's weights are set
        decoder = VocosDecoder(config).eval()
    check_file_size(file, decoder)
    fill(decoder, config, reader)
    return decoder, config


def vocos_file(path: Path) -> Path:
    """The weights file of a folder, or the file itself."""
    return path / FILE if is_folder(path) else path


def sizes(reader: TensorReader) -> VocosConfig:
    """Derive the sizes from the shapes."""
    width, dimension, _ = reader.shape("backbone.embed.weight", 3)
    ffn = reader.shape("backbone.convnext.0.pwconv1.weight", 2)[0]
    rows = reader.shape("head.out.weight", 2)[0]
    if (rows - 2) % (4 * OVERLAP):
        raise CheckpointError(
            f"{reader.path}: the head has {rows} rows; expected 1282, an STFT of 1280 samples"
        )
    count = reader.count("backbone.convnext.{}.gamma")
    try:
        return VocosConfig(dimension, width, ffn, count, (rows - 2) // OVERLAP)
    except ValueError as error:
        raise CheckpointError(f"{reader.path}: {error}") from None


def fill(decoder: VocosDecoder, config: VocosConfig, reader: TensorReader) -> None:
    """Put the file's weights into the decoder, without copies where possible."""
    books, dimension = reader.shape("feature_extractor.codebook_weights", 2)
    if books < CODEBOOKS * CODEBOOK_SIZE:
        raise CheckpointError(
            f"{reader.path} has {books} code vectors; expected {CODEBOOKS} times {CODEBOOK_SIZE}"
        )
    vectors = reader.take("feature_extractor.codebook_weights", books, dimension)
    tables = vectors[: CODEBOOKS * CODEBOOK_SIZE].reshape(CODEBOOKS, CODEBOOK_SIZE, dimension)
    set_parameters(decoder, {"tables": tables})

    def take(module: nn.Module, name: str) -> None:
        shapes = {part: value.shape for part, value in module.named_parameters()}
        set_parameters(
            module, {part: reader.take(f"{name}.{part}", *shape) for part, shape in shapes.items()}
        )

    def adaptive(norm: nn.LayerNorm, name: str) -> None:
        parts = {"weight": "scale", "bias": "shift"}
        tables = {
            ours: reader.take(f"{name}.{part}.weight", BANDWIDTHS, config.width)
            for ours, part in parts.items()
        }
        set_parameters(norm, {ours: table[BANDWIDTH] for ours, table in tables.items()})

    take(decoder.embed, "backbone.embed")
    adaptive(decoder.norm, "backbone.norm")
    for index, block in enumerate(decoder.blocks):
        assert isinstance(block, ConvNeXt)
        place = f"backbone.convnext.{index}"
        take(block.conv, f"{place}.dwconv")
        adaptive(block.norm, f"{place}.norm")
        take(block.up, f"{place}.pwconv1")
        take(block.down, f"{place}.pwconv2")
        set_parameters(block, {"scale": reader.take(f"{place}.gamma", config.width)})
    take(decoder.last_norm, "backbone.final_layer_norm")
    take(decoder.out, "head.out")
