"""Keeps the results of functions of short texts, because a sentence is measured, checked and then encoded."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TypeVar

KEPT_TEXTS, KEPT_CHARACTERS = 2048, 512
"""Texts whose results are kept, more than 4,096 characters have sentences; and characters of the longest."""
Result = TypeVar("Result")


def kept(work: Callable[[str], Result]) -> Callable[[str], Result]:
    """The function with its last results kept. Those of long texts are not, which bounds the memory."""
    short = lru_cache(KEPT_TEXTS)(work)
    return lambda text: short(text) if len(text) <= KEPT_CHARACTERS else work(text)
