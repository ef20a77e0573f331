"""The times of words: the likeliest path, its stability while codes arrive, and damaged tables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file

from valle2.engine import read_manifest
from valle2.engine.errors import ManifestError
from valle2.runtime import Valle2
from valle2.runtime.generation.alignment import FILE, Aligner, AlignmentTable, read_alignment
from valle2.runtime.types import Word, WordSpan

RATE = 75.0
IDS = np.arange(10, dtype=np.int64)
WORDS = (WordSpan("one", 1, 4), WordSpan("two", 5, 9))
"""Ids 0 and 4 are gaps, 9 is a mark."""


def clear_table() -> AlignmentTable:
    """Id k sounds as the codes 100 k to 100 k + 99, seldom as any other."""
    costs = np.full((10, 1024), 160, np.uint8)
    for index in range(10):
        costs[index, 100 * index : 100 * index + 100] = 16
    return AlignmentTable(IDS, costs, np.full(10, 4.0, np.float32))


def spoken(lengths: list[int], seed: int = 0, noise: float = 0.0) -> NDArray[np.int64]:
    """Codes of the ids in turn, each for so many frames."""
    rng = np.random.default_rng(seed)
    codes = np.repeat(IDS * 100, lengths) + rng.integers(0, 100, sum(lengths))
    return np.where(rng.random(len(codes)) < noise, rng.integers(0, 1024, len(codes)), codes)


def aligned(codes: NDArray[np.int64], piece: int = 10**6, complete: bool = True) -> list[tuple[Word, ...]]:
    aligner = Aligner(clear_table(), IDS, WORDS, RATE)
    found = [aligner.add(codes[at : at + piece]) for at in range(0, len(codes), piece)]
    return [*found, aligner.finish(complete)]


def frames(words: list[tuple[Word, ...]]) -> list[tuple[str, int, int]]:
    return [(one.text, round(one.start * RATE), round(one.end * RATE)) for part in words for one in part]


@pytest.mark.parametrize("piece", [1, 7, 30, 10**6])
@pytest.mark.parametrize("seed", range(5))
def test_the_words_are_where_they_are_spoken(seed: int, piece: int) -> None:
    lengths = np.random.default_rng(seed).integers(2, 12, 10).tolist()
    edges = np.cumsum([0, *lengths]).tolist()
    expected = [("one", edges[1], edges[4]), ("two", edges[5], edges[9])]
    assert frames(aligned(spoken(lengths, seed), piece)) == expected
    noisy = frames(aligned(spoken(lengths, seed, noise=0.1), piece))
    assert np.abs(np.array([n[1:] for n in noisy]) - np.array([e[1:] for e in expected])).max() <= 3


def test_a_word_is_given_once_it_is_certain_and_only_once() -> None:
    parts = aligned(spoken([5] * 10), piece=5)
    given = [[word.text for word in part] for part in parts]
    assert [word for part in given for word in part] == ["one", "two"]
    at = given.index(["one"])
    assert 4 <= at <= 6  # it ends with the fourth piece
    assert frames(parts) == frames(aligned(spoken([5] * 10)))


def test_speech_that_was_cut_has_the_words_that_were_reached() -> None:
    codes = spoken([5] * 10)[:18]
    assert frames(aligned(codes, complete=False)) == [("one", 5, 18)]
    assert [name for name, _, _ in frames(aligned(codes, complete=True))] == ["one", "two"]


@pytest.mark.parametrize("length", [1, 3, 9, 10])
def test_speech_shorter_than_its_ids(length: int) -> None:
    """Times stay within the speech and in order, whatever the codes are."""
    found = frames(aligned(spoken([1] * 10)[:length], piece=2))
    assert len(found) <= 2 and all(0 <= start <= end <= length for _, start, end in found)
    assert found == sorted(found, key=lambda word: word[1])


def test_no_frames_and_unknown_ids() -> None:
    assert aligned(np.zeros(0, np.int64)) == [()]
    aligner = Aligner(clear_table(), np.array([500, 600, 700]), [WordSpan("a", 0, 3)], RATE)
    aligner.add(spoken([5] * 10))
    assert [word.end for word in aligner.finish(complete=True)] == [50 / RATE]


def tensors() -> dict[str, NDArray[np.generic]]:
    table = clear_table()
    return {"ids": table.ids.astype(np.int32), "costs": table.costs, "frames": table.frames}


BAD = {
    "none": {},
    "no costs": {"ids": tensors()["ids"], "frames": tensors()["frames"]},
    "another dtype": tensors() | {"costs": np.zeros((10, 1024), np.float32)},
    "another shape": tensors() | {"costs": np.zeros((9, 1024), np.uint8)},
    "a column less": tensors() | {"costs": np.zeros((10, 1023), np.uint8)},
    "twice the same": tensors() | {"ids": np.zeros(10, np.int32)},
    "no rows": {k: v[:0] for k, v in tensors().items()},
    "not finite": tensors() | {"frames": np.full(10, np.nan, np.float32)},
}


@pytest.mark.parametrize("name", BAD)
def test_a_damaged_table(name: str, tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    save_file(BAD[name], str(tmp_path / FILE))
    with pytest.raises(ManifestError, match=r"alignment\.safetensors does not load: .+; get the bundle"):
        read_alignment(tmp_path, [FILE])


@pytest.mark.parametrize("content", [b"", b"\xff" * 40, b"\x08\0\0\0\0\0\0\0[]      "])
def test_a_file_that_is_no_table(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(ManifestError, match="does not load"):
        read_alignment(tmp_path, [FILE])
    assert read_alignment(tmp_path, []) is None  # a file that the manifest does not list is not read


def test_the_table_of_the_demo() -> None:
    demo = Valle2.load("demo", slots=1)
    table = demo.model.need_alignment()
    assert FILE in read_manifest(demo.path).files
    assert (
        40 <= len(table.ids) <= demo.manifest.sizes["vocab_size"] and (demo.path / FILE).stat().st_size < 2e5
    )
    assert np.allclose(np.exp(table.costs / -16.0).sum(axis=1), 1.0, atol=0.05)
