"""Simulate recordings: what a room, a microphone, a telephone and a compressed file make of clean speech.

People's prompts are recordings; the training speech is clean. The codec's encoder learns to hear through
`recorded`. `worn` adds what makes AR and NAR fail on people's prompts: noise, band limits, lossy codecs, hum
and clipping. Both keep the length and the timing, so labels and codes still fit.
"""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import soundfile
import soxr

from demo.speech.speak import RATE
from valle2.runtime.audio.checks import bandwidth, is_narrow
from valle2.runtime.audio.prepare import leveled, without_rumble
from valle2.runtime.audio.widen import widened

Array = np.ndarray[Any, Any]
ECHO_SECONDS, ECHO_DECAY, ECHO_LEVEL = 0.32, (0.1, 0.4), (-25, -8)
"""Echo: length in seconds, time to fall by 60 dB, energy relative to the sound in dB."""
TILT, NOISE_LEVEL, NOISE_TILT = 1.0, (-75, -42), (0, 1)
"""Largest tilt in dB per octave, noise level in dB of full scale, noise tilt (1: power ~ 1/frequency)."""
CURVE_POINTS, CURVE_LEVEL = 8, 4.0
"""A microphone's curve: random levels in dB (standard deviation) at points evenly spaced in octaves."""
SIGNAL_TO_NOISE = (8, 40)
"""dB between the sound's loud part and the noise of a worn recording."""
BANDS = ((80, 3400), (60, 5500), (40, 7800), (40, 10500))
"""Pass bands in Hz of telephones, old radios, and files of 16 and 22 kHz."""
HUM, HUM_LEVEL, HARMONICS = (50.0, 60.0), (-60, -35), 6
"""Mains hum: its frequencies, its level in dB of the sound's peak, and how many harmonics it has."""
CLIP = (0.35, 0.9)
"""Share of the peak at which a worn recording clips."""
LOSSY = (("MP3", "MPEG_LAYER_III"), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("WAV", "ULAW"))
SHARES = {"curve": 0.6, "band": 0.35, "noise": 0.7, "hum": 0.15, "clip": 0.1, "lossy": 0.35}
"""How often each step of `worn` is taken."""


def recorded(sound: Array, rng: np.random.Generator) -> Array:
    """Simulate a recording of the sound (N,) float32: echo, spectral tilt and a noise floor."""
    time, size = np.arange(1, round(ECHO_SECONDS * RATE)) / RATE, len(sound) + round(ECHO_SECONDS * RATE)
    octaves = np.log2(np.fft.rfftfreq(size, 1 / RATE).clip(50) / 1000)
    echo = rng.standard_normal(len(time)) * 10 ** (-3 * time / rng.uniform(*ECHO_DECAY))
    echo *= np.sqrt(10 ** (rng.uniform(*ECHO_LEVEL) / 10) / np.sum(echo**2))
    response = np.fft.rfft([1.0, *echo], size) * 10 ** (rng.uniform(-TILT, TILT) * octaves / 20)
    floor = coloured_noise(size, rng)
    floor *= 10 ** (rng.uniform(*NOISE_LEVEL) / 20)
    return np.asarray(
        (np.fft.irfft(np.fft.rfft(sound, size) * response, size) + floor)[: len(sound)], np.float32
    )


def coloured_noise(size: int, rng: np.random.Generator) -> Array:
    """Noise (N,) of standard deviation 1 whose spectrum falls at random by at most NOISE_TILT."""
    octaves = np.log2(np.fft.rfftfreq(size, 1 / RATE).clip(50) / 1000)
    noise = np.fft.rfft(rng.standard_normal(size)) * 2 ** (-rng.uniform(*NOISE_TILT) * octaves / 2)
    floor = np.fft.irfft(noise, size)
    return np.asarray(floor / floor.std())


def worn(sound: Array, rng: np.random.Generator) -> Array:
    """Simulate a recording as people send it, (N,) float32, and prepare it as the runtime does a prompt.

    The ends stay, so that the labels still fit.
    """
    steps: dict[str, Callable[[Array, np.random.Generator], Array]] = {
        "curve": with_curve,
        "band": with_band,
        "noise": with_noise,
        "hum": with_hum,
        "clip": clipped,
        "lossy": compressed,
    }
    out = recorded(sound, rng)
    for name, step in steps.items():
        if rng.random() < SHARES[name]:
            out = step(out, rng)
    kept = without_rumble(np.asarray(out - out.mean(), np.float64), RATE)
    top = bandwidth(leveled(kept, RATE), RATE)
    return leveled(widened(kept, RATE, top) if is_narrow(top, RATE) else kept, RATE)


