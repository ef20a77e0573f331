"""Measure speech at other speeds: `python -m demo.studies.speed --bundle DIR`.

It prints for each speed: the length times the speed, against the length at speed 1; the median pitch (pyin)
against that at speed 1; the words that whisper gets wrong; the milliseconds of processor time that a second
of the model's speech takes. The bundle's default voice speaks the sentences.
"""

from __future__ import annotations

import argparse
import time
from importlib import import_module
from pathlib import Path

import numpy as np

from valle2.benchmarks.quality.judges import Judges
from valle2.benchmarks.quality.word_errors import word_error_rate, words
from valle2.benchmarks.report.tables import markdown
from valle2.runtime import Valle2
from valle2.runtime.audio.stretch import TimeStretcher
from valle2.runtime.types import Audio

SPEEDS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0)
PIECE = 9600


def stretched(audio: Audio, speed: float, rate: int) -> tuple[Audio, float]:
    """The audio at a speed, made in pieces as a stream makes it, and the seconds that this took."""
    if speed == 1.0:
        return audio, 0.0
    stretcher = TimeStretcher(speed, rate)
    began = time.process_time()
    starts = range(0, len(audio), PIECE)
    made = [stretcher.add(audio[at : at + PIECE], last=at + PIECE >= len(audio)) for at in starts]
    return np.concatenate(made), time.process_time() - began


def pitch(audio: Audio, rate: int) -> float:
    """Median pitch of the voiced frames in Hz."""
    return float(np.nanmedian(import_module("librosa").pyin(audio, fmin=60, fmax=400, sr=rate)[0]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", default="demo")
    parser.add_argument("--sentences", type=Path, default=Path("demo/sentences_test.txt"))
    parser.add_argument("--count", type=int, default=8)
    args = parser.parse_args()
    tts, judges = Valle2.load(args.bundle), Judges()
    texts = args.sentences.read_text(encoding="utf-8").splitlines()[: args.count]
    voice, rate = tts.voice(tts.default_voice()), tts.sample_rate
    sounds = [tts.synthesize(text, voice).audio for text in texts]
    usual, seconds = [pitch(sound, rate) for sound in sounds], sum(map(len, sounds)) / rate
    rows = list[list[object]]()
    for speed in SPEEDS:
        made, took = zip(*(stretched(sound, speed, rate) for sound in sounds), strict=True)
        heard = [words(judges.transcribe(one, rate)) for one in made]
        wrong = word_error_rate([words(text) for text in texts], heard)
        length = sum(map(len, made)) * speed / sum(map(len, sounds))
        pitches = np.median([pitch(one, rate) / hertz for one, hertz in zip(made, usual, strict=True)])
        cost = f"{1000 * sum(took) / seconds:.1f}"
        rows.append([speed, f"{length:.3f}", f"{pitches:.3f}", f"{wrong:.1f} %", cost])
    print(markdown(["speed", "length", "pitch", "words wrong", "ms a second"], rows))


if __name__ == "__main__":
    main()
