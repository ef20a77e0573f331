"""Tells whether a part of a recording sounds like another speaker than the rest, without a network.

A voice is the shape of its spectrum: mel-frequency cepstral coefficients (Davis and Mermelstein, 1980). For
each stretch of the speech, Hotelling's two-sample T-squared statistic compares the mean coefficients of its
frames with those of all others.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from valle2.runtime.audio.levels import speech_level

Floats = NDArray[np.float64]
FRAME_SECONDS, STEP_SECONDS = 0.03, 0.01
LOWEST_HZ, HIGHEST_HZ = 100.0, 7000.0
BANDS, COEFFICIENTS = 30, 20
LOUD_DB = 12.0
"""Frames so far below the level of the speech tell little about the voice."""
SHORTEST = 100
"""Loud frames that a stretch, and the rest, have at least: about two seconds of speech."""
EVERY = 10
"""Loud frames between two places where a stretch may begin."""
LEAST_VARIANCE = 1e-2
"""Share of the mean variance that each coefficient has at least."""
TINY = 1e-20
OTHER_SPEAKER = 9.0
"""T-squared, divided by the loud frames of a second, from which on a stretch is told
(demo/studies/two_speakers.py: what other limits find)."""


def other_speaker(sound: Floats, rate: int, top: float) -> tuple[float, float] | None:
    """Start and end in seconds of a stretch that sounds like another speaker; None if there is none.

    Args:
        sound: (N,). rate: in Hz. top: the bandwidth of the sound, in Hz.
    """
    score, span = most_different(sound, rate, top)
    return span if score > OTHER_SPEAKER else None


def most_different(sound: Floats, rate: int, top: float) -> tuple[float, tuple[float, float]]:
    """The stretch that differs most from the rest.

    Returns:
        T-squared, divided by the loud frames of a second, and the stretch's start and end in seconds. All 0
        for a sound that is too short for two voices.
    """
    coefficients, times = cepstra(sound, rate, min(top, HIGHEST_HZ))
    count = len(coefficients)
    if count < 2 * SHORTEST:
        return 0.0, (0.0, 0.0)
    centred = coefficients - coefficients.mean(axis=0)
    covariance = centred.T @ centred / count
    covariance += LEAST_VARIANCE * (np.trace(covariance) / COEFFICIENTS + TINY) * np.eye(COEFFICIENTS)
    white = np.linalg.solve(np.linalg.cholesky(covariance), centred.T).T
    sums = np.concatenate([np.zeros((1, COEFFICIENTS)), white.cumsum(axis=0)])[::EVERY]
    starts, ends = np.triu_indices(len(sums), SHORTEST // EVERY)
    inside = (ends - starts) * EVERY
    kept = count - inside >= SHORTEST
    starts, ends, inside = starts[kept], ends[kept], inside[kept]
    apart = ((sums[ends] - sums[starts]) ** 2).sum(axis=1)
    shares = apart / (inside * (count - inside))  # of the variance, that the two means explain
    best = int(shares.argmax())
    first, last = starts[best] * EVERY, ends[best] * EVERY - 1
    score = count * STEP_SECONDS * shares[best] / (1 - shares[best])
    return float(score), (float(times[first]), float(times[last]) + FRAME_SECONDS)


def cepstra(sound: Floats, rate: int, top: float) -> tuple[Floats, Floats]:
    """Mel-frequency cepstral coefficients of the loud frames, (T, COEFFICIENTS), and their times in s."""
    size, step = int(FRAME_SECONDS * rate), int(STEP_SECONDS * rate)
    frames = np.lib.stride_tricks.sliding_window_view(sound, size)[::step]
    powers = np.abs(np.fft.rfft(frames * np.hanning(size))) ** 2
    levels = 10 * np.log10(powers.sum(axis=1) + TINY)
    loud = np.flatnonzero(levels > speech_level(levels, STEP_SECONDS) - LOUD_DB)
    bands = np.log(powers[loud] @ mel_filters(size, rate, top) + TINY)
    orders = np.arange(1, COEFFICIENTS + 1)
    cosines = np.cos(np.pi / BANDS * np.outer(np.arange(BANDS) + 0.5, orders))
    return np.asarray(bands @ cosines), np.asarray(loud * STEP_SECONDS, np.float64)


def mel_filters(size: int, rate: int, top: float) -> Floats:
    """Triangles on the mel scale up to `top` Hz, for spectra of `size` samples: (size // 2 + 1, BANDS)."""
    low, high = (2595 * np.log10(1 + hertz / 700) for hertz in (LOWEST_HZ, top))
    edges = 700 * (10 ** (np.linspace(low, high, BANDS + 2) / 2595) - 1)
    hertz = np.arange(size // 2 + 1)[:, None] * rate / size
    rising = (hertz - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - hertz) / (edges[2:] - edges[1:-1])
    return np.asarray(np.clip(np.minimum(rising, falling), 0, None))
