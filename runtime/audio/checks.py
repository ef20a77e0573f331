"""Says what makes a recording a poor prompt: noise, clipping, pauses, two speakers, a wrong transcript."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from valle2.runtime.audio.io import Recording
from valle2.runtime.audio.levels import noise_level, silence_level, speech_level
from valle2.runtime.audio.speakers import other_speaker

Audio = NDArray[np.float32]
Floats = NDArray[np.float64]
FFT = 512
BAND_HZ = 500
EMPTY_DB = 52.0
"""A band so far below the strongest one is empty."""
NARROW_HZ = 9000
"""Speech with nothing above it is of another kind than the models were trained on."""
NARROW_SHARE = 0.75
"""The same, as a share of what a model of a low rate can hold."""
LOW_SNR_DB = 20.0
STATIONARY_DB = 6.0
"""Speech rises and falls by more, whatever the noise."""
CLIPPED_SHARE, CLIPPED_RUN = 5e-4, 3
"""Share of samples in runs of so many at the peak."""
SPEECH_SHARE = 0.5
"""Less sound than this share between the first and the last word is mostly silence."""
MOST_LETTERS, LEAST_LETTERS = 28.0, 4.0
"""Letters in a second of speech. People read 10 to 20; a name spelt out has fewer."""
WIDE = "\u2e80"
"""From here on a character is a syllable, as in Chinese, and counts as three letters."""


def check_sound(
    recording: Recording, sound: Floats, levels: Floats, span: tuple[int, int], rate: int, top: float
) -> tuple[str, ...]:
    """What a user should know about the sound, one sentence each.

    Args:
        sound: (N,), one channel at `rate`. levels: of its frames in dB. span: the frames of the speech.
        rate: of the model, in Hz. top: the bandwidth, in Hz.
    """
    name, found = recording.name, list[str]()
    ratio = signal_to_noise(levels)
    inside = levels[span[0] : span[1]]
    if ratio < STATIONARY_DB:
        found.append(f"no speech was found in {name}: its level is the same throughout; record one sentence")
    elif is_noisy(levels):
        found.append(
            f"{name} is too quiet or noisy: the speech is {ratio:.0f} dB above the noise; expected "
            f"{LOW_SNR_DB:.0f} dB or more: the noise was lowered; record nearer to the microphone, in quiet"
        )
    if clipped_share(recording.samples) > CLIPPED_SHARE:
        found.append(f"{name} is clipped; record it again at a lower level")
    sounding = float((inside > silence_level(levels)).mean())
    if sounding < SPEECH_SHARE:
        found.append(
            f"{name} is mostly silent: {sounding:.0%} of the time between its first and last word is speech; "
            "record one sentence without long pauses"
        )
    if is_narrow(top, rate):
        found.append(
            f"{name} has no sound above {top / 1000:.1f} kHz, and the model expects {rate / 2000:.0f} kHz: "
            "words may be lost; record at 24 kHz or more, not over the telephone"
        )
    stretch = other_speaker(sound, rate, top)
    if stretch:
        found.append(
            f"{name} sounds like two speakers: from {stretch[0]:.1f} to {stretch[1]:.1f} s the voice, or the "
            "room, is another than in the rest; use a recording of one speaker"
        )
    return tuple(found)


def signal_to_noise(levels: Floats) -> float:
    """dB from the noise to the speech. levels: of the frames in dB."""
    return speech_level(levels) - noise_level(levels)


def is_noisy(levels: Floats) -> bool:
    """Is there speech, with noise that costs words? levels: of the frames in dB."""
    return STATIONARY_DB <= signal_to_noise(levels) < LOW_SNR_DB


def clipped_share(samples: NDArray[np.float32]) -> float:
    """The largest share, over channels and signs, of samples in runs of three or more at the peak."""
    shares = [0.0]
    for channel in samples.T:
        for peak in (channel.max(), channel.min()):
            flat = np.isclose(channel, peak, rtol=1e-3, atol=0) & (peak != 0)
            edges = np.flatnonzero(np.diff(np.concatenate([[0], flat.astype(np.int8), [0]])))
            runs = edges[1::2] - edges[::2]
            shares.append(float(runs[runs >= CLIPPED_RUN].sum()) / len(channel))
    return max(shares)


def is_narrow(top: float, rate: int) -> bool:
    """Is a bandwidth of `top` Hz that of a telephone or of an old recording? rate: of the model, in Hz."""
    return top < min(NARROW_HZ, NARROW_SHARE * rate / 2)


def bandwidth(audio: Audio, rate: int) -> float:
    """Hz up to which the loud frames have sound, in steps of 500 Hz."""
    frames = np.lib.stride_tricks.sliding_window_view(audio, FFT)[:: FFT // 2]
    powers = np.abs(np.fft.rfft(frames * np.hanning(FFT))) ** 2
    energy = powers.sum(axis=1)
    mean = powers[energy > energy.max() * 1e-3].mean(axis=0)
    edges = np.arange(0, rate // 2 + 1, BAND_HZ) * FFT // rate
    bands = np.array([mean[low:high].mean() for low, high in pairwise(edges)])
    heard = np.flatnonzero(bands > bands.max() * 10 ** (-EMPTY_DB / 10))
    return float((heard[-1] + 1) * BAND_HZ)


def check_transcript(name: str, transcript: str, seconds: float) -> tuple[str, ...]:
    """What a user should know about the transcript's length. seconds: of the speech."""
    letters = sum(3 if mark >= WIDE else 1 for mark in transcript if mark.isalnum())
    rate = letters / seconds
    if rate > MOST_LETTERS:
        fault = "longer than can be said in"
    elif rate < LEAST_LETTERS:
        fault = "too short for"
    else:
        return ()
    return (
        f"the transcript of {name} is {fault} its {seconds:.1f} s of speech ({rate:.0f} letters a second); "
        "expected every word of the recording and no other",
    )
