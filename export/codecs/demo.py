"""A small neural codec with EnCodec's geometry: 24 kHz, 75 frames a second, 8 codebooks of 1024.

Its codes are its own, not EnCodec's. Codebook 0 quantises the 64-wide latent itself; codebooks 1..7
quantise what is left, in a narrow projection, of it or of a second latent made for them. Everything is
matmul, convolution and gather, so the graphs need neither complex numbers nor STFT operators. Axes: B batch,
N samples, T frames.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from valle2.engine.bundle.untrusted import shown
from valle2.export.models.config import CODEBOOK_SIZE, CODEBOOKS

OVERLAP = 4
MEL_FLOOR = 1e-5
ROWS = 64
"""Of a Fourier basis, gathered at once."""
MAX_WIDTH = 4096
MAX_HOP = 640
"""Of a codec with Fourier bases, which grow with its square; the published ones have 320."""
Limits = Mapping[str, tuple[int, int]]
CODEC_LIMITS: Limits = {
    "sample_rate": (4000, 192_000),
    "hop": (16, MAX_HOP),
    "mels": (1, 256),
    "blocks": (0, 64),
    "detail": (0, 64),
    "decoder_blocks": (0, 64),
}
"""Least and greatest sizes; the others lie between 1 and `MAX_WIDTH`."""


def check_sizes(kind: str, sizes: Mapping[str, object], limits: Limits) -> None:
    """Refuse the first size that is no whole number within its limits, or within 1 and `MAX_WIDTH`.

    Raises:
        ValueError: it names the codec, the size and its limits.
    """
    for name, value in sizes.items():
        least, most = limits.get(name, (1, MAX_WIDTH))
        if type(value) is not int or not least <= value <= most:
            raise ValueError(f"{kind}: {name} is {shown(value)}; expected {least} to {most}")


@dataclass(frozen=True, slots=True)
class CodecConfig:
    """Sizes of the codec. The window is four hops long; `width`/`ffn` are the encoder's.

    detail: blocks of a trunk whose latent codebooks 1..7 quantise; 0: they quantise that of codebook 0.

    Raises:
        ValueError: a size is no whole number in `CODEC_LIMITS`.
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
        """Build from parsed JSON; a ValueError names what is unknown."""
        known = {entry.name for entry in fields(cls)}
        if not isinstance(values, dict) or set(values) - known:
            raise ValueError(f"codec is {shown(values)}; expected some of {sorted(known)}")
        return cls(**values)

    @property
    def window(self) -> int:
        return OVERLAP * self.hop


def mel_matrix(config: CodecConfig) -> Tensor:
    """Triangular mel filters (bins, mels), HTK scale, 0 Hz to half the sample rate; never on `meta`."""
    bins = config.window // 2 + 1
    top = 2595 * math.log10(1 + config.sample_rate / 2 / 700)
    mel = torch.linspace(0, top, config.mels + 2, dtype=torch.float64, device="cpu")
    edges = 700 * (10 ** (mel / 2595) - 1)
    hertz = torch.linspace(0, config.sample_rate / 2, bins, dtype=torch.float64, device="cpu")[:, None]
    rise = (hertz - edges[:-2]) / (edges[1:-1] - edges[:-2])
    fall = (edges[2:] - hertz) / (edges[2:] - edges[1:-1])
    return torch.minimum(rise, fall).clamp(min=0).float()


