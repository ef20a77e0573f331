"""Fourier transforms for export: matrix products, with neither complex numbers nor STFT operators.

Axes: B batch, T frames.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

OVERLAP = 4
"""Hops in a window."""
ROWS = 64
"""Rows of a basis that are gathered at once, to bound memory."""


class Fourier(nn.Module):
    """Windowed real Fourier transform as a matrix product, with the first butterfly of an FFT.

    Half a frame later, the wave of an even bin repeats and the wave of an odd bin changes its sign. Even bins
    therefore need the sum of the frame's two halves, and odd bins their difference: half the products. Axes:
    N samples of a frame, a multiple of 4; K = N / 2 + 1 bins. `order` lists the bins: the even ones, then the
    odd ones. The window is a periodic Hann window.

    Every entry of a basis is one of N cosines. A graph stores only the cosines and gathers the bases when it
    is loaded, since the bases would be as large as the network. Eager modules gather them at the first use.
    The cosines are real numbers even on the `meta` device.
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
        """The bases of the even bins and of the odd bins: (N / 2, 2 * bins) each."""
        whole = self.gathered(self.size // 2) if torch.compiler.is_exporting() else self.remembered()
        odd = 2 * self.parts[0]
        return whole[:, :odd], whole[:, odd:]

    def gathered(self, *span: int) -> Tensor:
        """Rows of the basis (N / 2, 2 * K): for even and odd bins, cosines and then negative sines.

        -sin(x) = cos(x + a quarter turn). span: the rows, as arguments of `range`.
        """
        evens, odds = self.order[: self.parts[0]], self.order[self.parts[0] :]
        bins = torch.cat([evens, evens, odds, odds])
        turned = torch.tensor([turn for part in self.parts for turn in [0] * part + [1] * part])
        index = (torch.arange(*span)[:, None] * bins + turned * (self.size // 4)) % self.size
        return self.get_buffer("cosine")[index]

    @torch.inference_mode(False)
    def remembered(self) -> Tensor:
        """All rows, gathered a few at a time, since their indices take twice their memory."""
        if self.kept is None:
            cosine, rows = self.get_buffer("cosine"), self.size // 2
            whole = cosine.new_empty(rows, 2 * self.bins)
            for first in range(0, rows, ROWS):
                end = min(first + ROWS, rows)
                whole[first:end] = self.gathered(first, end)
            self.kept = whole
        return self.kept


class InverseFourier(Fourier):
    """The inverse transform. It applies the window again and divides by the overlap's gain of 1.5."""

    def forward(self, real: Tensor, imaginary: Tensor) -> Tensor:  # type: ignore[override]
        """Real and imaginary parts (..., K) in the order of frequency -> frames (..., N)."""
        once = torch.tensor([1.0] + [2.0] * (self.bins - 2) + [1.0])
        scale = once / (self.size * 1.5)  # 0 Hz and half the rate have no mirror image
        parts = real * scale, imaginary * scale
        even, odd = (
            torch.cat([part[..., first::2] for part in parts], dim=-1) @ basis.T
            for first, basis in enumerate(self.bases())
        )
        return torch.cat([even + odd, even - odd], dim=-1) * self.get_buffer("hann")


def overlap_add(frames: Tensor, hop: int) -> Tensor:
    """Windowed frames (B, T, 4 * hop), centred at hop * (t + 1/2) -> (B, T * hop)."""
    hops = frames.reshape(frames.shape[0], frames.shape[1], OVERLAP, hop)
    pad = functional.pad(hops[:, :, 0], (0, 0, 0, OVERLAP - 1))
    for i in range(1, OVERLAP):
        pad = pad + functional.pad(hops[:, :, i], (0, 0, i, OVERLAP - 1 - i))
    margin = (OVERLAP - 1) * hop // 2
    audio = pad.flatten(1)
    return audio[:, margin : audio.shape[1] - margin]


def inverse_stft(magnitude: Tensor, phase: Tensor, fourier: InverseFourier, hop: int) -> Tensor:
    """Magnitude and phase (B, T, bins) -> audio (B, T * hop)."""
    return overlap_add(fourier(magnitude * phase.cos(), magnitude * phase.sin()), hop)
