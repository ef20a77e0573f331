"""Lowers the noise under a noisy recording: Wiener's filter with a priori ratios that follow the speech.

The ratio of speech to noise in each band is estimated by the decision-directed rule of Ephraim and Malah
(1984). The noise is what the quietest frames have. It must not change while the recording lasts.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
FRAME_SECONDS = 0.021
OVERLAP = 4
QUIETEST = 0.1
"""Share of the frames that are noise alone."""
KEPT_RATIO = 0.97
"""Weight of the frame before in a ratio of speech to noise."""
LEAST_GAIN = 0.1
"""Noise is lowered by 20 dB at most. What is left hides what the filter does to the speech."""
TINY = 1e-30


def denoised(sound: Floats, rate: int) -> Floats:
    """The sound (N,) with its steady noise lowered; its length and timing stay. rate: in Hz."""
    step = round(FRAME_SECONDS * rate / OVERLAP)
    size = step * OVERLAP
    window = np.sqrt(np.hanning(size + 1)[:-1])
    padded = np.pad(sound, (size, size + -len(sound) % step))
    spectra = np.fft.rfft(np.lib.stride_tricks.sliding_window_view(padded, size)[::step] * window)
    spectra *= gains(np.abs(spectra) ** 2)
    pieces = np.fft.irfft(spectra, size) * window
    out = np.zeros(len(padded))
    for number, piece in enumerate(pieces):
        out[number * step : number * step + size] += piece
    return out[size : size + len(sound)] / (OVERLAP / 2)


def gains(powers: Floats) -> Floats:
    """Wiener's gain of each frame and band. powers: (T, F)."""
    energies = powers.sum(axis=1)
    heard = energies > 0
    if not heard.any():
        return np.ones_like(powers)
    noise = powers[heard & (energies <= np.quantile(energies[heard], QUIETEST))].mean(axis=0) + TINY
    found, before = np.empty_like(powers), np.zeros(powers.shape[1])
    for number, ratios in enumerate(powers / noise):
        prior = KEPT_RATIO * before + (1 - KEPT_RATIO) * np.maximum(ratios - 1, 0)
        gain = prior / (1 + prior)
        before = gain**2 * ratios
        found[number] = np.maximum(gain, LEAST_GAIN)
    return found
