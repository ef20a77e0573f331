"""When each word of a sentence is heard: its ids aligned with its codes.

An `AlignmentTable` says how likely a code of codebook 0 is while the sound of an id is spoken, and how long
that sound lasts. `Aligner` finds the likeliest monotonic path through a sentence's ids (Viterbi) while codes
arrive. Knows ids and codes; a word is a span of ids with a label.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load

from valle2.engine.bundle.contract import CODEBOOK_SIZE
from valle2.engine.bundle.untrusted import read_bounded
from valle2.engine.errors import ManifestError
from valle2.runtime.types import Word, WordSpan

FILE = "text/alignment.safetensors"
"""The table's file in a bundle."""
MAX_IDS, MAX_BYTES = 2048, 4 * 2**20
"""Rows and bytes of the largest table that is read."""
STEPS_PER_NAT = 16
"""The table keeps negative log probabilities as bytes in steps of 1/16 nat."""
SHORTEST_FRAMES = 1.05
"""The shortest mean length of a sound. A path may leave it after one frame."""
UNKNOWN_FRAMES = 4.0
"""The mean length of an id without a row."""
BEAM_NATS = 12.0
"""While codes arrive, paths that are so much less likely than the best do not decide."""
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class AlignmentTable:
    """How ids sound in codes of codebook 0.

    Args:
        ids: (K,) int64, each once. costs: (K, 1024) uint8: -16 ln P(code | id).
        frames: (K,) float32: mean length of an id's sound in frames.
    """

    ids: NDArray[np.int64]
    costs: NDArray[np.uint8]
    frames: NDArray[np.float32]

    @classmethod
    def of(cls, tensors: Mapping[str, NDArray[np.generic]]) -> AlignmentTable:
        """The table of a file's tensors.

        Raises:
            ValueError: a tensor is missing, or has another shape, dtype or range.
        """
        expected = {"ids": ("int32", 1), "costs": ("uint8", 2), "frames": ("float32", 1)}
        for name, (dtype, axes) in expected.items():
            tensor = tensors.get(name)
            if tensor is None or tensor.dtype != dtype or tensor.ndim != axes:
                given = "nothing" if tensor is None else f"{tensor.dtype} {tensor.shape}"
                raise ValueError(f"{name} is {given}; expected {dtype} with {axes} axes")
        ids, costs, frames = (tensors[name] for name in expected)
        count = len(ids)
        if costs.shape != (count, CODEBOOK_SIZE) or frames.shape != (count,) or not 0 < count <= MAX_IDS:
            raise ValueError(
                f"ids {ids.shape}, costs {costs.shape}, frames {frames.shape}; expected (K,), "
                f"(K, {CODEBOOK_SIZE}) and (K,) with K in 1..{MAX_IDS}"
            )
        if len(np.unique(ids)) != count or not np.isfinite(frames.astype(np.float64)).all():
            raise ValueError("an id stands twice, or a length is not finite")
        order = np.argsort(ids)
        return cls(
            ids[order].astype(np.int64), costs[order].astype(np.uint8), frames[order].astype(np.float32)
        )

    def rows(self, ids: NDArray[np.int64]) -> tuple[Floats, Floats]:
        """Costs in nats (S, 1024) and mean frames (S,) of a sentence's ids; an unknown id fits every code."""
        found = np.minimum(np.searchsorted(self.ids, ids), len(self.ids) - 1)
        known = self.ids[found] == ids
        costs = np.where(known[:, None], self.costs[found], STEPS_PER_NAT * np.log(CODEBOOK_SIZE))
        frames = np.where(known, self.frames[found], UNKNOWN_FRAMES)
        return costs / STEPS_PER_NAT, np.maximum(frames, SHORTEST_FRAMES).astype(np.float64)


