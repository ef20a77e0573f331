"""Choose each voice's prompt: `python demo/choose.py BUNDLE --out prompts.json`.

BUNDLE holds several prompts a voice (`amber0`, `amber1`, ...). Each speaks the same sentences, made for this
and not those of the test; the prompt with the fewest wrong words is chosen. A voice above `--worst` percent
is left out.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from sentences import sentences

from valle2.benchmarks.alignment import word_error_rate
from valle2.benchmarks.judges import Judges, words
from valle2.runtime import Request, Valle2

SEED = 77


def wer(tts: Valle2, judges: Judges, name: str, texts: list[str]) -> float:
    """WER in percent of one prompt."""
    speeches = tts.synthesize_batch([Request(text, tts.voice(name), tts.settings()) for text in texts])
    audios = [speech.audio for speech in speeches]
    heard = judges.transcribe_all(audios, tts.need_codec().sample_rate)
    return word_error_rate([words(text) for text in texts], [words(text) for text in heard])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--worst", type=float, default=20.0)
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    tts, judges = Valle2.load(args.bundle, threads=args.threads), Judges(2)
    texts = [text for text in sentences(args.count, [], SEED, rare_share=0.0) if len(text.split()) > 4]
    found: dict[str, dict[int, float]] = {}
    for name in tts.voices():
        found.setdefault(name[:-1], {})[int(name[-1])] = wer(tts, judges, name, texts)
    best = {voice: min(ranks, key=lambda rank: ranks[rank]) for voice, ranks in found.items()}
    for voice, ranks in found.items():
        print(voice, {rank: round(value, 1) for rank, value in ranks.items()}, flush=True)
    kept = {voice: rank for voice, rank in best.items() if found[voice][rank] <= args.worst}
    args.out.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
