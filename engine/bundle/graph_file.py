"""Refuses an ONNX file that would read other files of the machine, or run operators without a bound.

A tensor may name any file as the place of its data. Tensors lie in the graph, in subgraphs, in functions and
in training graphs. The walk follows protobuf's wire format through every message that can hold a tensor. It
enters only messages whose bytes contain a word that it searches for, so it takes about a millisecond.
"""

from __future__ import annotations

import mmap
from bisect import bisect_left
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from valle2.engine.bundle.untrusted import shown
from valle2.engine.errors import BackendError, Valle2Error

LOCATION = b"location"
"""The key of the file name in a tensor's external data."""
REFUSED = {
    b"EPContext": "loads a compiled engine, which is machine code",
    b"Loop": "repeats a part of itself without a bound",
    b"Scan": "repeats a part of itself without a bound",
    b"SequenceMap": "repeats a part of itself without a bound",
}
"""Operators that no graph of valle2 has, and why they are refused."""
SHORTEST = min(map(len, (LOCATION, *REFUSED)))
CHILDREN: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
    "entry": {},
}
"""From onnx.proto: message, field number, and the message that the field holds."""
OPERATOR, KEY, VALUE = 4, 1, 2
MAX_WORDS, MAX_FIELDS, MAX_DEPTH = 100_000, 300_000, 100
MAX_FIELD_NUMBER = 2**29
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
SIZES = {FIXED64: 8, FIXED32: 4}
GROUP = (3, 4)
"""Wire types of the begin and end of a group, which protobuf skips. No ONNX graph has one."""
Data = bytes | mmap.mmap


class GroupError(ValueError):
    """The file has a group."""


def check_graph_file(path: Path, names: Collection[str]) -> None:
    """Refuse a graph that reads other files than those named.

    Args:
        names: files beside the graph whose hashes are known.

    Raises:
        ValueError: it reads another file, has an operator of `REFUSED` or a function, or is no ONNX graph.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        if not path.stat().st_size:
            raise ValueError("is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for location in locations(data):
                if "/" in location or location not in names:
                    raise ValueError(f"reads its weights from {shown(location)}, without a hash")
            refuse_functions(data)


def refuse_functions(data: Data) -> None:
    """Refuse functions. A few that call one another twice each become a huge graph when they are inlined.

    Raises:
        ValueError: the model has a function, or so many parts that one may be hidden.
    """
    count = 0
    try:
        for number, _, _ in fields(data, 0, len(data)):
            count += 1
            if count > MAX_FIELDS or CHILDREN["model"].get(number) == "function":
                break
        else:
            return
    except GroupError:
        raise
    except ValueError:
        return  # ONNX Runtime does not read it either
    if count > MAX_FIELDS:
        raise ValueError(f"has more than {MAX_FIELDS} parts around its weights")
    raise ValueError("has functions of its own, which no graph of valle2 has")


def locations(data: Data) -> set[str]:
    """Names of all files that a graph reads.

    Raises:
        ValueError: the file is damaged, or it has an operator of `REFUSED`.
    """
    places = sorted(place for word in (LOCATION, *REFUSED) for place in occurrences(data, word))
    found: set[str] = set()
    waiting = [(0, len(data), "model", 0)] if places else []
    places.append(len(data))
    count = 0
    while waiting:
        start, end, message, depth = waiting.pop()
        if depth > MAX_DEPTH:
            raise ValueError("is nested too deeply")
        children = CHILDREN[message]
        texts: list[tuple[int, bytes]] = []
        for number, first, last in fields(data, start, end):
            count += 1
            if count > MAX_FIELDS:
                raise ValueError(f"has more than {MAX_FIELDS} parts around its weights")
            if number in children:
                if last - first >= SHORTEST and places[bisect_left(places, first)] < last:
                    waiting.append((first, last, children[number], depth + 1))
            elif message == "entry" and number in (KEY, VALUE):
                texts.append((number, data[first:last]))
            elif message == "node" and number == OPERATOR and (operator := data[first:last]) in REFUSED:
                raise ValueError(f"{REFUSED[operator]} ({operator.decode()})")
        if (KEY, LOCATION) in texts:  # if a field is repeated, readers take the last, so all must be good
            found |= {text.decode("utf-8", "replace") for number, text in texts if number == VALUE}
    return found


def occurrences(data: Data, word: bytes) -> Iterator[int]:
    """Offsets at which a word begins."""
    place = data.find(word)
    for _ in range(MAX_WORDS):
        if place < 0:
            return
        yield place
        place = data.find(word, place + len(word))
    raise ValueError(f"has more than {MAX_WORDS} weights")


def fields(data: Data, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """The number of every field, and the begin and end of its content; zeros for a field of fixed size.

    Raises:
        ValueError: the bytes are no message.
    """
    while start < end:
        tag, start = (data[start], start + 1) if data[start] < 128 else varint(data, start, end)
        number, kind = tag >> 3, tag & 7
        if not 0 < number < MAX_FIELD_NUMBER:
            raise ValueError("is damaged: no ONNX graph")
        if kind == BYTES:
            short = start < end and data[start] < 128  # nearly all sizes are short, and a call is slow
            size, start = (data[start], start + 1) if short else varint(data, start, end)
            if size > end - start:
                raise ValueError("is cut off")
            yield number, start, start + size
            start += size
        elif kind == VARINT:
            start = varint(data, start, end)[1]
            yield 0, 0, 0
        elif kind in SIZES:
            start += SIZES[kind]
            yield 0, 0, 0
        elif kind in GROUP:
            raise GroupError("is damaged: no ONNX graph")
        else:
            raise ValueError("is damaged: no ONNX graph")
    if start > end:
        raise ValueError("is cut off")


def varint(data: Data, start: int, end: int) -> tuple[int, int]:
    """A number of up to ten bytes, and the offset of its end."""
    value = 0
    for shift in range(0, 70, 7):
        if start >= end:
            raise ValueError("is cut off")
        byte = data[start]
        start += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, start
    raise ValueError("is damaged: no ONNX graph")


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn any error that onnx raises about a graph into one sentence.

    Raises:
        BackendError: the block raised an error that is neither of valle2 nor of the operating system.
    """
    try:
        yield
    except Valle2Error:
        raise
    except OSError:
        raise
    except Exception as error:  # protobuf's, onnx's and numpy's errors share no base class
        reason = " ".join(str(error).split())[:120]
        raise BackendError(
            f"{path} is not a graph that valle2 exports ({type(error).__name__}: {reason}); export it again"
        ) from None
