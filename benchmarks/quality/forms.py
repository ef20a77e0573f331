"""Recordings as people send them, made of a clean one: silence, noise, level, channels, rate."""

from __future__ import annotations

import struct
from collections.abc import Callable
from io import BytesIO

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

Floats = NDArray[np.float64]
RATE = 24000


def wav(sound: Floats, rate: int = RATE, subtype: str = "PCM_16") -> bytes:
    memory = BytesIO()
    soundfile.write(memory, sound, rate, subtype=subtype, format="WAV")
    return memory.getvalue()


def padded(sound: Floats, level: float) -> Floats:
    """Two seconds of noise at both ends, and the noise under the speech too."""
    silence = np.zeros(2 * RATE)
    whole = np.concatenate([silence, sound, silence])
    return np.asarray(whole + np.random.default_rng(0).normal(0, level, len(whole)))


def noisy(sound: Floats, ratio: float, seed: int = 0) -> Floats:
    """With noise so many dB below the speech, whose power falls with the frequency."""
    spectrum = np.fft.rfft(np.random.default_rng(seed).normal(size=len(sound)))
    noise = np.fft.irfft(spectrum / np.sqrt(np.maximum(np.arange(len(spectrum)), 1)), len(sound))
    return np.asarray(sound + noise * sound.std() / noise.std() * 10 ** (-ratio / 20))


def without_length(content: bytes) -> bytes:
    changed = bytearray(content)
    struct.pack_into("<I", changed, 4, 0)
    struct.pack_into("<I", changed, content.index(b"data") + 4, 0)
    return bytes(changed)


FORMS: dict[str, Callable[[Floats], bytes]] = {
    "clean": wav,
    "silence at both ends": lambda x: wav(padded(x, 0)),
    "faint noise at both ends": lambda x: wav(padded(x, 10 ** (-60 / 20))),
    "audible noise at both ends": lambda x: wav(padded(x, 10 ** (-45 / 20))),
    "noise 10 dB below": lambda x: wav(0.7 * noisy(x, 10)),
    "-34 dB": lambda x: wav(x * 10 ** (-34 / 20)),
    "-50 dB": lambda x: wav(x * 10 ** (-50 / 20), subtype="FLOAT"),
    "16 bits as floats": lambda x: wav(x * 32768, subtype="FLOAT"),
    "inverted stereo": lambda x: wav(np.stack([x, -x], axis=1)),
    "nearly inverted stereo": lambda x: wav(np.stack([x, -0.9 * x], axis=1)),
    "stream without length": lambda x: without_length(wav(x)),
    "16 kHz": lambda x: wav(soxr.resample(x, RATE, 16000), 16000),
    "8 kHz, u-law": lambda x: wav(soxr.resample(x, RATE, 8000), 8000, "ULAW"),
}
"""Kinds of recordings, made of a clean one at 24 kHz."""
