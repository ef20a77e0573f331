"""Finds a sequence that repeats itself: the AR has fallen into a loop and will not draw `<eos>`.

A frame is new if its code of codebook 0 was not among the `RECENT` frames before it. Speech has new frames
all the time, and so have its pauses. A loop has none.
"""

from __future__ import annotations

from array import array

from valle2.engine.bundle.contract import CODEBOOK_SIZE

RECENT = 75
"""Frames among which a code counts as repeated. A loop whose period is longer is not found."""


class LoopDetector:
    """Counts the frames since the last new one. Its memory is fixed, and a frame costs a look-up.

    Args:
        limit: frames without a new one that make a loop.
    """

    __slots__ = ("frame", "last", "limit", "run")

    def __init__(self, limit: int) -> None:
        self.limit, self.run, self.frame = limit, 0, RECENT
        self.last = array("q", bytes(8 * CODEBOOK_SIZE))

    def add(self, code: int) -> bool:
        """Take the next code, in 0..1023. Is the sequence in a loop now?"""
        self.frame += 1
        self.run = self.run + 1 if self.frame - self.last[code] <= RECENT else 0
        self.last[code] = self.frame
        return self.run >= self.limit
