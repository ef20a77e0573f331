"""Learn letter-to-sound rules from a pronouncing lexicon.

1. Align letters with sounds: a letter has 0 to 3 sounds. A few rounds of Viterbi training start from a
   fixed guess.
2. List rules from the shortest context to the longest. A rule is kept when it corrects at least `gain`
   letters that the shorter contexts get wrong.

`valle2.runtime.text.letter_rules` applies the rules.
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from valle2.runtime.text.letter_rules import EDGE, REACH, VOWELS, WINDOWS, LetterRules, context

UNIT = re.compile(r"[ˈˌ]?.")
MOST_SOUNDS = 3
ROUNDS = 4
SAMPLE = 8000
FLOOR = 12.0
Costs = dict[tuple[str, str], float]


def units(phonemes: str) -> list[str]:
    """Sounds, each with the stress mark before it."""
    return UNIT.findall(phonemes)


def first_cost(letter: str, chunk: Sequence[str]) -> float:
    """The cost before training: a letter has one sound, vowels go with vowels."""
    if len(chunk) != 1:
        return 2.0 + len(chunk)
    return 0.0 if (letter in "aeiouy") == (chunk[0][-1] in VOWELS) else 3.0


def align(word: str, sounds: Sequence[str], costs: Costs) -> list[str] | None:
    """The cheapest chunk of sounds for every letter; None where there are too many sounds."""
    best: list[list[tuple[float, int]]] = [[(0.0, 0)] + [(math.inf, 0)] * len(sounds)]
    for letter in word:
        row = []
        for end in range(len(sounds) + 1):
            options = []
            for size in range(min(MOST_SOUNDS, end) + 1):
                chunk = sounds[end - size : end]
                cost = costs.get((letter, "".join(chunk))) if costs else first_cost(letter, chunk)
                options.append((best[-1][end - size][0] + (FLOOR if cost is None else cost), size))
            row.append(min(options))
        best.append(row)
    if math.isinf(best[-1][-1][0]):
        return None
    out, end = [], len(sounds)
    for row in reversed(best[1:]):
        size = row[end][1]
        out.append("".join(sounds[end - size : end]))
        end -= size
    return out[::-1]


def alignment_costs(lexicon: Mapping[str, str]) -> Costs:
    """Negative log probability of each (letter, chunk), from a sample of the words."""
    words = random.Random(0).sample(sorted(lexicon), min(SAMPLE, len(lexicon)))
    costs: Costs = {}
    for _ in range(ROUNDS):
        counts: Counter[tuple[str, str]] = Counter()
        for word in words:
            counts.update(zip(word, align(word, units(lexicon[word]), costs) or [], strict=False))
        totals: Counter[str] = Counter()
        for (letter, _chunk), count in counts.items():
            totals[letter] += count
        costs = {pair: -math.log(count / totals[pair[0]]) for pair, count in counts.items()}
    return costs


def learn(lexicon: Mapping[str, str], gain: int) -> dict[str, str]:
    """Lexicon of lower-case words -> rules."""
    costs = alignment_costs(lexicon)
    places, truth = [], []
    for word, phonemes in lexicon.items():
        chunks = align(word, units(phonemes), costs)
        if chunks:
            padded = EDGE * REACH + word + EDGE * REACH
            places += [(padded, i + REACH) for i in range(len(word))]
            truth += chunks
    guess = [""] * len(truth)
    rules: dict[str, str] = {}
    for window in WINDOWS:
        groups: dict[str, list[int]] = defaultdict(list)
        for number, (padded, index) in enumerate(places):
            groups[context(padded, index, window)].append(number)
        for key, members in groups.items():
            answer, right = Counter(truth[m] for m in members).most_common(1)[0]
            if right - sum(guess[m] == truth[m] for m in members) >= gain:
                rules[key] = answer
                for member in members:
                    guess[member] = answer
    return rules


def evaluate(lexicon: Mapping[str, str], gain: int) -> str:
    """Learn from nine tenths of the words and report how the others are read."""
    import jiwer

    words = sorted(lexicon)
    held = set(random.Random(1).sample(words, min(3000, len(words) // 10)))
    read = LetterRules(learn({w: lexicon[w] for w in words if w not in held}, gain))
    truth, ours = [lexicon[w] for w in sorted(held)], [read(w) for w in sorted(held)]
    plain, read_plain = ([re.sub("[ˈˌ]", "", text) for text in texts] for texts in (truth, ours))
    return (
        f"{len(held)} held-out words: phoneme error {jiwer.cer(truth, ours):.1%} "
        f"(without stress {jiwer.cer(plain, read_plain):.1%}), words right "
        f"{sum(a == b for a, b in zip(truth, ours, strict=True)) / len(held):.1%} "
        f"(without stress {sum(a == b for a, b in zip(plain, read_plain, strict=True)) / len(held):.1%})"
    )
