"""Makes a prompt of a recording: one channel, no offset, short silence at its ends, a known level.

    recording -> one channel -> no offset -> model's rate -> ends cut
        -> noise lowered -> empty band filled -> level -> pause

Noise is lowered, and a band filled, only where a recording needs it.

Every threshold is relative to the recording's own speech, so the gain of a recording changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import soxr
from numpy.typing import NDArray

from valle2.runtime.audio.checks import bandwidth, check_sound, is_narrow, is_noisy
from valle2.runtime.audio.denoise import denoised
from valle2.runtime.audio.io import Recording
from valle2.runtime.audio.levels import (
    FRAME_SECONDS,
    frame_levels,
    high_passed,
    silence_level,
    speech_level,
    speech_span,
)
from valle2.runtime.audio.widen import widened
from valle2.runtime.errors import PromptError

Audio = NDArray[np.float32]
Floats = NDArray[np.float64]
SILENCE = 1e-4
"""A recording whose samples are all smaller is silent: three steps of 16 bits."""
LOUDEST = 2.0**32
"""Integers that were written as floating point reach 2**31; squares of much larger samples overflow."""
LOST_DB = 6.0
"""Where the mean of two channels is weaker than the louder one by more, their phases are inverted."""
LOW_CUT = (20.0, 50.0)
"""Hz below which nothing is kept and above which everything is. Voices begin at about 60 Hz."""
RUMBLE_DB = 30.0
"""What is below LOW_CUT is removed if it is no weaker than the whole sound by more than this."""
KEPT_SECONDS = 0.1
"""What is kept before and after the speech where an end is cut."""
LONGEST_START, LONGEST_END = 0.2, 0.6
"""Silence in seconds before and after the speech that stays as it is. The embedded model's training sentences
end with half a second of it, and each change of the sound changes codes."""
SHORTEST_END, PAUSE_SECONDS = 0.1, 0.2
"""Where less silence than SHORTEST_END follows the speech, PAUSE_SECONDS of it are added. A recording that
stops inside a sentence has none. Without a pause a model takes the text's first words for the prompt's."""
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
        PromptError: silent, far too loud, or with too little or too much speech.
    """
    name, peak = recording.name, float(np.abs(recording.samples).max(initial=0.0))
    if peak > LOUDEST:
        raise PromptError(
            f"{name} holds samples up to {peak:.3g}, and 1 is full scale; expected at most {LOUDEST:.3g}: "
            "write it again as 16-bit WAV"
        )
    one = without_rumble(one_channel(recording.samples), recording.rate)
    sound = one if recording.rate == rate else soxr.resample(one, recording.rate, rate)
    # an offset leaves nothing
    if min(peak, np.abs(sound).max(initial=0.0)) < SILENCE:
        raise PromptError(f"{name} is silent; expected a recording of speech")
    levels = frame_levels(sound, rate)
    start, end = speech_span(levels)
    kept = without_ends(sound, levels, (start, end), rate)
    speech = (end - start) * FRAME_SECONDS
    check_length(name, len(kept) / rate, min_seconds, max_seconds)
    audio = leveled(kept, rate)
    top = bandwidth(audio, rate)
    if is_noisy(levels):
        kept = denoised(kept, rate)
        audio = leveled(kept, rate)
    if wide and is_narrow(top, rate):
        audio = leveled(widened(kept, rate, top), rate)
    audio = with_pause(audio, rate)
    return Prepared(audio, speech, check_sound(recording, sound, levels, (start, end), rate, top))


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


def without_rumble(sound: Floats, rate: int) -> Floats:
    """The sound without what is below LOW_CUT, or as it is if that is weak."""
    passed = high_passed(sound, rate, LOW_CUT)
    weak = ((sound - passed) ** 2).sum() < (sound**2).sum() * 10 ** (-RUMBLE_DB / 10)
    return sound if weak else passed


def without_ends(sound: Floats, levels: Floats, span: tuple[int, int], rate: int) -> Floats:
    """The sound with its ends cut to KEPT_SECONDS where they are long or hold a click.

    Args:
        levels: of the frames in dB. span: the first frame of the speech and the one after its last.
    """
    size, margin, (start, end) = int(FRAME_SECONDS * rate), int(KEPT_SECONDS * rate), span
    before, after = levels[:start], levels[end:]
    limit = silence_level(levels)
    long_start = len(before) > LONGEST_START / FRAME_SECONDS or (before > limit).any()
    long_end = len(after) > LONGEST_END / FRAME_SECONDS or (after > limit).any()
    first = max(0, start * size - margin) if long_start else 0
    return sound[first : end * size + margin if long_end else len(sound)]


def with_pause(audio: Audio, rate: int) -> Audio:
    """The sound, with PAUSE_SECONDS of silence after it if its speech stops less than SHORTEST_END before."""
    _, end = speech_span(frame_levels(audio.astype(np.float64), rate))
    if len(audio) - end * int(FRAME_SECONDS * rate) >= SHORTEST_END * rate:
        return audio
    return np.concatenate([audio, np.zeros(int(PAUSE_SECONDS * rate), np.float32)])


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
