"""Where do words and voice get lost: `python -m demo.studies.ceilings --work W [--bundle B]`.

Judges held-out utterances of each source in four forms: as they are, after the codec, from their true
codebook 0 with the NAR's codebooks 1 to 7, and spoken by the whole model. The prompt is the voice's next
held-out utterance.

With `--sentences FILE` the teachers speak the lines of FILE in `--voices`, in turn. The prompt is the voice
of that name in the bundle or, for a voice for tests, its recording in demo/unseen. `--hard FILE` takes lines
`category<TAB>text` and gives the word errors of each category.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from demo.speech.shards import Utterance, read_shard
from demo.speech.speak import (
    PITCHES,
    SOURCES,
    UNSEEN,
    hibari_speaker,
    kokoro_speaker,
    styles_folder,
    trim,
    vocabulary,
)
from demo.training.refine import pairs, refined
from valle2.benchmarks.quality.judges import Judges
from valle2.benchmarks.quality.sentences import read_categories, read_sentences
from valle2.benchmarks.quality.speakers import speaker
from valle2.benchmarks.quality.word_errors import word_error_rate, words
from valle2.benchmarks.report.tables import markdown
from valle2.runtime import Prompt, Request, Valle2

Array = np.ndarray[Any, Any]
RECORDINGS = Path("demo/unseen")
COLUMNS = ("similarity to the source", "similarity to the prompt", "own voice %", "DNSMOS")
PLACES = (3, 3, 1, 2)
WAYS = ("source", "codec", "true codebook 0 + NAR", "AR + NAR")
Pair = tuple[Utterance, Prompt]


@dataclass(frozen=True, slots=True)
class Judged:
    """What the judges say of one utterance in one form. figures: in the order of COLUMNS."""

    said: str
    heard: str
    figures: tuple[float, ...]


def four_ways(tts: Valle2, item: Utterance, prompt: Prompt) -> dict[str, Array]:
    """The utterance in the four forms; arrays (N,) float32."""
    codec = tts.need_codec()
    codes = codec.encode(item.wave)
    request = Request(item.text, prompt, tts.settings())
    sounds = (
        item.wave,
        codec.decode(codes),
        codec.decode(refined(tts, request, codes[:, 0])),
        tts.synthesize_batch([request])[0].audio,
    )
    return dict(zip(WAYS, sounds, strict=True))


def held_out(tts: Valle2, work: Path, source: str, count: int) -> list[Pair]:
    """Utterances of a source's first shard, each with another of its voice as the prompt."""
    path, codec = work / "speech" / f"{source}-0000.npz", tts.need_codec()
    items = read_shard(path) if path.exists() else []
    found = [(items[a], items[b]) for a, b in pairs(items)[:count]]
    return [(item, Prompt(codec.encode(said.wave), said.text, said.voice)) for item, said in found]


def spoken(tts: Valle2, lines: Sequence[str], voices: Sequence[str], styles: Path | None) -> list[Pair]:
    """Lines as the teachers speak them, in these voices in turn."""
    g2p, ids_of = import_module("hibari.g2p").G2P(british=False), vocabulary()
    hibari = hibari_speaker()
    kokoro = kokoro_speaker(styles) if styles else hibari
    prompts = {voice: prompt_of(tts, voice) for voice in voices}
    found, nothing = list[Pair](), np.zeros(0, np.int64)
    for index, text in enumerate(lines):
        voice = voices[index % len(voices)]
        ids = [0, *(ids_of[symbol] for symbol in g2p(text) if symbol in ids_of), 0]
        speak = hibari if voice in PITCHES else kokoro
        sound, _, _ = trim(*speak(ids, voice, index), ids)
        found.append((Utterance(voice, text, nothing, nothing, sound), prompts[voice]))
    return found


def prompt_of(tts: Valle2, voice: str) -> Prompt:
    """The bundle's voice of this name, or the first recording of a voice for tests."""
    if voice in tts.voices():
        return tts.voice(voice)
    recording = RECORDINGS / voice / "1.flac"
    return tts.prompt(
        recording, recording.with_suffix(".txt").read_text(encoding="utf-8").strip(), name=voice
    )


