"""Tables of key<TAB>value lines, searched where they lie: as a dict they would take ten times their file."""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Iterator, Mapping

MAX_LINE = 1024
"""Bytes of a line: the demo's longest has 89. Looking an entry up may read several lines."""
BLOCK = 2**16


class Entries(Mapping[str, str]):
    """A mapping over sorted lines.

    Args:
        lines: key, tab, value, in any order; lines without a tab are left out. Of a key given twice the
            lower value counts.
    """

    def __init__(self, lines: list[bytes]) -> None:
        # A tab is lower than what a key is made of, so that sorted lines have sorted keys.
        lines = [line for line in lines if b"\t" in line]
        lines.sort()
        lines.append(b"")  # so that the last line, too, ends with a line feed
        self.data = b"\n".join(lines)

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


def entries_of(data: bytes) -> Entries:
    """The entries of UTF-8 text.

    Raises:
        UnicodeDecodeError: it is none. The entries decode each value when it is asked for.
        ValueError: a line has more than `MAX_LINE` bytes.
    """
    check_utf8(data)
    lines = data.splitlines()
    longest = max(map(len, lines), default=0)
    if longest > MAX_LINE:
        raise ValueError(f"a line has {longest} bytes; expected at most {MAX_LINE}")
    return Entries(lines)


def check_utf8(data: bytes) -> None:
    """Decode all of it, and keep none: as a str it may take four times its bytes."""
    decoder = getincrementaldecoder("utf-8")()
    for start in range(0, len(data), BLOCK):
        decoder.decode(data[start : start + BLOCK])
    decoder.decode(b"", final=True)
