"""Five-time sampling: which of a sentence's samples counts, by the paper's rules (section 4.1.3), which need
the text and a judge. The runtime's own rule, which needs neither, is `valle2.runtime.generation.select`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace

from valle2.benchmarks.quality.scores import Score

ENOUGH_SIMILARITY = 0.3


def first(samples: Sequence[Score]) -> Score:
    """No choice: the first sample."""
    return samples[0]


def by_sort(samples: Sequence[Score]) -> Score:
    """The paper's Eq. 23: greatest [min(similarity, 0.3), 1 - WER] in lexicographic order."""
    return max(samples, key=lambda s: (min(s.similarity, ENOUGH_SIMILARITY), -s.errors))


def by_metric(samples: Sequence[Score]) -> Score:
    """The best of each measure by itself, an oracle that no listener gets."""
    least = ("errors", "letters_wrong", "capped", "truncated", "repeated")
    most = ("similarity", "own", "mos")
    best = {name: min(getattr(s, name) for s in samples) for name in least}
    best |= {name: max(getattr(s, name) for s in samples) for name in most}
    return replace(samples[0], **best)


RULES: dict[str, Callable[[Sequence[Score]], Score]] = {
    "first of five": first,
    "five, sort": by_sort,
    "five, metric-wise": by_metric,
}


def select(scores: Sequence[Score], rule: str, samples: int) -> list[Score]:
    """One score for each sentence and group of `samples` seeds."""
    groups: dict[tuple[int, str, int], list[Score]] = defaultdict(list)
    for score in scores:
        groups[score.sentence, score.voice, score.seed // samples].append(score)
    return [RULES[rule](group) for group in groups.values()]
