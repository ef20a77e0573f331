"""Tables of key<TAB>value lines, searched where they lie: as a dict they would take ten times their file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path


class Entries(Mapping[str, str]):
    """A mapping over sorted lines.

    Args:
        lines: key, tab, value, in any order; lines without a tab are left out. Of a key given twice the
            lower value counts.
    """

    def __init__(self, lines: list[bytes]) -> None:
        # A tab is lower than what a key is made of, so that sorted lines have sorted keys.
        self.data = b"".join(line + b"\n" for line in sorted(lines) if b"\t" in line)

    def __getitem__(self, key: str) -> str:
        line = key.encode() + b"\t"
        low, high = 0, len(self.data)  # both at the beginning of a line, or at the end
        while low < high:
            start = self.data.rfind(b"\n", low, (low + high) // 2) + 1 or low
            stop = self.data.index(b"\n", start) + 1
            if self.data[start:stop] < line:
                low = stop
            else:
                high = start
        if not self.data.startswith(line, low):
            raise KeyError(key)
        return self.data[low + len(line) : self.data.index(b"\n", low)].decode()

    def __iter__(self) -> Iterator[str]:
        return (line.split(b"\t", 1)[0].decode() for line in self.data.splitlines())

    def __len__(self) -> int:
        return self.data.count(b"\n")


def read_entries(path: Path) -> Entries:
    """The entries of a UTF-8 file."""
    return entries_of(path.read_bytes())


def entries_of(data: bytes) -> Entries:
    """The entries of UTF-8 text.

    Raises:
        ValueError: it is none. The entries decode each value when it is asked for.
    """
    data.decode()
    return Entries(data.splitlines())