def judge(tts: Valle2, judges: Judges, items: Sequence[Pair]) -> list[dict[str, Judged]]:
    """Each utterance in the four forms; own voice is judged against all voices of model and items."""
    rate = tts.need_codec().sample_rate
    prompts = {name: tts.voice(name) for name in tts.voices()} | {p.name: p for _, p in reversed(items)}
    known = {name: speaker(tts, judges, prompt).voice for name, prompt in prompts.items()}
    found = list[dict[str, Judged]]()
    for item, prompt in items:
        target = speaker(tts, judges, prompt).voice
        others = [voice for name, voice in known.items() if name != prompt.name]
        ways = four_ways(tts, item, prompt)
        source = judges.embed(ways["source"], rate)
        scores = dict[str, Judged]()
        for way, audio in ways.items():
            voice = judges.embed(audio, rate)
            own = all(voice @ target > voice @ other for other in others)
            figures = (float(voice @ source), float(voice @ target), 100.0 * own, judges.mos(audio, rate))
            scores[way] = Judged(words(item.text), words(judges.transcribe(audio, rate)), figures)
        found.append(scores)
    return found


def wrong(found: Sequence[dict[str, Judged]], way: str) -> float:
    """The word error rate of one form, %."""
    return round(word_error_rate([one[way].said for one in found], [one[way].heard for one in found]), 1)


def rows_of(source: str, found: Sequence[dict[str, Judged]]) -> list[list[object]]:
    """A row for each form."""
    rows: list[list[object]] = []
    for way in WAYS if found else ():
        means = np.mean([one[way].figures for one in found], axis=0).tolist()
        figures = (round(mean, places) for mean, places in zip(means, PLACES, strict=True))
        rows.append([source, way, wrong(found, way), *figures])
        print(*rows[-1], flush=True)
    return rows


def by_category(categories: Sequence[str], found: Sequence[dict[str, Judged]]) -> list[list[object]]:
    """The word error rates of all lines, then of each category."""
    rows: list[list[object]] = [["all", *(wrong(found, way) for way in WAYS)]]
    for category in dict.fromkeys(categories):
        chosen = [one for one, its in zip(found, categories, strict=True) if its == category]
        rows.append([category, *(wrong(chosen, way) for way in WAYS)])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("demo/work"))
    parser.add_argument("--bundle", default="demo")
    parser.add_argument("--count", type=int, default=40, help="utterances of a source, or lines of a file")
    parser.add_argument(
        "--sources", nargs="+", default=list(SOURCES), choices=list(SOURCES), help="whose first shards"
    )
    lines = parser.add_mutually_exclusive_group()
    lines.add_argument("--sentences", type=Path, help="a file of lines for the teachers to speak")
    lines.add_argument("--hard", type=Path, help="a file of lines category<TAB>text for them to speak")
    parser.add_argument(
        "--voices", nargs="+", default=["amber"], help="who speaks the lines of a file, in turn"
    )
    parser.add_argument(
        "--styles", type=styles_folder, help="folder voices/ of kokoro-js (not for hibari's voices)"
    )
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    if args.styles is None and any(voice not in PITCHES for voice in args.voices):
        parser.error(f"--voices {' '.join(args.voices)} needs --styles; without it: {', '.join(PITCHES)}")
    tts, judges = Valle2.load(args.bundle, threads=args.threads), Judges()
    known = {*tts.voices(), *UNSEEN}
    if not known.issuperset(args.voices):
        parser.error(f"--voices {' '.join(args.voices)}: expected some of {', '.join(sorted(known))}")
    if args.hard:
        listed = read_categories(args.hard, args.count)
        found = judge(tts, judges, spoken(tts, [text for _, text in listed], args.voices, args.styles))
        rows = by_category([category for category, _ in listed], found)
        print(markdown(["words wrong, %", *WAYS], rows))
        return
    if args.sentences:
        texts = read_sentences(args.sentences, args.count)
        sources = {args.sentences.stem: spoken(tts, texts, args.voices, args.styles)}
    else:
        sources = {source: held_out(tts, args.work, source, args.count) for source in args.sources}
    rows = [row for source, items in sources.items() for row in rows_of(source, judge(tts, judges, items))]
    print(markdown(["source", "signal", "WER %", *COLUMNS], rows))


if __name__ == "__main__":
    main()
