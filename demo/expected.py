"""The NAR's likeliest code or the one nearest to what it expects: `python demo/expected.py --bundle B`.

The likeliest of a thousand codes of which none is likely is noise. The code whose vector is nearest to the
mean of all, under the NAR's probabilities, has the least expected squared distance to the true one; a bundle
with vectors takes it. Both ways are judged on the same codebook 0, each voice in turn; `--recordings` holds
strangers' WAVs with their .txt.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from valle2.benchmarks.alignment import word_error_rate
from valle2.benchmarks.judges import Judges, words
from valle2.benchmarks.report import markdown
from valle2.engine import Backend
from valle2.runtime import Prompt, Valle2

Array = np.ndarray[Any, Any]


class Likeliest:
    """A NAR graph whose codes are the likeliest ones."""

    def __init__(self, nar: Backend) -> None:
        self.nar = nar

    def run(self, feeds: Mapping[str, Array], names: Sequence[str]) -> dict[str, Array]:
        return {"codes_out": self.nar.run(feeds, ("logits",))["logits"].argmax(axis=2)}


def judged(tts: Valle2, judges: Judges, lines: list[str], prompts: list[Prompt]) -> list[object]:
    """Words wrong, voices recognised among all prompts and the model's own, similarity to the prompt."""
    codec = tts.need_codec()
    known = {p.name: p for p in (*prompts, *(tts.voice(name) for name in tts.voices()))}
    voices = {name: judges.embed(codec.decode(p.codes), codec.sample_rate) for name, p in known.items()}
    heard, near, own = list[str](), list[float](), 0
    for index, line in enumerate(lines):
        prompt = prompts[index % len(prompts)]
        audio = tts.synthesize(line, prompt, replace(tts.settings(), seed=0)).audio
        heard.append(words(judges.transcribe(audio, codec.sample_rate)))
        said = judges.embed(audio, codec.sample_rate)
        scores = {name: float(said @ voice) for name, voice in voices.items()}
        own += max(scores, key=lambda name: scores[name]) == prompt.name
        near.append(scores[prompt.name])
    wrong = word_error_rate([words(line) for line in lines], heard)
    return [round(wrong, 1), round(100 * own / len(lines), 1), round(float(np.mean(near)), 3)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", default="demo")
    parser.add_argument("--sentences", type=Path, default=Path("demo/sentences_100.txt"))
    parser.add_argument("--count", type=int, default=48)
    parser.add_argument("--recordings", type=Path, help="prompts in place of the model's own")
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    tts, judges = Valle2.load(args.bundle, threads=args.threads), Judges()
    prompts = [tts.voice(name) for name in tts.voices()]
    if args.recordings:
        files = sorted(args.recordings.glob("*.wav"))
        prompts = [tts.prompt(file, file.with_suffix(".txt").read_text(), file.stem) for file in files]
    lines = args.sentences.read_text(encoding="utf-8").splitlines()[: args.count]
    graphs, rows = tts.graphs, []
    for name, nar in (("likeliest", cast(Backend, Likeliest(graphs.nar))), ("the bundle's", graphs.nar)):
        tts.graphs = replace(graphs, nar=nar)
        rows.append([name, *judged(tts, judges, lines, prompts)])
    print(markdown(["code", "WER %", "own voice %", "similarity"], rows))


if __name__ == "__main__":
    main()
