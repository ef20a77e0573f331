"""Measure the times of words: `python -m demo.studies.word_times --work W --bundle DIR`.

Over the held-out shard of each source, the words that the bundle's table finds in the codes of the teacher's
speech are compared with the teacher's durations. `streamed` gives the codes in pieces of 0.4 s, as a stream
does; `early` is the share of words whose time was certain before the last piece.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from demo.model.alignment import pairs
from demo.speech.shards import Array, Utterance, is_held_out, shards, symbols
from demo.speech.speak import HOP, RATE
from valle2.benchmarks.report.tables import markdown
from valle2.engine import read_manifest
from valle2.runtime.generation.alignment import Aligner, AlignmentTable, read_alignment
from valle2.runtime.text.phonemes import PUNCTUATION
from valle2.runtime.text.word_spans import spans_of
from valle2.runtime.types import Word, WordSpan

FRAME_RATE = RATE / HOP
PIECE_FRAMES = 30
MARKS = PUNCTUATION | frozenset(" —…")


def spans(item: Utterance) -> list[WordSpan]:
    """The words of an utterance: symbols between gaps and marks."""
    names = [symbols()[index] for index in item.ids]
    return [WordSpan("".join(names[a:b]), a, b) for a, b in spans_of(names, MARKS)]


def found(table: AlignmentTable, item: Utterance, codes: Array, piece: int) -> tuple[list[Word], int]:
    """The words that the table finds in codes given in pieces of so many frames, and how many were early."""
    aligner = Aligner(table, item.ids, spans(item), FRAME_RATE)
    book, words = codes[:, 0].astype(np.int64), list[Word]()
    for start in range(0, len(book), piece):
        early = len(words)
        words += aligner.add(book[start : start + piece])
    return [*words, *aligner.finish(complete=True)], early


def errors(item: Utterance, words: list[Word]) -> list[tuple[float, float]]:
    """Distance of each word's start and end to the teacher's, in milliseconds."""
    ends = np.minimum(item.ends, item.frames)
    starts = np.concatenate([[0.0], ends[:-1]])
    truth = [(starts[one.start], ends[one.end - 1]) for one in spans(item)]
    return [
        (abs(word.start - start / FRAME_RATE) * 1000, abs(word.end - end / FRAME_RATE) * 1000)
        for word, (start, end) in zip(words, truth, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("demo/work"))
    parser.add_argument("--bundle", type=Path, default=Path("runtime/models/demo"))
    args = parser.parse_args()
    table = read_alignment(args.bundle, read_manifest(args.bundle).files)
    if table is None:
        raise SystemExit(f"{args.bundle} has no table for the times of words")
    rows = list[list[object]]()
    for path in shards(args.work):
        if not is_held_out(path) or not (args.work / "codes" / path.name).exists():
            continue
        for name, piece in (("whole", 10**6), ("streamed", PIECE_FRAMES)):
            errs, early = list[tuple[float, float]](), 0
            for item, codes in pairs(path):
                words, count = found(table, item, codes, piece)
                errs += errors(item, words)
                early += count
            spread = np.percentile(errs, [50, 90], axis=0).T.ravel()
            share = f"{100 * early / len(errs):.0f} %" if name == "streamed" else ""
            row = [path.stem.removesuffix("-0000"), name, len(errs), *(f"{x:.0f} ms" for x in spread), share]
            rows.append(row)
    print(markdown(["source", "codes", "words", "start, median", "p90", "end, median", "p90", "early"], rows))


if __name__ == "__main__":
    main()
