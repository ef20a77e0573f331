"""Keeps the results of functions of short texts, because a sentence is measured, checked and then encoded."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar
from weakref import WeakSet

SHORT, SHORT_TEXTS, LONG_TEXTS = 512, 2048, 4
"""Characters of a short text, and how many short and long texts' results are kept. A text of 4,096 characters
has fewer sentences than that."""
CACHES: WeakSet[Any] = WeakSet()
Result = TypeVar("Result")


def kept(work: Callable[[str], Result]) -> Callable[[str], Result]:
    """The function with its last results kept: many of short texts, and few of long ones."""
    short, long = lru_cache(SHORT_TEXTS)(work), lru_cache(LONG_TEXTS)(work)
    CACHES.update((short, long))
    return lambda text: short(text) if len(text) <= SHORT else long(text)


def forget() -> None:
    """Forget all results, so that a measurement begins with nothing known."""
    for cache in CACHES:
        cache.cache_clear()
