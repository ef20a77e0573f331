"""Choose each voice's prompt: `python demo/choose.py BUNDLE --out prompts.json`.

BUNDLE holds several prompts a voice (`amber0`, `amber1`, ...). Each speaks the same sentences, made for this
and not those of the test. The prompt is chosen with the least sum of wrong words and of utterances that are
nearer to another voice's prompt, both in percent. A voice above `--worst` percent of wrong words is left out.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from sentences import sentences

from valle2.benchmarks.evaluate import evaluate
from valle2.benchmarks.judges import Judges
from valle2.benchmarks.scores import summarise
from valle2.benchmarks.speakers import Speaker, own_speakers
from valle2.runtime import Valle2

SEED = 77
SAMPLED = 0
Wrong = tuple[float, float]


def tried(tts: Valle2, judges: Judges, own: Speaker, others: list[Speaker], texts: list[str]) -> Wrong:
    """Percent of wrong words and of utterances taken for another voice, of one prompt."""
    scores = evaluate(tts, judges, texts, [own], tts.settings(), [SAMPLED], others=others)
    found = summarise(scores)
    return found["wer"]["value"], 100 * (1 - found["voice"]["value"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--worst", type=float, default=20.0)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--only", nargs="+", default=[], metavar="VOICE", help="choose for these alone")
    args = parser.parse_args()
    tts, judges = Valle2.load(args.bundle, threads=args.threads), Judges(2)
    texts = [text for text in sentences(args.count, [], SEED, rare_share=0.0) if len(text.split()) > 4]
    speakers = own_speakers(tts, judges)
    found: dict[str, dict[int, Wrong]] = {}
    for one in speakers:
        voice, rank = one.prompt.name[:-1], int(one.prompt.name[-1])
        if not args.only or voice in args.only:
            others = [speaker for speaker in speakers if speaker.prompt.name[:-1] != voice]
            found.setdefault(voice, {})[rank] = tried(tts, judges, one, others, texts)
            print(one.prompt.name, *(f"{value:.1f}" for value in found[voice][rank]), flush=True)
    best = {voice: min(ranks, key=lambda rank: sum(ranks[rank])) for voice, ranks in found.items()}
    kept = {voice: rank for voice, rank in best.items() if found[voice][rank][0] <= args.worst}
    args.out.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
