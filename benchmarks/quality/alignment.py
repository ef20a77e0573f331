"""What went wrong in an utterance, read from its words: the text's against those that were heard.

Words are compared as `judges.words` writes them. Truncated: the text's last words are missing. Repeated: one
to four words are heard twice in a row more often than the text has them so.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

LONGEST_ECHO = 4
CUT_WORDS = 2
CUT_SHARE = 0.25


def missing_end(said: str, heard: str) -> int:
    """Words of `said` that the best alignment deletes after its last kept or replaced one."""
    words = said.split()
    if not heard.split():
        return len(words)
    chunks = import_module("jiwer").process_words(said, heard).alignments[0]
    kept = [chunk.ref_end_idx for chunk in chunks if chunk.type in ("equal", "substitute")]
    return len(words) - max(kept, default=0)


def word_error_rate(said: Sequence[str], heard: Sequence[str]) -> float:
    """WER of texts in percent: all their errors over all their words."""
    return 100 * float(import_module("jiwer").wer(list(said), list(heard)))


def is_truncated(said: str, heard: str) -> bool:
    """Is the end missing: two words or a quarter of the text, whichever is more; of a shorter text, all?"""
    words = len(said.split())
    return missing_end(said, heard) >= min(words, max(CUT_WORDS, CUT_SHARE * words))


def echoes(words: Sequence[str]) -> int:
    """Places at which one to four words stand twice in a row."""
    return sum(
        words[start : start + size] == words[start + size : start + 2 * size]
        for size in range(1, LONGEST_ECHO + 1)
        for start in range(len(words) - 2 * size + 1)
    )


def is_repeated(said: str, heard: str) -> bool:
    """Are words heard twice in a row that the text does not repeat?"""
    return echoes(heard.split()) > echoes(said.split())