def read_alignment(folder: Path, files: Collection[str]) -> AlignmentTable | None:
    """The table of a bundle, or None if its manifest lists none.

    Raises:
        ManifestError: the file is damaged.
    """
    if FILE not in files:
        return None
    try:
        return AlignmentTable.of(load(read_bounded(folder / FILE, MAX_BYTES)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ManifestError(f"{folder / FILE} does not load: {reason}; get the bundle again") from None


def spoken_id(table: AlignmentTable, ids: NDArray[np.int64], codes: NDArray[np.int64], frame: int) -> int:
    """Index of the id whose sound is in a frame.

    Args:
        ids: (S,) int64, S >= 1. codes: (T,) int64 of codebook 0, in which all ids are spoken.
        frame: in 0..T-1.
    """
    aligner = Aligner(table, ids, (), 1.0)
    aligner.add_costs(codes)
    reached = np.flatnonzero(np.isfinite(aligner.scores))
    return int(aligner.path(reached[-1])[frame])


class Aligner:
    """Finds the words of one sentence in its codes.

    Args:
        ids: (S,) int64 of the sentence alone. words: spans of these ids, in order.
        frame_rate: frames a second.
    """

    def __init__(
        self, table: AlignmentTable, ids: NDArray[np.int64], words: Sequence[WordSpan], frame_rate: float
    ) -> None:
        costs, frames = table.rows(ids)
        self.costs = np.ascontiguousarray(costs.T)  # (1024, S)
        self.stay, self.leave = -np.log1p(-1 / frames), np.log(frames)
        self.words, self.frame_rate = words, frame_rate
        self.scores = np.full(len(ids), np.inf)
        self.moves: list[NDArray[np.bool_]] = []  # for each frame: did the best path just enter this id?
        self.found = 0
        self.last_end = 0

    def add(self, codes: NDArray[np.int64]) -> tuple[Word, ...]:
        """Take the next codes (T,) of codebook 0; return the words whose times are certain now."""
        self.add_costs(codes)
        near = np.flatnonzero(self.scores <= self.scores.min(initial=np.inf) + BEAM_NATS)
        if not self.moves or not len(near):
            return ()
        # Two best paths that meet stay together before. So all that may win lie between these two.
        first, last = self.path(near[0]), self.path(near[-1])
        return self.take(first, int(np.argmax(np.append(first != last, True))))

    def finish(self, complete: bool) -> tuple[Word, ...]:
        """The words that are left. complete: has the sentence been spoken to its end?

        Of an incomplete sentence only the words are returned that the best path has entered.
        """
        count, frames = len(self.scores), len(self.moves)
        if not frames or not count:
            return ()
        if complete and frames < count:  # too short for a frame each
            return self.take(np.arange(frames) * count // frames, frames, at_end=True)
        return self.take(self.path(count - 1 if complete else int(self.scores.argmin())), frames, at_end=True)

    def add_costs(self, codes: NDArray[np.int64]) -> None:
        """Continue the best paths over the next codes (T,) of codebook 0."""
        for costs in self.costs[codes]:
            self.advance(costs)

    def advance(self, costs: Floats) -> None:
        """One frame: each id's best path stays in it or enters it from the one before."""
        stayed, entered = self.scores + self.stay, np.full(len(self.scores), np.inf)
        entered[1:] = self.scores[:-1] + self.leave[:-1]
        if not self.moves:
            entered[:1] = 0.0
        self.moves.append(entered < stayed)
        self.scores = np.minimum(stayed, entered) + costs

    def path(self, index: int) -> NDArray[np.int64]:
        """(T,) the index of the id in each frame of the best path that ends in `index`."""
        out = np.empty(len(self.moves), np.int64)
        for frame in range(len(self.moves) - 1, -1, -1):
            out[frame] = index
            index -= int(self.moves[frame][index]) if frame else 0
        return out

    def take(self, path: NDArray[np.int64], frames: int, at_end: bool = False) -> tuple[Word, ...]:
        """The next words in the first `frames` frames of a path.

        Args:
            at_end: no more frames come, so a word may end with the last one.
        """
        out = []
        for word in self.words[self.found :]:
            start, end = np.searchsorted(path[:frames], [word.start, word.end])
            if start == frames or (end == frames and not at_end):
                break
            start, end = max(int(start), self.last_end), max(int(end), self.last_end)
            out.append(Word(word.text, start / self.frame_rate, end / self.frame_rate))
            self.found, self.last_end = self.found + 1, end
        return tuple(out)
