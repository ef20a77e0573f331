"""Rules from written to spoken English, a module for each kind of text. `normalise` applies them in order.

A rule is a regular expression and its replacement. Each takes time that grows with the length of the text and
no faster. It knows no model, no phonemes and no tokens.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

Replacement = str | Callable[[re.Match[str]], str]
Rule = tuple[re.Pattern[str], Replacement]


def either(words: Iterable[str]) -> str:
    """A regular expression for any of the words, longest first."""
    return "|".join(sorted(map(re.escape, words), key=len, reverse=True))


def apply(rules: Iterable[Rule], text: str) -> str:
    """The text after each rule in turn."""
    for pattern, replacement in rules:
        text = pattern.sub(replacement, text)
    return text
