"""Faster or slower speech at the same pitch: WSOLA, piece by piece.

Waveform similarity overlap-add (Verhelst and Roelands, 1993) takes windows of the speech at the distance of
the new speed and adds them half overlapped. Each window is moved by up to `REACH_SECONDS`, to where it
continues the one before it best, so that the periods of a voice stay whole. The notes say which libraries
were tried (docs/notes/speech.md).
"""

from __future__ import annotations

import numpy as np

from valle2.runtime.audio.io import FADE_SECONDS, join
from valle2.runtime.types import Audio

HOP_SECONDS = 0.015
"""Between two windows of the output; a window is twice as long."""
REACH_SECONDS = 0.0075
"""How far a window moves either way: both ways together are a period of the lowest voices, 67 Hz."""
EPSILON = 1e-8


class TimeStretcher:
    """Changes the speed of one sentence.

    The output has `round(N / speed)` samples for N of the input. It begins with the input's first sample, and
    it never waits for more than `lookahead` samples of the input.

    Args:
        speed: 0.25 to 4; 2 is twice as fast. rate: Hz.
    """

    def __init__(self, speed: float, rate: int) -> None:
        self.speed = speed
        self.hop, self.reach = round(HOP_SECONDS * rate), round(REACH_SECONDS * rate)
        self.fade = round(FADE_SECONDS * rate)
        # this much leaves at least `fade` samples of the output for the sentence's end, up to speed 4
        self.lookahead = 2 * self.hop + self.reach
        self.rise = np.sin(np.arange(self.hop, dtype=np.float32) * (np.pi / 2 / self.hop)) ** 2
        self.input = np.zeros(0, np.float32)
        self.dropped = 0  # samples of the input before `input`
        self.received = 0
        self.windows = 0
        self.position = 0  # in the whole input: where the last window began
        self.sent = 0

    def add(self, audio: Audio, *, last: bool) -> Audio:
        """Take the next piece (N,) float32 of the sentence; return what is final of the output."""
        self.received += len(audio)
        self.input = np.concatenate([self.input, audio])
        total = round(self.received / self.speed)
        if last:
            self.input = np.concatenate([self.input, np.zeros(self.lookahead + self.hop, np.float32)])
        pieces = []
        while self.sent < total if last else self.wanted + self.lookahead <= self.received:
            pieces.append(self.next_piece())
            self.sent += self.hop
        self.forget()
        out = join(pieces)
        if last:
            out = out[: len(out) - max(0, self.sent - total)]
            size = min(self.fade, len(out))
            out[len(out) - size :] *= np.linspace(1, 0, size, dtype=np.float32)
        return out

    @property
    def wanted(self) -> int:
        """Where in the whole input the next window begins, before it is moved: the middles correspond."""
        start = round((self.windows + 1) * self.hop * self.speed) - self.hop
        return max(0, start) if self.windows else 0

    def next_piece(self) -> Audio:
        """`hop` samples: the falling half of the last window and the rising half of the next one."""
        if not self.windows:
            self.windows = 1
            return self.part(0, self.hop)
        before = self.part(self.position + self.hop, self.hop)
        self.position = self.best_position(before)
        self.windows += 1
        after = self.part(self.position, self.hop)
        return np.asarray(before + self.rise * (after - before))

    def best_position(self, before: Audio) -> int:
        """Where the next window begins: within reach of `wanted`, where it is most like `before`."""
        start = max(0, self.wanted - self.reach)
        candidates = self.part(start, self.wanted + self.reach + self.hop - start)
        sums = np.concatenate([[0.0], np.cumsum(np.square(candidates, dtype=np.float64))])
        energies = sums[self.hop :] - sums[: -self.hop]
        likeness = np.correlate(candidates, before, "valid") / np.sqrt(energies + EPSILON)
        return start + int(np.argmax(likeness))

    def part(self, start: int, length: int) -> Audio:
        """A part of the input; `start` counts from its beginning. Zeros stand where it has ended."""
        part = self.input[start - self.dropped : start - self.dropped + length]
        return part if len(part) == length else np.pad(part, (0, length - len(part)))

    def forget(self) -> None:
        """Drop the input that no window needs any more."""
        needed = min(self.position + self.hop, self.wanted - self.reach) - self.dropped
        unneeded = min(max(0, needed), len(self.input))
        self.input, self.dropped = self.input[unneeded:], self.dropped + unneeded
