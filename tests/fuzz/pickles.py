"""Makes pickles that need code, memory or time: known bombs, changed valid pickles, random programs."""

from __future__ import annotations

import pickle
import pickletools
import random
import struct
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

from valle2.export.weights.admitted import NAMES
from valle2.export.weights.pickles import STEPS

HOSTILE_NAMES = (
    ("os", "system"),
    ("posix", "mkdir"),
    ("builtins", "eval"),
    ("builtins", "exec"),
    ("builtins", "getattr"),
    ("builtins", "__import__"),
    ("builtins", "object"),
    ("operator", "attrgetter"),
    ("functools", "partial"),
    ("torch", "load"),
    ("torch.jit", "load"),
    ("torch.storage", "_load_from_bytes"),
    ("torch.serialization", "load"),
    ("numpy", "load"),
    ("numpy.core.multiarray", "fromfile"),
    ("numpy.f2py.crackfortran", "getlincoef"),
    ("subprocess", "Popen"),
    ("copyreg", "_reconstructor"),
    ("types", "FunctionType"),
    ("collections", "OrderedDict.__reduce__"),
    ("torch._utils", "_rebuild_tensor_v2.__globals__"),
    ("torch\nos", "system\x1b[2J"),
)
WORDS = ("storage", "0", "cpu", "f8", "<f4", "V9", "O", "", "a\nb", "latin1", "\ud800", "x" * 99)
HUGE = (0, 1, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1)


def bomb(mark: Path) -> bytes:
    """A pickle that makes a folder if it is run."""
    return b"\x80\x02cposix\nmkdir\nX" + struct.pack("<I", len(str(mark))) + str(mark).encode() + b"\x85R."


def doubling(rounds: int, wrap: bytes, last: bytes) -> bytes:
    """Nested pairs of the same tuple: 2**rounds leaves."""
    return b"\x80\x02)" + b"2\x86" * rounds + wrap + last + b"."


def long_text(size: int) -> bytes:
    """One four-byte character among many one-byte characters."""
    raw = "a" * size + "\U0001f600"
    return b"\x80\x02X" + struct.pack("<I", len(raw.encode())) + raw.encode() + b"."


def colliding_keys(count: int) -> bytes:
    """Whole numbers with the same hash."""
    keys = b"".join(b"\x8a\x0c" + (k * (2**61 - 1)).to_bytes(12, "little") + b"N" for k in range(count))
    return b"\x80\x02}(" + keys + b"u."


def colliding_tuples(count: int) -> bytes:
    """Many tuples as keys."""
    return (
        b"\x80\x02}("
        + b"".join(struct.pack("<cici", b"J", k, b"J", -k) + b"\x86N" for k in range(count))
        + b"u."
    )


def copies(name: bytes, size: int, count: int) -> bytes:
    """Many containers, each made from the same long one."""
    head = b"\x80\x02c" + name + b"q\x00(" + b"K\x01" * size + b"t\x85q\x01("
    return head + b"h\x00h\x01R" * count + b"t."


def text(value: str) -> bytes:
    raw = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(raw)) + raw


def again(setup: bytes, name: bytes, arguments: bytes, count: int) -> bytes:
    """Many calls of a name with the same arguments. setup: puts their values into the memo."""
    head = b"\x80\x02" + setup + b"c" + name + b"q\x030" + arguments + b"q\x040("
    return head + b"h\x03h\x04R" * count + b"t."


def wide_scalar() -> bytes:
    """A NumPy text of ten thousand wide characters, many times."""
    raw = "\U00010000".encode("utf-32-le") * 9999
    kind = (
        b"cnumpy\ndtype\n" + text("<U9999") + b"\x85Rq\x010B" + struct.pack("<I", len(raw)) + raw + b"q\x020"
    )
    return again(kind, b"numpy._core.multiarray\nscalar\n", b"h\x01h\x02\x86", 20000)


def many_axes() -> tuple[bytes, bytes]:
    """An empty array of 32 axes that is filled many times, and one that is made many times."""
    shape = b"(" + b"K\x00" * 32 + b"t"
    kind = b"cnumpy\ndtype\n" + text("<f4") + b"\x85Rq\x010"
    state = b"(K\x01" + shape + b"h\x01\x89C\x00tq\x020"
    array = b"cnumpy._core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"
    made = again(
        kind, b"numpy._core.numeric\n_frombuffer\n", b"(C\x00h\x01" + shape + text("C") + b"t", 40000
    )
    return b"\x80\x02" + kind + state + array + b"h\x02b" * 100000 + b".", made


