"""Keeps the results of functions of short texts, because a sentence is measured, checked and then encoded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, TypeVar
from weakref import WeakSet

SHORT, SHORT_TEXTS, LONG_TEXTS = 512, 2048, 4
"""Characters of a short text, and how many short and long texts' results are surely kept. A text of 4,096
characters has fewer sentences than that."""
CACHES: WeakSet[Any] = WeakSet()
Result = TypeVar("Result")


class Recent(Generic[Result]):
    """The results of the last texts: those of `size` texts, and up to as many older ones."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.newer: dict[str, Result] = {}
        self.older: dict[str, Result] = {}

    def add(self, text: str, result: Result) -> None:
        """Keep a result. The older half goes when the newer one is full."""
        newer = self.newer
        if len(newer) >= self.size:
            self.older, newer = newer, {}
            self.newer = newer
        newer[text] = result


class Kept(Generic[Result]):
    """A function whose last results are kept: many of short texts, and few of long ones.

    Several threads may call it.

    Args:
        work: the function. together: the same for several texts at once, if that is faster.
    """

    def __init__(
        self,
        work: Callable[[str], Result],
        together: Callable[[Sequence[str]], Sequence[Result]] | None = None,
    ) -> None:
        self.work, self.together = work, together
        self.forget()
        CACHES.add(self)

    def forget(self) -> None:
        """Drop all results."""
        self.short, self.long = Recent[Result](SHORT_TEXTS), Recent[Result](LONG_TEXTS)

    def __call__(self, text: str) -> Result:
        recent = self.short if len(text) <= SHORT else self.long
        try:
            return recent.newer[text]
        except KeyError:
            pass
        try:
            result = recent.older[text]
        except KeyError:
            result = self.work(text)
        recent.add(text, result)
        return result

    def prepare(self, texts: Iterable[str]) -> None:
        """Work for all short texts at once, so that a call for each finds its result."""
        short = self.short
        new = [
            text
            for text in dict.fromkeys(texts)
            if len(text) <= SHORT and text not in short.newer and text not in short.older
        ]
        if self.together is not None and len(new) > 1:
            for text, result in zip(new, self.together(new), strict=True):
                short.add(text, result)


def kept(work: Callable[[str], Result]) -> Kept[Result]:
    """The function with its last results kept."""
    return Kept(work)


def forget() -> None:
    """Forget all results, so that a measurement begins with nothing known."""
    for cache in CACHES:
        cache.forget()
