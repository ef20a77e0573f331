"""A small neural codec with EnCodec's geometry: 24 kHz, 75 frames a second, 8 codebooks of 1024.

Its codes are not EnCodec's. Codebook 0 quantises the 64-wide latent. Codebooks 1..7 quantise a narrow
projection of the residual, or of a second latent. The graphs consist of matrix products, convolutions and
gathers; they need neither complex numbers nor STFT operators. Axes: B batch, N samples, T frames.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from valle2.engine.bundle.contract import CODEBOOK_SIZE, CODEBOOKS
from valle2.engine.bundle.untrusted import shown
from valle2.export.codecs.common import MAX_HOP, SAMPLE_RATES, Limits, check_sizes, embedded, residual_codes
from valle2.export.codecs.fourier import OVERLAP, Fourier, InverseFourier, inverse_stft
from valle2.export.models.layers import nearest

MEL_FLOOR = 1e-5
CODEC_LIMITS: Limits = {
    "sample_rate": SAMPLE_RATES,
    "hop": (16, MAX_HOP),
    "mels": (1, 256),
    "blocks": (0, 64),
    "detail": (0, 64),
    "decoder_blocks": (0, 64),
}
"""Smallest and greatest sizes. The others lie between 1 and `common.MAX_WIDTH`."""


@dataclass(frozen=True, slots=True)
class CodecConfig:
    """Sizes of the codec. The window is four hops long.

    Args:
        sample_rate: in Hz. hop: samples per frame. mels: bands of the encoder's input.
        width, ffn, blocks: of the encoder's trunk. latent: width of codebook 0. residual: of the others.
        detail: blocks of a second trunk, whose latent codebooks 1..7 quantise. If 0, they quantise the
            residual of codebook 0.
        decoder_width, decoder_ffn, decoder_blocks: of the decoder's trunk.

    Raises:
        ValueError: a size is not a whole number within `CODEC_LIMITS`.
    """

    sample_rate: int = 24000
    hop: int = 320
    mels: int = 100
    width: int = 192
    ffn: int = 576
    blocks: int = 3
    latent: int = 64
    residual: int = 12
    detail: int = 0
    decoder_width: int = 256
    decoder_ffn: int = 768
    decoder_blocks: int = 5

    def __post_init__(self) -> None:
        check_sizes("codec", asdict(self), CODEC_LIMITS)

    @classmethod
    def from_dict(cls, values: Any) -> CodecConfig:
        """Build from parsed JSON. Raises ValueError for unknown keys."""
        known = {entry.name for entry in fields(cls)}
        if not isinstance(values, dict) or set(values) - known:
            raise ValueError(f"codec is {shown(values)}; expected some of {sorted(known)}")
        return cls(**values)

    @property
    def window(self) -> int:
        return OVERLAP * self.hop


def mel_matrix(config: CodecConfig) -> Tensor:
    """Triangular mel filters (bins, mels), HTK scale, 0 Hz to half the sample rate. Always on the CPU."""
    bins = config.window // 2 + 1
    top = 2595 * math.log10(1 + config.sample_rate / 2 / 700)
    mel = torch.linspace(0, top, config.mels + 2, dtype=torch.float64, device="cpu")
    edges = 700 * (10 ** (mel / 2595) - 1)
    hertz = torch.linspace(0, config.sample_rate / 2, bins, dtype=torch.float64, device="cpu")[:, None]
    rise = (hertz - edges[:-2]) / (edges[1:-1] - edges[:-2])
    fall = (edges[2:] - hertz) / (edges[2:] - edges[1:-1])
    return torch.minimum(rise, fall).clamp(min=0).float()


class ConvNeXt(nn.Module):
    """A ConvNeXt block: depthwise convolution over time, LayerNorm and a two-layer network, on (B, T, C)."""

    def __init__(self, width: int, ffn: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.conv = nn.Conv1d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps)
        self.up = nn.Linear(width, ffn)
        self.down = nn.Linear(ffn, width)
        self.scale = nn.Parameter(torch.full((width,), 0.3))

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.norm(self.conv(x.transpose(1, 2)).transpose(1, 2))
        out: Tensor = x + self.scale * self.down(functional.gelu(self.up(mixed)))
        return out


class Trunk(nn.Module):
    """Convolution, ConvNeXt blocks, LayerNorm and a linear layer: (B, T, in) -> (B, T, out)."""

    def __init__(self, sizes: tuple[int, int, int, int], blocks: int) -> None:
        super().__init__()
        inputs, width, ffn, outputs = sizes
        self.conv = nn.Conv1d(inputs, width, 5, padding=2)
        self.blocks = nn.Sequential(*(ConvNeXt(width, ffn) for _ in range(blocks)))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv(x.transpose(1, 2)).transpose(1, 2)
        out: Tensor = self.out(self.norm(self.blocks(hidden)))
        return out


class LogMel(nn.Module):
    """audio (B, N) -> normalised log-mel (B, N / hop, mels); frame t is centred at hop * (t + 1/2)."""

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        self.hop, self.fourier = config.hop, Fourier(config.window)
        self.register_buffer("filters", mel_matrix(config)[self.fourier.order], persistent=False)

    def forward(self, audio: Tensor) -> Tensor:
        margin = (OVERLAP - 1) * self.hop // 2
        padded = functional.pad(audio, (margin, margin))
        hops = padded.reshape(padded.shape[0], -1, self.hop)
        frames = hops.shape[1] - OVERLAP + 1
        pieces = [hops.narrow(1, i, frames) for i in range(OVERLAP)]
        real, imaginary = self.fourier(torch.cat(pieces, dim=2))
        magnitude = (real * real + imaginary * imaginary + 1e-12).sqrt()
        mel: Tensor = (magnitude @ self.get_buffer("filters")).clamp(min=MEL_FLOOR).log() * 0.4 + 0.8
        return mel


class CodecEncoder(nn.Module):
    """audio (B, N) float32, N a multiple of the hop -> codes (B, N / hop, 8) int64."""

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        sizes = (config.mels, config.width, config.ffn, config.latent)
        self.mel = LogMel(config)
        self.trunk = Trunk(sizes, config.blocks)
        self.detail = Trunk(sizes, config.detail) if config.detail else None
        self.narrow = nn.Linear(config.latent, config.residual, bias=False)
        self.first = nn.Parameter(torch.randn(CODEBOOK_SIZE, config.latent))
        self.rest = nn.Parameter(torch.randn(CODEBOOKS - 1, CODEBOOK_SIZE, config.residual))

    def forward(self, audio: Tensor) -> Tensor:
        mel = self.mel(audio)
        latent = self.trunk(mel)
        return self.quantise(latent, latent if self.detail is None else self.detail(mel))

    def quantise(self, latent: Tensor, fine: Tensor) -> Tensor:
        """Latents (B, T, latent), for codebook 0 and for the others -> codes (B, T, 8)."""
        first = nearest(latent, self.first)
        left = self.narrow(fine - functional.embedding(first, self.first))
        return torch.stack([first, *residual_codes(left, self.rest)], dim=2)


class CodecDecoder(nn.Module):
    """codes (B, T, 8) int64 -> audio (B, T * hop) float32: a ConvNeXt vocoder with an inverse STFT."""

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        self.hop, self.bins = config.hop, config.window // 2 + 1
        self.tables = nn.Parameter(torch.randn(CODEBOOKS, CODEBOOK_SIZE, config.latent))
        sizes = (config.latent, config.decoder_width, config.decoder_ffn, 2 * self.bins)
        self.trunk = Trunk(sizes, config.decoder_blocks)
        self.fourier = InverseFourier(config.window)

    def forward(self, codes: Tensor) -> Tensor:
        return self.synthesise(self.embed(codes))

    def embed(self, codes: Tensor) -> Tensor:
        """codes (B, T, 8) -> the sum of the codes' vectors (B, T, latent)."""
        return embedded(codes, self.tables)

    def synthesise(self, latent: Tensor) -> Tensor:
        """latent (B, T, latent) -> audio (B, T * hop)."""
        return self.waves(self.trunk(latent))

    def waves(self, out: Tensor) -> Tensor:
        """Log magnitude and phase (B, T, 2 * bins) -> audio (B, T * hop)."""
        magnitude = out[..., : self.bins].clamp(max=7.0).exp()
        return inverse_stft(magnitude, out[..., self.bins :], self.fourier, self.hop)