def number_keys(count: int) -> bytes:
    """A dictionary with many numbers as keys, which could be chosen to collide."""
    return b"\x80\x02}(" + b"".join(struct.pack("<ci", b"J", 3 * k) + b"N" for k in range(count)) + b"u."


BOMBS: tuple[bytes, ...] = (
    b"\x80\x02Nr\xff\xff\xff\x7f.",  # a memo of 2**31 entries
    b"\x80\x02Nr\xff\xff\xff\x1f.",
    b"\x80\x04\x95" + b"\xff" * 8 + b"N.",
    b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b"x.",
    b"\x80\x05\x96" + struct.pack("<Q", 2**62) + b".",
    b"\x80\x02\x8b\xff\xff\xff\x7f.",
    b"\x80\x02B\xff\xff\xff\xff.",
    b"\x80\x02\x8b" + struct.pack("<i", -5) + b"x.",
    b"\x80\x03cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R.",
    b"\x80\x03cbuiltins\nbytes\nJ\xff\xff\xff\x7f\x85R.",
    b"\x80\x03cbuiltins\nrange\nK\x00\x8a\x08" + b"\xff" * 7 + b"\x7f\x86R.",
    b"\x80\x03cbuiltins\nlist\ncbuiltins\nrange\n\x8a\x06\xff\xff\xff\xff\xff\x7f\x85R\x85R.",
    b"\x80\x03cbuiltins\nint\nX" + struct.pack("<I", 10**5) + b"9" * 10**5 + b"\x85R.",
    b"\x80\x02cnumpy\ndtype\nX\x0a\x00\x00\x00V999999999\x85R.",
    b"\x80\x02cnumpy\ndtype\nX\x02\x00\x00\x00O8\x85R.",
    b"\x82\x01.",
    b"\x80\x02(i__main__\nX\n.",
    b"(dp0\nS'a'\np1\nI1\ns.",
    b"\x80\x02" + b"(" * 50000 + b".",
    b"\x80\x02" + b"]" * 50000 + b"a" * 49999 + b".",
    b"\x80\x02)" + b"\x85" * 100000 + b".",
    doubling(60, b"", b""),
    doubling(60, b"", b"cbuiltins\nset\n]2\x85R0"),
    b"\x80\x02cbuiltins\nset\n](" + b")" + b"2\x86" * 60 + b"e\x85R.",
    b"\x80\x02}" + b")" + b"2\x86" * 60 + b"Ns.",
    b"\x80\x04(" + b")" + b"2\x86" * 60 + b"\x91.",
    b"\x80\x02](h\x00e.",
    b"\x80\x02]q\x00h\x00a}h\x00h\x00s.",
    long_text(3000000),
    colliding_keys(20000),
    colliding_tuples(20000),
    copies(b"builtins\nlist\n", 20000, 20000),
    copies(b"builtins\ntuple\n", 20000, 20000),
    copies(b"collections\ndeque\n", 20000, 20000),
    copies(b"torch\nSize\n", 20000, 20000),
    again(b"", b"collections\ndeque\n", b")", 40000),
    again(b"", b"pathlib\nPath\n", text("a" * 998 + "\U00010000") + b"\x85", 10000),
    wide_scalar(),
    *many_axes(),
    number_keys(30000),
    b"\x80\x02" + b"".join(b"Nr" + struct.pack("<I", 9 * k) for k in range(20000)) + b".",
)


def named(rng: random.Random) -> bytes:
    """Push a name: an admitted one, or one that would run code."""
    module, name = rng.choice(HOSTILE_NAMES) if rng.random() < 0.1 else rng.choice(list(NAMES))
    if rng.random() < 0.5 and "\n" not in module:
        return b"c" + module.encode() + b"\n" + name.encode() + b"\n"
    return text(module) + text(name) + b"\x93"


def atom(rng: random.Random) -> bytes:
    """Push a value."""
    number = rng.choice((*HUGE, rng.randrange(2**31), -1))
    return rng.choice(
        (
            b"N",
            b"\x88",
            b"K" + bytes([rng.randrange(256)]),
            b"J" + struct.pack("<i", number % 2**31),
            b"\x8a\x09" + (number % 2**70).to_bytes(9, "little"),
            b"G" + struct.pack(">d", rng.choice((0.0, 1e308, float("nan"), float("inf"), -1.5))),
            text(rng.choice(WORDS)),
            b"C" + bytes([5]) + rng.randbytes(5),
            b"B" + struct.pack("<I", rng.choice(HUGE) % 2**32) + rng.randbytes(3),
            named(rng),
        )
    )


