"""Choose each voice's prompt: `python demo/choose.py BUNDLE --out prompts.json`.

BUNDLE holds several prompts a voice (`amber0`, `amber1`, ...). Each speaks the same sentences, made for this
and not those of the test. The prompt is chosen with the least sum of wrong words and of utterances that are
nearer to another voice's prompt, both in percent. A voice above `--worst` percent of wrong words is left out.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from sentences import sentences

from valle2.benchmarks.alignment import word_error_rate
from valle2.benchmarks.judges import Judges, words
from valle2.benchmarks.speakers import Speaker, own_speakers
from valle2.runtime import Request, Valle2

SEED = 77


def tried(
    tts: Valle2, judges: Judges, speakers: list[Speaker], own: Speaker, texts: list[str]
) -> tuple[float, float]:
    """Percent of wrong words and of utterances taken for another voice, of one prompt."""
    speeches = tts.synthesize_batch([Request(text, own.prompt, tts.settings()) for text in texts])
    audios, rate = [speech.audio for speech in speeches], tts.need_codec().sample_rate
    heard = judges.transcribe_all(audios, rate)
    wer = word_error_rate([words(text) for text in texts], [words(text) for text in heard])
    others = np.stack([s.voice for s in speakers if s.prompt.name[:-1] != own.prompt.name[:-1]])
    spoken = [judges.embed(audio, rate) for audio in audios]
    foreign = [float((others @ voice).max() >= own.voice @ voice) for voice in spoken]
    return wer, 100 * sum(foreign) / len(foreign)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--worst", type=float, default=20.0)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--only", nargs="+", default=[], metavar="VOICE", help="choose for these alone")
    args = parser.parse_args()
    tts, judges = Valle2.load(args.bundle, threads=args.threads), Judges(args.threads)
    texts = [text for text in sentences(args.count, [], SEED, rare_share=0.0) if len(text.split()) > 4]
    speakers = own_speakers(tts, judges)
    found: dict[str, dict[int, tuple[float, float]]] = {}
    for one in speakers:
        voice, rank = one.prompt.name[:-1], int(one.prompt.name[-1])
        if not args.only or voice in args.only:
            found.setdefault(voice, {})[rank] = tried(tts, judges, speakers, one, texts)
            print(one.prompt.name, *(f"{value:.1f}" for value in found[voice][rank]), flush=True)
    best = {voice: min(ranks, key=lambda rank: sum(ranks[rank])) for voice, ranks in found.items()}
    kept = {voice: rank for voice, rank in best.items() if found[voice][rank][0] <= args.worst}
    args.out.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
