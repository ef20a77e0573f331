"""What whisper hears when the demo speaks with a prompt as people send it. It needs the extra `eval`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile

from valle2.benchmarks.quality.forms import Floats
from valle2.benchmarks.quality.judges import Judges
from valle2.benchmarks.quality.word_errors import word_scores
from valle2.runtime import Settings, Valle2

SENTENCE = "Please bring a clean towel and two small plates to the kitchen."
MOST_ERRORS = 0.1
UNSEEN = Path(__file__).resolve().parents[1] / "demo" / "unseen"


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
