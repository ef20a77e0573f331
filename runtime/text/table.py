"""Files of a front end: bounded reading, and tables of key<TAB>value lines.

A table is searched where it lies, because a dict of it would take ten times the memory of its file.
"""

from __future__ import annotations

from bisect import bisect_left
from codecs import getincrementaldecoder
from collections.abc import Collection, ItemsView, Iterator, Mapping, ValuesView
from pathlib import Path
from typing import Any

from valle2.engine.bundle.untrusted import read_bounded

MAX_BYTES = 32 * 2**20
"""Bytes of a file, unless the caller allows fewer."""
MAX_TABLE, MAX_LINES, MAX_LINE = 16 * 2**20, 400_000, 1024
"""Bytes of a table, its lines, and bytes of a line. The demo's lexicon has 2 MB in 83,427 lines."""
CHUNK = 2**16
"""Bytes that are decoded at once."""
BLOCK = 512
"""Bytes that a look-up searches, at most one line more."""


class SortedTable(Mapping[str, str]):
    """A mapping over sorted lines.

    Args:
        lines: key, tab, value, in any order; lines without a tab are left out. Of a key given twice the
            lower value counts.
    """

    def __init__(self, lines: list[bytes]) -> None:
        # A tab sorts before every character of a key, so sorted lines have sorted keys.
        lines = sorted(line for line in lines if b"\t" in line)
        self.data = b"".join([b"\n", *(line + b"\n" for line in lines)])
        self.starts = [1]  # where each block begins, and the end of the data
        while self.starts[-1] < len(self.data):
            after = min(self.starts[-1] + BLOCK, len(self.data) - 1)
            self.starts.append(self.data.index(b"\n", after) + 1)
        self.first = [self.data[start : self.data.index(b"\t", start) + 1] for start in self.starts[:-1]]

    def __getitem__(self, key: str) -> str:
        found: str | None = self.get(key)
        if found is None:
            raise KeyError(key)
        return found

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key, or the default. Most look-ups fail, and raising an error takes long."""
        line = key.encode() + b"\t"
        block = max(0, bisect_left(self.first, line) - 1)
        stop = self.starts[block + 1] if self.first else 0
        # The key may be that of the next block's first line, so the search runs into it.
        found = self.data.find(b"\n" + line, self.starts[block] - 1, stop + len(line))
        if found < 0:
            return default
        begin = found + 1 + len(line)
        return self.data[begin : self.data.index(b"\n", begin)].decode()

    def __iter__(self) -> Iterator[str]:
        return (line.split(b"\t", 1)[0].decode() for line in self.data[1:].splitlines())

    def values(self) -> ValuesView[str]:
        """The values in the order of their keys, without a look-up for each."""
        return [line.split(b"\t", 1)[1].decode() for line in self.data[1:].splitlines()]  # type: ignore[return-value]

    def items(self) -> ItemsView[str, str]:
        """Keys and values in their order, without a look-up for each."""
        lines = self.data[1:-1].decode().split("\n")
        return [line.split("\t", 1) for line in lines if line]  # type: ignore[return-value]

    def __len__(self) -> int:
        return self.data.count(b"\n") - 1


def parse_table(data: bytes) -> SortedTable:
    """Parse UTF-8 text. Values are decoded when they are asked for.

    Raises:
        UnicodeDecodeError: it is not UTF-8.
        ValueError: a line has more than `MAX_LINE` bytes.
    """
    check_utf8(data)
    lines = data.splitlines()
    longest = max(map(len, lines), default=0)
    if longest > MAX_LINE:
        raise ValueError(f"a line has {longest} bytes; expected at most {MAX_LINE}")
    return SortedTable(lines)


def check_utf8(data: bytes) -> None:
    """Decode the data in chunks, because the whole as a str may take four times its bytes."""
    decoder = getincrementaldecoder("utf-8")()
    for start in range(0, len(data), CHUNK):
        decoder.decode(data[start : start + CHUNK])
    decoder.decode(b"", final=True)


def read_text(folder: Path, name: str, files: Collection[str], most: int = MAX_BYTES) -> bytes:
    """Read a file that the manifest lists.

    Raises:
        ValueError: it is not listed, not there, or larger than `most` bytes.
    """
    if name not in files:
        raise ValueError(f"the bundle lists no {name}")
    try:
        return read_bounded(folder / name, most)
    except OSError as error:
        raise ValueError(f"{name}: {error.strerror}") from None


def read_table(folder: Path, name: str, files: Collection[str]) -> SortedTable:
    """Read a table that the manifest lists.

    Raises:
        ValueError: see `read_text`; or it is not UTF-8 text, has too many lines, or one that is too long.
    """
    data = read_text(folder, name, files, MAX_TABLE)
    if data.count(b"\n") + data.count(b"\r") > MAX_LINES:
        raise ValueError(f"{name} has more than {MAX_LINES} lines")
    try:
        return parse_table(data)
    except UnicodeDecodeError:
        raise ValueError(f"{name} is not UTF-8 text") from None
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