def program(rng: random.Random) -> bytes:
    """A random sequence of opcodes, a few of them unknown."""
    plain = [code for code in STEPS if chr(code) not in "XTUBCcJKMGhjqrQ" and code < 0x80] + [
        0x85,
        0x86,
        0x87,
    ]
    out = b"\x80" + bytes([rng.choice((0, 2, 2, 4, 5, 9))])
    for _ in range(rng.randrange(1, 60)):
        kind = rng.random()
        if kind < 0.45:
            out += atom(rng)
        elif kind < 0.55:
            out += b"q" + bytes([rng.randrange(4)])
        elif kind < 0.65:
            out += b"h" + bytes([rng.randrange(4)])
        elif kind < 0.75:
            out += named(rng) + b"(" + b"".join(atom(rng) for _ in range(rng.randrange(5))) + b"tR"
        elif kind < 0.8:
            out += bytes([rng.randrange(256)])
        elif kind < 0.85:
            out += b"Q"
        else:
            out += bytes([rng.choice(plain)])
    return out + rng.choice((b".", b".", b".", b"0.", b""))


def changed(data: bytes, rng: random.Random) -> bytes:
    """A valid pickle with opcodes removed, doubled, moved, changed or inserted."""
    try:
        places = [place for _, _, place in pickletools.genops(data) if place is not None]
    except ValueError:
        places = list(range(len(data)))
    bounds = [*places, len(data)]
    pieces = [data[first:last] for first, last in pairwise(bounds)]
    for _ in range(rng.choice((1, 1, 2, 5))):
        at, other = rng.randrange(len(pieces)), rng.randrange(len(pieces))
        action = rng.randrange(6)
        if action == 0 and len(pieces) > 1:
            del pieces[at]
        elif action == 1:
            pieces.insert(at, pieces[other])
        elif action == 2:
            pieces[at], pieces[other] = pieces[other], pieces[at]
        elif action == 3:
            pieces[at] = atom(rng)
        elif action == 4:
            pieces.insert(
                at, rng.choice((named(rng) + b")R", named(rng) + b"\x85R", b"2", b"0", b"b", b"\x81"))
            )
        elif pieces[at]:
            spot = rng.randrange(len(pieces[at]))
            pieces[at] = pieces[at][:spot] + bytes([rng.randrange(256)]) + pieces[at][spot + 1 :]
    return b"".join(pieces)


def hostile(valid: Sequence[bytes], rng: random.Random, mark: Path) -> bytes:
    """A random hostile pickle."""
    makers: list[Callable[[], bytes]] = [
        lambda: changed(rng.choice(valid), rng),
        lambda: changed(rng.choice(valid), rng),
        lambda: program(rng),
        lambda: changed(bomb(mark), rng) if rng.random() < 0.5 else bomb(mark),
        lambda: rng.choice(valid)[:-1] + bomb(mark)[2:],
    ]
    if rng.random() < 0.02:
        return rng.choice(BOMBS)
    return rng.choice(makers)()


def plain_values() -> list[object]:
    """Values that training files hold beside weights."""
    import argparse
    import collections
    import datetime
    import pathlib

    import numpy as np
    import torch

    return [
        np.float64(0.5),
        np.int64(3),
        np.arange(6.0).reshape(2, 3),
        np.asfortranarray(np.arange(6, dtype=np.int16).reshape(2, 3)),
        argparse.Namespace(lr=1e-3, betas=(0.9, 0.95)),
        collections.deque([1, 2], maxlen=5),
        collections.Counter("hello"),
        collections.defaultdict(list, a=[1]),
        b"bytes",
        bytearray(b"more"),
        {1, 2, 3},
        frozenset("ab"),
        pathlib.PurePosixPath("/exp/a"),
        torch.Size([1, 2]),
        torch.device("cuda", 1),
        torch.float16,
        torch.torch_version.TorchVersion("2.1.0+cu118"),
        datetime.datetime(2024, 5, 6, 7, 8, 9, 10),
        complex(1, 2),
        1 << 100,
        None,
        True,
    ]


def valid_pickles() -> list[bytes]:
    """Pickles of these values in every protocol that is read."""
    return [pickle.dumps({"value": value}, protocol) for value in plain_values() for protocol in (2, 3, 4, 5)]
