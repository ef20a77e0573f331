"""Errors in an utterance, from the words of its text and the words that were heard.

Words are compared as `words` writes them. Truncated: the last words of the text are missing. Repeated: one to
four words are heard twice in a row more often than the text repeats them. Echoed: the last words of the
prompt are heard before the text. Unbegun: the first word of the text is missing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from valle2.runtime.text.normalise import normalise

LONGEST_REPEAT = 4
CUT_WORDS = 2
CUT_SHARE = 0.25


def words(text: str) -> str:
    """The text as lower-case words, numbers written out."""
    return " ".join(re.sub(r"[^a-z' ]", " ", normalise(text).lower()).split())


def word_scores(text: str, transcript: str, prompt: str = "") -> dict[str, Any]:
    """The fields of a `Score` that follow from a text and the transcript of its speech.

    Args:
        prompt: the words that are spoken in the prompt; empty if they are unknown.
    """
    jiwer = import_module("jiwer")
    said, heard = words(text), words(transcript)
    by_word, by_letter = jiwer.process_words(said, heard), jiwer.process_characters(said, heard)
    return {
        "errors": by_word.substitutions + by_word.deletions + by_word.insertions,
        "words": len(said.split()),
        "letters_wrong": by_letter.substitutions + by_letter.deletions + by_letter.insertions,
        "letters": len(said),
        "truncated": int(is_truncated(said, heard)),
        "repeated": int(is_repeated(said, heard)),
        "prompted": int(bool(prompt)),
        "echoed": int(bool(prompt) and echoed_words(words(prompt), said, heard) > 0),
        "unbegun": int(bool(prompt) and missing_start(said, heard) > 0),
    }


def missing_end(said: str, heard: str) -> int:
    """Words at the end of `said` that the best alignment deletes."""
    count = len(said.split())
    if not heard.split():
        return count
    chunks = import_module("jiwer").process_words(said, heard).alignments[0]
    kept = [chunk.ref_end_idx for chunk in chunks if chunk.type in ("equal", "substitute")]
    return count - max(kept, default=0)


def missing_start(said: str, heard: str) -> int:
    """Words at the start of `said` that the best alignment deletes."""
    if not heard.split():
        return len(said.split())
    chunks = import_module("jiwer").process_words(said, heard).alignments[0]
    kept = [chunk.ref_start_idx for chunk in chunks if chunk.type in ("equal", "substitute")]
    return min(kept, default=len(said.split()))


def echoed_words(prompt: str, said: str, heard: str) -> int:
    """The most words at the end of the prompt that are heard, in a row, before the first word of the text.

    Words that are heard there may be other words misheard. So they count only if they are not the text's.
    """
    before, last = heard.split(), prompt.split()
    if before and said.split():
        chunks = import_module("jiwer").process_words(said, heard).alignments[0]
        before = before[: min((c.hyp_start_idx for c in chunks if c.type == "equal"), default=len(before))]
    lengths = range(min(len(before), len(last)), 0, -1)
    places = ((size, start) for size in lengths for start in range(len(before) - size + 1))
    return next((size for size, start in places if before[start : start + size] == last[-size:]), 0)


def word_error_rate(said: Sequence[str], heard: Sequence[str]) -> float:
    """Word error rate of several texts in percent: all errors over all words."""
    return 100 * float(import_module("jiwer").wer(list(said), list(heard)))


def is_truncated(said: str, heard: str) -> bool:
    """Are at least two words, and a quarter of the text, missing at the end? All words of a shorter text."""
    count = len(said.split())
    return missing_end(said, heard) >= min(count, max(CUT_WORDS, CUT_SHARE * count))


def count_repeats(spoken: Sequence[str]) -> int:
    """Number of places where one to four words occur twice in a row."""
    return sum(
        spoken[start : start + size] == spoken[start + size : start + 2 * size]
        for size in range(1, LONGEST_REPEAT + 1)
        for start in range(len(spoken) - 2 * size + 1)
    )


def is_repeated(said: str, heard: str) -> bool:
    """Are there more repeats in the heard words than in the text?"""
    return count_repeats(heard.split()) > count_repeats(said.split())
