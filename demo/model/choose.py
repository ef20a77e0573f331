"""Choose each voice's prompt: `python -m demo.model.choose BUNDLE --out prompts.json`.

BUNDLE holds several prompts a voice (`amber0`, `amber1`, ...). Each prompt speaks the same sentences, which
are not those of the test set. The best three of a voice speak more sentences. The chosen prompt has the
lowest sum of two percentages: wrong words, and utterances nearer to another voice's prompt. A voice whose
best prompt has more than `--worst` percent of wrong words is left out.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from demo.speech.sentences import sentences
from valle2.benchmarks.quality.evaluate import evaluate
from valle2.benchmarks.quality.judges import Judges
from valle2.benchmarks.quality.scores import summarise
from valle2.benchmarks.quality.speakers import Speaker, own_speakers
from valle2.runtime import Valle2

SEED = 77
FINALISTS = 3
SAMPLED = 0
Wrong = tuple[float, float]


def tried(tts: Valle2, judges: Judges, own: Speaker, others: list[Speaker], texts: list[str]) -> Wrong:
    """Percent of wrong words, and of utterances nearer to another voice, for one prompt."""
    scores = evaluate(tts, judges, texts, [own], tts.settings(), [SAMPLED], others=others)
    found = summarise(scores)
    return found["wer"]["value"], 100 * (1 - found["voice"]["value"])


def spoken(count: int) -> list[str]:
    """Sentences of more than four words, out of the first `count`."""
    return [text for text in sentences(count, [], SEED, rare_share=0.0) if len(text.split()) > 4]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=10, help="sentences that every prompt speaks")
    parser.add_argument("--again", type=int, default=30, help="further sentences for a voice's best three")
    parser.add_argument("--worst", type=float, default=20.0)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--only", nargs="+", default=[], metavar="VOICE", help="choose for these alone")
    args = parser.parse_args()
    tts, judges = Valle2.load(args.bundle, threads=args.threads), Judges(2)
    first, texts = spoken(args.count), spoken(args.count + args.again)
    voices: dict[str, dict[int, Speaker]] = {}
    for one in own_speakers(tts, judges):
        voices.setdefault(one.prompt.name[:-1], {})[int(one.prompt.name[-1])] = one
    kept: dict[str, int] = {}
    for voice, own in voices.items():
        if args.only and voice not in args.only:
            continue
        others = [one for name, ranks in voices.items() if name != voice for one in ranks.values()]
        found = {rank: tried(tts, judges, one, others, first) for rank, one in own.items()}
        finalists = sorted(found, key=lambda rank: sum(found[rank]))[:FINALISTS]
        last = {rank: tried(tts, judges, own[rank], others, texts) for rank in finalists}
        best = min(last, key=lambda rank: sum(last[rank]))
        print(voice, found, last, flush=True)
        if last[best][0] <= args.worst:
            kept[voice] = best
    args.out.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
