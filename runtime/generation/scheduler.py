"""Decides which sequences run and in which row. Knows statuses and row numbers; holds no array.

Continuous batching. As soon as there is a free row, the waiting sequence whose listener needs audio first
takes the lowest one; of two that are due at the same time, the one that came first. One sequence prefills at
a time, a chunk between two AR steps, so that a long prompt does not hold up the rows that decode. A row is
free as soon as its sequence has finished or was cancelled.
"""

from __future__ import annotations

from collections import deque

from valle2.runtime.generation.sequence import Sequence, Status


class Scheduler:
    """Rows of one AR batch and the sequences that wait for one.

    Args:
        rows: how many sequences decode side by side.
    """

    def __init__(self, rows: int) -> None:
        self.waiting: deque[Sequence] = deque()
        self.rows: list[Sequence | None] = [None] * rows

    def add(self, sequence: Sequence) -> Sequence:
        """Queue a sequence; returns it."""
        self.waiting.append(sequence)
        return sequence

    def decoding(self) -> list[Sequence]:
        """The sequences that take part in the next AR step, in the order of their rows."""
        return [sequence for sequence in self.rows if sequence and sequence.status is Status.DECODE]

    def next_prefill(self) -> Sequence | None:
        """The sequence whose next chunk is due: the one in PREFILL, else the one due first, in a free row."""
        for sequence in self.rows:
            if sequence and sequence.status is Status.PREFILL:
                return sequence
        if not self.waiting or None not in self.rows:
            return None
        sequence = min(self.waiting, key=lambda one: one.playback.due)
        self.waiting.remove(sequence)
        sequence.status, sequence.row = Status.PREFILL, self.rows.index(None)
        self.rows[sequence.row] = sequence
        return sequence

    @property
    def prefills(self) -> bool:
        """Is a prefill under way, or does one begin with the next call of `next_prefill`?"""
        if self.waiting and None in self.rows:
            return True
        return any(sequence and sequence.status is Status.PREFILL for sequence in self.rows)

    def retire(self) -> list[Sequence]:
        """Free the rows of finished sequences and forget those that wait in vain; returns the former."""
        freed = [sequence for sequence in self.rows if sequence and sequence.finished]
        for sequence in freed:
            self.rows[sequence.row] = None
        if any(sequence.finished for sequence in self.waiting):
            self.waiting = deque(sequence for sequence in self.waiting if not sequence.finished)
        return freed

    @property
    def active(self) -> int:
        """Rows in use."""
        return sum(sequence is not None for sequence in self.rows)
