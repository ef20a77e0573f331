"""Prompts as people send them, and what whisper hears when the demo speaks with them.

`forms` makes the kinds of recordings from one clean recording. `word_errors` needs the extra `eval`.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from valle2.benchmarks.quality.judges import Judges
from valle2.benchmarks.quality.word_errors import word_scores
from valle2.runtime import Settings, Valle2

Floats = NDArray[np.float64]
RATE = 24000
SENTENCE = "Please bring a clean towel and two small plates to the kitchen."
MOST_ERRORS = 0.1
UNSEEN = Path(__file__).resolve().parents[1] / "demo" / "unseen"


def wav(sound: Floats, rate: int = RATE, subtype: str = "PCM_16") -> bytes:
    memory = BytesIO()
    soundfile.write(memory, sound, rate, subtype=subtype, format="WAV")
    return memory.getvalue()


def padded(sound: Floats, level: float) -> Floats:
    """Two seconds of noise at both ends, and the noise under the speech too."""
    silence = np.zeros(2 * RATE)
    whole = np.concatenate([silence, sound, silence])
    return np.asarray(whole + np.random.default_rng(0).normal(0, level, len(whole)))


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


def recording(voice: str, number: int = 1) -> tuple[Floats, str]:
    """A held-out voice's recording (N,) at 24 kHz and the words in it."""
    sound, _ = soundfile.read(UNSEEN / voice / f"{number}.flac")
    return np.asarray(sound), (UNSEEN / voice / f"{number}.txt").read_text(encoding="utf-8").strip()


def word_errors(
    tts: Valle2, judges: Judges, prompt: bytes | Path, transcript: str, text: str = SENTENCE, seed: int = 0
) -> tuple[float, str]:
    """The share of wrong words in what whisper hears, and that."""
    settings = Settings(**{**tts.manifest.sampling, "seed": seed})  # type: ignore[arg-type]
    speech = tts.synthesize(text, tts.prompt(prompt, transcript), settings)
    heard = judges.transcribe(speech.audio, speech.sample_rate)
    scores = word_scores(text, heard)
    return scores["errors"] / scores["words"], heard
