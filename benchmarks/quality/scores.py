"""The score of one utterance, and what many of them say together, with bootstrap intervals over sentences.

WER and CER are totals of errors over totals of words and letters, in percent; the others are means over the
utterances. A bootstrap draw takes sentences with replacement, each with all its utterances, because those of
one sentence are not independent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields

import numpy as np
from numpy.typing import NDArray

DRAWS = 1000
SEED = 0
INTERVAL = (2.5, 97.5)
Floats = NDArray[np.float64]
Figure = dict[str, float]


@dataclass(frozen=True, slots=True)
class Score:
    """One utterance. Counts and yes (1) or no (0) are numbers.

    sentence: its index. errors of words, letters_wrong of letters. similarity: cosine to its prompt. own: no
    other prompt is nearer. mos: DNSMOS P.808. capped: it did not end by itself. redraws of drawn codes.
    Of a stream: its joints, `seam` and `click` (see `quality.seams`) summed over them, and the same of the
    whole utterance at the same places. Of a stranger, whose prompt is none of the model's: beside_known,
    whether the prompt is nearer than every voice of the model. Files of earlier versions lack these.
    """

    sentence: int
    seed: int
    voice: str
    errors: int
    words: int
    letters_wrong: int
    letters: int
    similarity: float
    own: int
    mos: float
    capped: int
    truncated: int
    repeated: int
    redraws: int
    drawn: int
    joints: int = 0
    seam: float = 0.0
    click: int = 0
    seam_whole: float = 0.0
    click_whole: int = 0
    stranger: int = 0
    beside_known: int = 0

    def row(self) -> list[object]:
        """As it is kept in a file."""
        return [round(v, 4) if isinstance(v, float) else v for v in astuple(self)]


COLUMNS = [entry.name for entry in fields(Score)]
MEASURES: dict[str, tuple[str, str, float]] = {
    "wer": ("errors", "words", 100.0),
    "cer": ("letters_wrong", "letters", 100.0),
    "similarity": ("similarity", "", 1.0),
    "voice": ("own", "", 1.0),
    "mos": ("mos", "", 1.0),
    "capped": ("capped", "", 1.0),
    "truncated": ("truncated", "", 1.0),
    "repeated": ("repeated", "", 1.0),
    "redraws": ("redraws", "drawn", 1.0),
    "seam": ("seam", "joints", 1.0),
    "click": ("click", "joints", 1.0),
    "seam_whole": ("seam_whole", "joints", 1.0),
    "click_whole": ("click_whole", "joints", 1.0),
    "beside_known": ("beside_known", "stranger", 1.0),
}
"""Measure: what is summed, what it is divided by (the number of utterances if empty), and the unit."""


def totals(scores: Sequence[Score], sentences: Sequence[int]) -> dict[str, tuple[Floats, Floats]]:
    """Numerator and denominator of every measure, summed within each sentence: two (S,) arrays."""
    place = {sentence: index for index, sentence in enumerate(sentences)}
    where = np.array([place[score.sentence] for score in scores], np.int64)

    def summed(name: str) -> Floats:
        values = [float(getattr(score, name)) if name else 1.0 for score in scores]
        return np.bincount(where, np.array(values), len(sentences)).astype(np.float64)

    return {name: (summed(top), summed(bottom)) for name, (top, bottom, _) in MEASURES.items()}


def measures(scores: Sequence[Score]) -> list[str]:
    """All measures, but those of joints and of strangers only where there are some."""
    absent = {name for name in ("joints", "stranger") if not any(getattr(score, name) for score in scores)}
    return [name for name, (_, bottom, _) in MEASURES.items() if bottom not in absent]


def resampled(count: int) -> NDArray[np.int64]:
    """The same bootstrap draws for every cell, so that cells can be compared in pairs: (DRAWS, count)."""
    return np.random.default_rng(SEED).integers(0, count, (DRAWS, count))


def ratios(top: Floats, bottom: Floats, unit: float, picks: NDArray[np.int64]) -> tuple[float, Floats]:
    """The measure itself and its bootstrap draws; 0 where nothing was counted."""
    whole = unit * float(top.sum()) / max(float(bottom.sum()), 1e-9)
    below = np.maximum(bottom[picks].sum(1), 1e-9)
    return whole, unit * top[picks].sum(1) / below


def figure(value: float, draws: Floats) -> Figure:
    low, high = np.percentile(draws, INTERVAL)
    return {"value": round(value, 4), "low": round(float(low), 4), "high": round(float(high), 4)}


def summarise(scores: Sequence[Score]) -> dict[str, Figure]:
    """Every measure with its 95 % interval."""
    sentences = sorted({score.sentence for score in scores})
    picks = resampled(len(sentences))
    summed = totals(scores, sentences)
    return {name: figure(*ratios(*summed[name], MEASURES[name][2], picks)) for name in measures(scores)}


def difference(first: Sequence[Score], second: Sequence[Score]) -> dict[str, Figure]:
    """second - first with its 95 % interval, over the sentences that both have, in the same draws."""
    shared = sorted({s.sentence for s in first} & {s.sentence for s in second})
    picks, kept = resampled(len(shared)), set(shared)
    sides = [totals([s for s in side if s.sentence in kept], shared) for side in (first, second)]
    found = {}
    for name in measures(first):
        unit = MEASURES[name][2]
        (one, draws), (other, others) = (ratios(*side[name], unit, picks) for side in sides)
        found[name] = figure(other - one, others - draws)
    return found


def read_scores(rows: Sequence[Sequence[object]], columns: Sequence[str]) -> list[Score]:
    """Rows of a file as scores; those of earlier versions are shorter."""
    return [Score(**dict(zip(columns, row, strict=False))) for row in rows]  # type: ignore[arg-type]