def with_curve(sound: Array, rng: np.random.Generator) -> Array:
    """Apply a microphone's random frequency response, without delay."""
    spectrum = np.fft.rfft(sound)
    octaves = np.log2(np.fft.rfftfreq(len(sound), 1 / RATE).clip(50))
    points = np.linspace(octaves[0], octaves[-1], CURVE_POINTS)
    levels = np.interp(octaves, points, rng.normal(0, CURVE_LEVEL, CURVE_POINTS))
    return np.asarray(np.fft.irfft(spectrum * 10 ** (levels / 20), len(sound)))


def with_band(sound: Array, rng: np.random.Generator) -> Array:
    """Remove what lies outside a pass band, as a file of a low rate does; with soft edges."""
    low, high = BANDS[rng.integers(len(BANDS))]
    frequencies = np.fft.rfftfreq(len(sound), 1 / RATE).clip(1)
    below = np.clip(2 * np.log2(frequencies / low) + 1, 0, 1)
    above = np.clip(8 * np.log2(high / frequencies) + 1, 0, 1)
    return np.asarray(np.fft.irfft(np.fft.rfft(sound) * below * above, len(sound)))


def with_noise(sound: Array, rng: np.random.Generator) -> Array:
    """Add noise at a level below the sound's loud part that is in SIGNAL_TO_NOISE."""
    loud = np.sqrt(np.quantile(sound.astype(np.float64) ** 2, 0.9) / 1.6)
    noise = coloured_noise(len(sound), rng) * 10 ** (-rng.uniform(*SIGNAL_TO_NOISE) / 20)
    return np.asarray(sound + noise * loud)


def with_hum(sound: Array, rng: np.random.Generator) -> Array:
    """Add mains hum with a few harmonics."""
    time, base = np.arange(len(sound)) / RATE, HUM[rng.integers(len(HUM))]
    level = float(np.abs(sound).max()) * 10 ** (rng.uniform(*HUM_LEVEL) / 20)
    parts = [
        rng.uniform(0, 1 / number) * np.sin(2 * np.pi * (base * number * time + rng.random()))
        for number in range(1, HARMONICS + 1)
    ]
    return np.asarray(sound + level * np.sum(parts, axis=0))


def clipped(sound: Array, rng: np.random.Generator) -> Array:
    """Clip at a share of the peak."""
    limit = float(np.abs(sound).max()) * rng.uniform(*CLIP)
    return np.asarray(np.clip(sound, -limit, limit))


def compressed(sound: Array, rng: np.random.Generator) -> Array:
    """Write the sound in a lossy format and read it again. Formats of telephones are written at 8 kHz."""
    kind, subtype = LOSSY[rng.integers(len(LOSSY))]
    rate = 8000 if subtype == "ULAW" else RATE
    given = soxr.resample(sound, RATE, rate) if rate != RATE else sound
    peak = max(1e-6, float(np.abs(given).max()))
    memory = BytesIO()
    soundfile.write(memory, given / peak * 0.9, rate, subtype, format=kind)
    memory.seek(0)
    found, rate = soundfile.read(memory, dtype="float32")
    back = soxr.resample(found, rate, RATE) if rate != RATE else found
    return aligned(back * peak / 0.9, sound)


def aligned(sound: Array, reference: Array) -> Array:
    """The sound without the delay of its codec, as long as the reference (N,)."""
    size = 1 << (len(sound) + len(reference)).bit_length()
    spectra = np.fft.rfft(sound, size) * np.conj(np.fft.rfft(reference, size))
    delay = int(np.argmax(np.fft.irfft(spectra, size)))
    moved = sound[delay:] if delay < size // 2 else np.pad(sound, (size - delay, 0))
    out = np.zeros(len(reference))
    out[: min(len(moved), len(out))] = moved[: len(out)]
    return out
