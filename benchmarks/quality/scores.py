"""The score of one utterance; summaries of many scores with 95 % bootstrap intervals over sentences.

WER and CER are all errors over all words or letters, in percent. Other measures are means over utterances.
A bootstrap draw takes sentences with replacement, each with all its utterances, because utterances of one
sentence are not independent.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

DRAWS = 1000
SEED = 0
INTERVAL = (2.5, 97.5)
ENOUGH_SIMILARITY = 0.3
Floats = NDArray[np.float64]
Figure = dict[str, float]


@dataclass(frozen=True, slots=True)
class Score:
    """One utterance. Yes is 1 and no is 0. Files of earlier versions lack the fields after `drawn`.

    Args:
        sentence: index of the text. errors: wrong words of `words`. letters_wrong: of `letters`.
        similarity: cosine between the voice and the prompt's speaker. own: no other speaker is nearer.
        mos: DNSMOS P.808. capped: it reached the length limit without `<eos>`.
        truncated, repeated: see `word_errors`. redraws: of `drawn` codes, those that were drawn again.
        joints: of a stream. seam, click: of a stream, summed over its joints (see `seams`).
        seam_whole, click_whole: the same of the whole utterance at the same places.
        stranger: the speaker is none of the model's own voices. beside_known: the voice is nearer to that
            speaker than to every voice of the model.
        prompted: the words of the prompt are known, so the next two were looked for.
        echoed, unbegun: see `word_errors`.
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
    prompted: int = 0
    echoed: int = 0
    unbegun: int = 0

    def row(self) -> list[object]:
        """The values as a sweep's file keeps them."""
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
    "echoed": ("echoed", "prompted", 1.0),
    "unbegun": ("unbegun", "prompted", 1.0),
}
"""Measure: the summed field, the field it is divided by (empty: the number of utterances), the unit."""


def totals(scores: Sequence[Score], sentences: Sequence[int]) -> dict[str, tuple[Floats, Floats]]:
    """Numerator and denominator of every measure, summed within each sentence: two (S,) arrays."""
    place = {sentence: index for index, sentence in enumerate(sentences)}
    where = np.array([place[score.sentence] for score in scores], np.int64)

    def summed(name: str) -> Floats:
        values = [float(getattr(score, name)) if name else 1.0 for score in scores]
        return np.bincount(where, np.array(values), len(sentences)).astype(np.float64)

    return {name: (summed(top), summed(bottom)) for name, (top, bottom, _) in MEASURES.items()}


def measures(scores: Sequence[Score]) -> list[str]:
    """Names of all measures. Those of joints, strangers and prompts are left out where there are none."""
    some = ("joints", "stranger", "prompted")
    absent = {name for name in some if not any(getattr(score, name) for score in scores)}
    return [name for name, (_, bottom, _) in MEASURES.items() if bottom not in absent]


def resampled(count: int) -> NDArray[np.int64]:
    """(DRAWS, count): the same bootstrap draws for every condition, so that conditions compare in pairs."""
    return np.random.default_rng(SEED).integers(0, count, (DRAWS, count))


def ratios(top: Floats, bottom: Floats, unit: float, picks: NDArray[np.int64]) -> tuple[float, Floats]:
    """A measure and its bootstrap draws; 0 where nothing was counted."""
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
    """Every measure of second - first with its 95 % interval, in pairs over the sentences of both."""
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
    """Rows of a sweep's file as scores. Rows of earlier versions are shorter."""
    return [Score(**dict(zip(columns, row, strict=False))) for row in rows]  # type: ignore[arg-type]


def first_sample(samples: Sequence[Score]) -> Score:
    """No choice: the first sample."""
    return samples[0]


def by_sort(samples: Sequence[Score]) -> Score:
    """The paper's Eq. 23: the greatest [min(similarity, 0.3), 1 - WER] in lexicographic order."""
    return max(samples, key=lambda s: (min(s.similarity, ENOUGH_SIMILARITY), -s.errors))


def by_metric(samples: Sequence[Score]) -> Score:
    """The best of each measure on its own. This is an oracle; no single sample has all of them."""
    least = ("errors", "letters_wrong", "capped", "truncated", "repeated", "echoed", "unbegun")
    most = ("similarity", "own", "mos")
    best = {name: min(getattr(s, name) for s in samples) for name in least}
    best |= {name: max(getattr(s, name) for s in samples) for name in most}
    return replace(samples[0], **best)


SELECTION_RULES: dict[str, Callable[[Sequence[Score]], Score]] = {
    "first of five": first_sample,
    "five, sort": by_sort,
    "five, metric-wise": by_metric,
}
"""Which of a sentence's five samples counts, by the paper's rules (section 4.1.3). They need the text and a
judge. The runtime's own rule (`valle2.runtime.generation.select`) needs neither."""


def select(scores: Sequence[Score], rule: str, samples: int) -> list[Score]:
    """One score for each sentence and group of `samples` seeds."""
    groups: dict[tuple[int, str, int], list[Score]] = defaultdict(list)
    for score in scores:
        groups[score.sentence, score.voice, score.seed // samples].append(score)
    return [SELECTION_RULES[rule](group) for group in groups.values()]
