"""Fills the empty band of a narrow recording, as of a telephone, for a codec that has learnt the full band.

The model has learnt codes of full-band speech. With nothing above 4 or 8 kHz the codes are others, words are
lost and speech does not end. The speech below the edge is mirrored to above it, and noise as loud as the
speech of the moment covers what the mirror leaves empty.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
EDGE = 0.94
"""Where the filled band begins, as a share of the measured bandwidth: a filter falls before its end."""
NOISE_DB = -32.0
"""The level of the noise, in dB of the speech around it."""
SMOOTH_SECONDS = 0.02
SEED = 0


def widened(sound: Floats, rate: int, bandwidth: float) -> Floats:
    """The sound (N,) with its band above `bandwidth` Hz filled. It is the same for every call."""
    spectrum = np.fft.rfft(sound)
    edge = int(EDGE * bandwidth * len(sound) / rate)
    empty = len(spectrum) - edge
    mirror = spectrum[max(edge // 2, edge - empty) : edge][::-1]  # the lower half has the loud fundamentals
    spectrum[edge : edge + len(mirror)] += mirror
    steps = np.ones(int(SMOOTH_SECONDS * rate)) / int(SMOOTH_SECONDS * rate)
    loudness = np.sqrt(np.convolve(sound**2, steps, "same"))
    noise = np.random.default_rng(SEED).normal(0, 10 ** (NOISE_DB / 20), len(sound)) * loudness
    added = np.fft.rfft(noise)
    added[:edge] = 0
    return np.asarray(np.fft.irfft(spectrum + added, len(sound)))
