"""Read and write the training speech: shards of utterances, labels of frames, codes, symbol ids."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from demo.speech.speak import HOP, vocabulary

Array = np.ndarray[Any, Any]
LABEL_DELAY = 4.0
"""Frames by which the teachers' durations lag the sound. demo/studies/label_delay.py finds no better shift in
steps of 1.5 frames, except for the resampled voice `coral`, whose lag is one step less."""


WORN = "codes-worn"
"""The folder of codes of simulated recordings, beside `codes`."""


@dataclass(frozen=True, slots=True)
class Utterance:
    """One spoken sentence. ids: (S,) symbol ids; ends: (S,) frame where each symbol ends; audio: int16."""

    voice: str
    text: str
    ids: Array
    ends: Array
    audio: Array

    @property
    def frames(self) -> int:
        return len(self.audio) // HOP

    @property
    def wave(self) -> Array:
        """(N,) float32 in -1..1."""
        return np.asarray(self.audio.astype(np.float32) / 32768)

    def labels(self) -> Array:
        """(T,) the symbol spoken in the middle of each frame."""
        index = np.searchsorted(self.ends, np.arange(self.frames) + 0.5)
        return np.asarray(self.ids[np.minimum(index, len(self.ids) - 1)])


def symbols() -> list[str]:
    """The symbols in the order of our text ids; the teachers' table has holes, ours has none."""
    return list(vocabulary())


def read_rows(path: Path) -> list[tuple[str, str, Array, Array, Array]]:
    """A shard as `write_shard` wrote it: voice, text, the teacher's ids, durations in samples, audio."""
    with np.load(path) as shard:
        parts = (
            np.split(shard[name], np.cumsum(shard[f"{name}_lengths"])[:-1])
            for name in ("ids", "durations", "audio")
        )
        named = zip(shard["voice"], shard["text"], *parts, strict=True)
        return [(str(voice), str(text), *arrays) for voice, text, *arrays in named]


def read_shard(path: Path) -> list[Utterance]:
    """All utterances of one shard."""
    order = {number: index for index, number in enumerate(vocabulary().values())}
    return [
        Utterance(
            voice,
            text,
            np.array([order[int(i)] for i in ids], np.int64),
            np.maximum(np.cumsum(durations) / HOP - LABEL_DELAY, 0.0),
            audio,
        )
        for voice, text, ids, durations, audio in read_rows(path)
    ]


def shards(work: Path) -> list[Path]:
    """Paths of all finished shards."""
    return sorted(p for p in (work / "speech").glob("*.npz") if not p.name.endswith(".tmp.npz"))


def is_held_out(path: Path) -> bool:
    """Is this a source's first shard, from which nothing is learnt?"""
    return path.stem.endswith("-0000")


def read_codes(path: Path) -> list[Array]:
    """Codes (T, 8) int16 of a shard's utterances."""
    with np.load(path) as found:
        return np.split(found["codes"], np.cumsum(found["lengths"])[:-1])


def write_codes(path: Path, codes: list[Array]) -> None:
    """Write the codes (T, 8) of a shard's utterances."""
    np.savez(path, codes=np.concatenate(codes), lengths=np.array([len(c) for c in codes]))
