"""Makes a prompt of a recording: one channel, no offset, no silence at its ends, the level that models know.

    recording -> one channel -> no offset -> model's rate -> ends cut -> empty band filled -> level -> checks

Every threshold is relative to the recording's own speech, so the gain of a recording changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import soxr
from numpy.typing import NDArray

from valle2.runtime.audio.checks import bandwidth, check_sound, is_narrow
from valle2.runtime.audio.io import Recording
from valle2.runtime.audio.levels import FRAME_SECONDS, frame_levels, high_passed, speech_level, speech_span
from valle2.runtime.audio.widen import widened
from valle2.runtime.errors import PromptError

Audio = NDArray[np.float32]
Floats = NDArray[np.float64]
SILENCE = 1e-4
"""A recording whose samples are all smaller is silent: three steps of 16 bits."""
LOST_DB = 6.0
"""Where the mean of two channels is weaker than the louder one by more, their phases are inverted."""
LOW_CUT = (20.0, 50.0)
"""Hz below which nothing is kept and above which everything is. Voices begin at about 60 Hz."""
KEPT_SECONDS = 0.1
"""What is kept before and after the speech."""
LEVEL = 0.1
"""Root mean square of speech that the models know: that of the voices in their training data."""
SPEECH_DB = 20.0
"""Frames within so many dB of the level of the speech count for LEVEL."""
FADE_SECONDS = 0.005


@dataclass(frozen=True, slots=True)
class Prepared:
    """A prompt's sound.

    Args:
        audio: (N,) float32 at the model's rate. speech_seconds: of it, without the margins.
        warnings: what makes it a poor prompt.
    """

    audio: Audio = field(repr=False)
    speech_seconds: float
    warnings: tuple[str, ...] = ()


def prepare(
    recording: Recording, rate: int, min_seconds: float, max_seconds: float, *, wide: bool = False
) -> Prepared:
    """Make a prompt of a recording.

    Args:
        rate: the model's, in Hz. min_seconds, max_seconds: the length of the speech that is accepted.
        wide: the model's own voices have the full band, so the empty band of a narrow recording is filled.

    Raises:
        PromptError: silent, or with too little or too much speech.
    """
    name = recording.name
    if np.abs(recording.samples).max(initial=0.0) < SILENCE:
        raise PromptError(f"{name} is silent; expected a recording of speech")
    one = high_passed(one_channel(recording.samples), recording.rate, LOW_CUT)
    sound = one if recording.rate == rate else soxr.resample(one, recording.rate, rate)
    levels = frame_levels(sound, rate)
    start, end = speech_span(levels)
    size, margin = int(FRAME_SECONDS * rate), int(KEPT_SECONDS * rate)
    kept = sound[max(0, start * size - margin) : end * size + margin]
    speech = (end - start) * FRAME_SECONDS
    check_length(name, len(kept) / rate, min_seconds, max_seconds)
    audio = leveled(kept, rate)
    top = bandwidth(audio, rate)
    if wide and is_narrow(top, rate):
        audio = leveled(widened(kept, rate, top), rate)
    return Prepared(audio, speech, check_sound(recording, levels, (start, end), rate, top))


def one_channel(samples: NDArray[np.float32]) -> Floats:
    """(N, C) -> (N,): the mean of the channels, or the loudest where they cancel each other."""
    channels = samples.astype(np.float64)
    channels -= channels.mean(axis=0)
    mean = channels.mean(axis=1)
    powers = (channels**2).sum(axis=0)
    loudest = int(powers.argmax())
    lost = (mean**2).sum() < powers[loudest] * 10 ** (-LOST_DB / 10)
    # of a silent channel the other is taken, which the mean would halve; the level is set later
    return np.ascontiguousarray(channels[:, loudest]) if lost else mean


def check_length(name: str, seconds: float, min_seconds: float, max_seconds: float) -> None:
    """Refuse too little or too much speech."""
    if min_seconds <= seconds <= max_seconds:
        return
    remedy = "cut it to" if seconds > max_seconds else "record"
    raise PromptError(
        f"the speech in {name} lasts {seconds:.2f} s; expected {min_seconds:g} to {max_seconds:g} s: "
        f"{remedy} one or two sentences"
    )


def leveled(sound: Floats, rate: int) -> Audio:
    """The sound with speech at LEVEL and short ramps at its ends, as float32.

    A click beyond full scale is clipped: it tells nothing about the level of the speech.
    """
    size = int(FRAME_SECONDS * rate)
    frames = sound[: len(sound) // size * size].reshape(-1, size)
    powers = (frames**2).mean(axis=1)
    loud = 10 ** (speech_level(10 * np.log10(powers + 1e-20)) / 10)
    power = np.minimum(powers, 10 * loud)[powers > loud * 10 ** (-SPEECH_DB / 10)].mean()
    audio = np.clip(sound * (LEVEL / np.sqrt(power)), -1, 1)
    ramp = np.linspace(0, 1, int(FADE_SECONDS * rate))
    audio[: len(ramp)] *= ramp
    audio[len(audio) - len(ramp) :] *= ramp[::-1]
    return np.asarray(audio, np.float32)
