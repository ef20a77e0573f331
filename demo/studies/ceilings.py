"""Where do words and voice get lost: `python -m demo.studies.ceilings --work W [--bundle B]`.

Judges held-out utterances of each source in four forms: as they are, after the codec, from their true
codebook 0 with the NAR's codebooks 1 to 7, and spoken by the whole model. The prompt is the voice's next
held-out utterance. With `--sentences FILE` hibari speaks the lines of FILE as `amber`, and the prompt is the
bundle's voice of that name.
"""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from demo.speech.shards import Utterance, read_shard
from demo.speech.speak import SOURCES, hibari_speaker, trim, vocabulary
from demo.training.refine import pairs, refined
from valle2.benchmarks.quality.judges import Judges
from valle2.benchmarks.quality.speakers import speaker
from valle2.benchmarks.quality.word_errors import word_error_rate, words
from valle2.benchmarks.report.tables import markdown
from valle2.runtime import Prompt, Request, Valle2

Array = np.ndarray[Any, Any]
VOICE = "amber"
COLUMNS = ("similarity to the source", "similarity to the prompt", "own voice %", "DNSMOS")
PLACES = (3, 3, 1, 2)
Pair = tuple[Utterance, Prompt]


def four_ways(tts: Valle2, item: Utterance, prompt: Prompt) -> dict[str, Array]:
    """The utterance in the four forms; arrays (N,) float32."""
    codec = tts.need_codec()
    codes = codec.encode(item.wave)
    request = Request(item.text, prompt, tts.settings())
    return {
        "source": item.wave,
        "codec": codec.decode(codes),
        "true codebook 0 + NAR": codec.decode(refined(tts, request, codes[:, 0])),
        "AR + NAR": tts.synthesize_batch([request])[0].audio,
    }


def held_out(tts: Valle2, work: Path, source: str, count: int) -> list[Pair]:
    """Utterances of a source's first shard, each with another of its voice as the prompt."""
    path, codec = work / "speech" / f"{source}-0000.npz", tts.need_codec()
    items = read_shard(path) if path.exists() else []
    found = [(items[a], items[b]) for a, b in pairs(items)[:count]]
    return [(item, Prompt(codec.encode(said.wave), said.text, said.voice)) for item, said in found]


def spoken(tts: Valle2, lines: list[str]) -> list[Pair]:
    """Lines as hibari speaks them."""
    g2p, ids_of = import_module("hibari.g2p").G2P(british=False), vocabulary()
    speak, found = hibari_speaker(), list[Pair]()
    for seed, text in enumerate(lines):
        ids = [0, *(ids_of[symbol] for symbol in g2p(text) if symbol in ids_of), 0]
        sound, _, _ = trim(*speak(ids, VOICE, seed), ids)
        nothing = np.zeros(0, np.int64)
        found.append((Utterance(VOICE, text, nothing, nothing, sound), tts.voice(VOICE)))
    return found


def judged(tts: Valle2, judges: Judges, source: str, items: list[Pair]) -> list[list[object]]:
    """A row for each of the four forms; own voice is judged against all voices of model and source."""
    codec, said = tts.need_codec(), list[str]()
    prompts = {name: tts.voice(name) for name in tts.voices()} | {p.name: p for _, p in reversed(items)}
    known = {name: speaker(tts, judges, prompt).voice for name, prompt in prompts.items()}
    heard: dict[str, list[str]] = {}
    figures: dict[str, list[tuple[float, ...]]] = {}
    for item, prompt in items:
        said.append(words(item.text))
        target = speaker(tts, judges, prompt).voice
        others = [voice for name, voice in known.items() if name != prompt.name]
        ways = four_ways(tts, item, prompt)
        voices = {way: judges.embed(audio, codec.sample_rate) for way, audio in ways.items()}
        for way, audio in ways.items():
            heard.setdefault(way, []).append(words(judges.transcribe(audio, codec.sample_rate)))
            voice = voices[way]
            own = all(voice @ target > voice @ other for other in others)
            mos = judges.mos(audio, codec.sample_rate)
            near = (float(voice @ other) for other in (voices["source"], target))
            figures.setdefault(way, []).append((*near, 100 * own, mos))
    rows: list[list[object]] = []
    for way, found in heard.items():
        means = zip(np.mean(figures[way], axis=0).tolist(), PLACES, strict=True)
        rows.append([source, way, round(word_error_rate(said, found), 1), *(round(*pair) for pair in means)])
        print(*rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("demo/work"))
    parser.add_argument("--bundle", default="demo")
    parser.add_argument("--count", type=int, default=40, help="utterances a source")
    parser.add_argument(
        "--sentences", type=Path, help="lines for hibari to speak, instead of the held-out shards"
    )
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument(
        "--sources", nargs="+", default=list(SOURCES), choices=list(SOURCES), help="whose first shards"
    )
    args = parser.parse_args()
    tts, judges = Valle2.load(args.bundle, threads=args.threads), Judges()
    if args.sentences:
        sources = {VOICE: spoken(tts, args.sentences.read_text(encoding="utf-8").splitlines()[: args.count])}
    else:
        sources = {source: held_out(tts, args.work, source, args.count) for source in args.sources}
    rows = []
    for source, items in sources.items():
        rows += judged(tts, judges, source, items)
    print(markdown(["source", "signal", "WER %", *COLUMNS], rows))


if __name__ == "__main__":
    main()
