"""Where the speech of a recording begins and ends, and how loud it and the noise are.

Every threshold is relative to the recording's own speech, so the gain of a recording changes nothing.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
QUIET_CUT = (90.0, 150.0)
"""Hz below which nothing counts and above which everything does, so that hum is no speech."""
FRAME_SECONDS = 0.02
LOUD_SECONDS = 0.3
"""The loudest frames of so many seconds tell the level of the speech. A click is shorter."""
LOUDEST_DB = 40.0
"""A click is no louder than this above the level of the speech."""
TRIM_DB = 35.0
"""Frames so far below the level of the speech are silence."""
NOISE_DB, LEAST_TRIM_DB = 6.0, 12.0
"""Frames within so many dB of the noise are silence too, unless they are this near to the speech."""
NOISE_QUANTILE = 0.1
GAP_SECONDS = 0.25
CLICK_SECONDS = 0.14
"""A sound at an end that is so short, and so far from the rest, is a click or a knock."""


def high_passed(sound: Floats, rate: int, cut: tuple[float, float]) -> Floats:
    """Remove what is below the lower frequency of `cut`, with a smooth edge up to the higher."""
    spectrum = np.fft.rfft(sound)
    low, high = cut
    edge = np.clip((np.arange(len(spectrum)) * rate / len(sound) - low) / (high - low), 0, 1)
    return np.fft.irfft(spectrum * (0.5 - 0.5 * np.cos(np.pi * edge)), len(sound))


def frame_levels(sound: Floats, rate: int) -> Floats:
    """The level of each frame of 20 ms in dB, without hum and rumble."""
    size = int(FRAME_SECONDS * rate)
    heard = high_passed(sound, rate, QUIET_CUT)
    frames = heard[: len(heard) // size * size].reshape(-1, size)
    return np.asarray(10 * np.log10((frames**2).mean(axis=1) + 1e-20))


def speech_level(levels: Floats, seconds: float = FRAME_SECONDS) -> float:
    """The level in dB that the loudest 0.3 s reach, at least 40 dB below the loudest frame.

    seconds: from one frame to the next.
    """
    loud = min(len(levels) // 2, int(LOUD_SECONDS / seconds))
    return max(float(np.sort(levels)[-1 - loud]), float(levels.max()) - LOUDEST_DB)


def noise_level(levels: Floats) -> float:
    """The level in dB of the quietest tenth, digital silence aside."""
    heard = levels[levels > speech_level(levels) - 100]
    return float(np.quantile(heard, NOISE_QUANTILE))


def silence_level(levels: Floats) -> float:
    """The level in dB below which a frame is silence or noise."""
    speech, noise = speech_level(levels), noise_level(levels)
    return min(max(speech - TRIM_DB, noise + NOISE_DB), speech - LEAST_TRIM_DB)


def speech_span(levels: Floats) -> tuple[int, int]:
    """First frame of the speech and the one after its last; clicks and knocks at the ends are left out."""
    loud = np.flatnonzero(levels > silence_level(levels))
    gap, click = GAP_SECONDS / FRAME_SECONDS, CLICK_SECONDS / FRAME_SECONDS
    sounds = np.split(loud, np.flatnonzero(np.diff(loud) > gap) + 1)
    while len(sounds) > 1 and sounds[0][-1] - sounds[0][0] < click:
        sounds = sounds[1:]
    while len(sounds) > 1 and sounds[-1][-1] - sounds[-1][0] < click:
        sounds = sounds[:-1]
    return int(sounds[0][0]), int(sounds[-1][-1]) + 1
