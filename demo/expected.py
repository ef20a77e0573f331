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

from valle2.benchmarks.quality.command import read_sentences
from valle2.benchmarks.quality.evaluate import evaluate
from valle2.benchmarks.quality.judges import Judges
from valle2.benchmarks.quality.scores import summarise
from valle2.benchmarks.quality.speakers import own_speakers, recorded_speakers
from valle2.benchmarks.quality.tables import TITLES, cell_text
from valle2.benchmarks.report.report import markdown
from valle2.engine import Backend
from valle2.runtime import Valle2
from valle2.runtime.generation.nar_runner import NARRunner

Array = np.ndarray[Any, Any]


class Likeliest:
    """A NAR graph whose codes are the likeliest ones."""

    def __init__(self, nar: Backend) -> None:
        self.nar, self.spec = nar, nar.spec

    def run(self, feeds: Mapping[str, Array], names: Sequence[str]) -> dict[str, Array]:
        return {"codes_out": self.nar.run(feeds, ("logits",))["logits"].argmax(axis=2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", default="demo")
    parser.add_argument("--sentences", type=Path, default=Path("demo/sentences_100.txt"))
    parser.add_argument("--count", type=int, default=48)
    parser.add_argument("--recordings", type=Path, help="prompts in place of the model's own")
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    tts, judges = Valle2.load(args.bundle, threads=args.threads), Judges(args.threads)
    own = own_speakers(tts, judges)
    others = own if args.recordings else []
    speakers = recorded_speakers(tts, judges, args.recordings) if args.recordings else own
    lines = read_sentences(args.sentences, args.count)
    nar, rows = tts.model.nar.backend, []
    for name, backend in (("likeliest", cast(Backend, Likeliest(nar))), ("the bundle's", nar)):
        tts.engine.model = replace(tts.model, nar=NARRunner(backend))
        scores = evaluate(tts, judges, lines, speakers, tts.settings(), [0], others=others)
        found = summarise(scores)
        rows.append([name, *(cell_text(m, found[m]) for m in TITLES)])
    print(markdown(["code", *TITLES.values()], rows))


if __name__ == "__main__":
    main()