class Fourier(nn.Module):
    """Windowed real Fourier transform, halved by the first butterfly of an FFT.

    Half a frame further on, the wave of an even bin is what it was, and that of an odd bin has changed its
    sign. So even bins need the sum of a frame's halves and odd bins the difference: half the products. Axes:
    N samples of a frame, a multiple of 4; K = N / 2 + 1 bins, `order` says which: the even ones, then the odd
    ones. The window is a periodic Hann.

    Every entry of a basis is one of N cosines. A graph holds only these and gathers the bases when it is
    loaded: stored, they would weigh as much as the network around them. Outside graphs they are gathered at
    their first use, so that a module takes no memory for them before; its cosines are real on `meta`.
    """

    kept: Tensor | None

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.bins = size, size // 2 + 1
        self.parts = [self.bins // 2 + 1, self.bins // 2]
        self.order = torch.cat([torch.arange(first, self.bins, 2, device="cpu") for first in (0, 1)])
        turns = torch.arange(size, dtype=torch.float64, device="cpu")
        cosine = torch.cos(turns * (2 * math.pi / size))
        self.register_buffer("cosine", cosine.float(), persistent=False)
        self.register_buffer("hann", (0.5 - 0.5 * cosine).float(), persistent=False)
        self.register_buffer("kept", None, persistent=False)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """frames (..., N) -> real and imaginary parts (..., K)."""
        near, far = (frames * self.get_buffer("hann")).chunk(2, dim=-1)
        even, odd = self.bases()
        parts = ((near + far) @ even).chunk(2, dim=-1), ((near - far) @ odd).chunk(2, dim=-1)
        real, imaginary = (torch.cat(pair, dim=-1) for pair in zip(*parts, strict=True))
        return real, imaginary

    def bases(self) -> tuple[Tensor, Tensor]:
        """(N / 2, 2 * bins) of the even bins and of the odd ones."""
        whole = self.gathered(self.size // 2) if torch.compiler.is_exporting() else self.remembered()
        odd = 2 * self.parts[0]
        return whole[:, :odd], whole[:, odd:]

    def gathered(self, *span: int) -> Tensor:
        """Rows of (N / 2, 2 * K): of each part cosines, then negative sines.

        -sin(x) is cos(x + a quarter turn). span: the rows, as `range` takes them.
        """
        evens, odds = self.order[: self.parts[0]], self.order[self.parts[0] :]
        bins = torch.cat([evens, evens, odds, odds])
        turned = torch.tensor([turn for part in self.parts for turn in [0] * part + [1] * part])
        index = (torch.arange(*span)[:, None] * bins + turned * (self.size // 4)) % self.size
        return self.get_buffer("cosine")[index]

    @torch.inference_mode(False)
    def remembered(self) -> Tensor:
        """All rows, gathered a few at a time: their indices take twice their memory."""
        if self.kept is None:
            cosine, rows = self.get_buffer("cosine"), self.size // 2
            whole = cosine.new_empty(rows, 2 * self.bins)
            for first in range(0, rows, ROWS):
                end = min(first + ROWS, rows)
                whole[first:end] = self.gathered(first, end)
            self.kept = whole
        return self.kept


class InverseFourier(Fourier):
    """Its inverse, frames windowed again, with the gain of their overlap (1.5) divided out."""

    def forward(self, real: Tensor, imaginary: Tensor) -> Tensor:  # type: ignore[override]
        """Real and imaginary parts (..., K), bin after bin -> frames (..., N)."""
        once = torch.tensor([1.0] + [2.0] * (self.bins - 2) + [1.0])
        scale = once / (self.size * 1.5)  # 0 Hz and half the rate have no mirror image
        parts = real * scale, imaginary * scale
        even, odd = (
            torch.cat([part[..., first::2] for part in parts], dim=-1) @ basis.T
            for first, basis in enumerate(self.bases())
        )
        return torch.cat([even + odd, even - odd], dim=-1) * self.get_buffer("hann")


class ConvNeXt(nn.Module):
    """Depthwise convolution over time, LayerNorm and a two-layer network, on (B, T, C)."""

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


def overlap_add(frames: Tensor, hop: int) -> Tensor:
    """Windowed frames (B, T, 4 * hop), centred at hop * (t + 1/2) -> (B, T * hop)."""
    hops = frames.reshape(frames.shape[0], frames.shape[1], OVERLAP, hop)
    pad = functional.pad(hops[:, :, 0], (0, 0, 0, OVERLAP - 1))
    for i in range(1, OVERLAP):
        pad = pad + functional.pad(hops[:, :, i], (0, 0, i, OVERLAP - 1 - i))
    margin = (OVERLAP - 1) * hop // 2
    audio = pad.flatten(1)
    return audio[:, margin : audio.shape[1] - margin]


def nearest(x: Tensor, table: Tensor) -> Tensor:
    """Index of the closest row of table (K, D) for each x (B, T, D)."""
    return ((table * table).sum(dim=1) - 2 * (x @ table.T)).argmin(dim=2)


def residual_codes(left: Tensor, tables: Tensor) -> list[Tensor]:
    """x (B, T, D) in tables (K, 1024, D), each quantising what the ones before left: K times (B, T)."""
    codes = []
    for table in tables.unbind(0):
        codes.append(nearest(left, table))
        left = left - functional.embedding(codes[-1], table)
    return codes


def embedded(codes: Tensor, tables: Tensor) -> Tensor:
    """codes (B, T, K) -> the sum of their vectors (B, T, D). tables: (K, 1024, D)."""
    total = functional.embedding(codes[:, :, 0], tables[0])
    for book in range(1, codes.shape[2]):
        total = total + functional.embedding(codes[:, :, book], tables[book])
    return total


def inverse_stft(magnitude: Tensor, phase: Tensor, fourier: InverseFourier, hop: int) -> Tensor:
    """Magnitude and phase (B, T, bins) -> audio (B, T * hop)."""
    return overlap_add(fourier(magnitude * phase.cos(), magnitude * phase.sin()), hop)


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
        """Latents (B, T, latent) of codebook 0 and of the others -> codes (B, T, 8)."""
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
        """codes (B, T, 8) -> the sum of their vectors (B, T, latent)."""
        return embedded(codes, self.tables)

    def synthesise(self, latent: Tensor) -> Tensor:
        """latent (B, T, latent) -> audio (B, T * hop)."""
        return self.waves(self.trunk(latent))

    def waves(self, out: Tensor) -> Tensor:
        """Log magnitude and phase (B, T, 2 * bins) -> audio (B, T * hop)."""
        magnitude = out[..., : self.bins].clamp(max=7.0).exp()
        return inverse_stft(magnitude, out[..., self.bins :], self.fourier, self.hop)
