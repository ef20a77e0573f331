"""Makes zip archives that two readers may read differently, from archives of torch.save."""

from __future__ import annotations

import io
import random
import re
import struct
import zipfile
from collections.abc import Callable, Sequence

INTERESTING = (0, 1, 2, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF, 2**40, 2**63, 2**64 - 1)
SIGNATURES = (b"PK\3\4", b"PK\1\2", b"PK\5\6", b"PK\6\6", b"PK\6\7", b"PK\7\x08")
EMPTY_END = b"PK\5\6" + bytes(18)
NAMES = ("data.pkl", "data/0", "constants.pkl", "code/__torch__.py", "version", "byteorder", "../data.pkl")
Parts = dict[str, bytes]


def parts_of(archive: bytes) -> Parts:
    """The members' bytes by name."""
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        return {entry.filename: opened.read(entry) for entry in opened.infolist()}


def stored(parts: Parts, compression: int = zipfile.ZIP_STORED, comment: bytes = b"") -> bytes:
    """An archive as Python writes it."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
        archive.comment = comment
    return out.getvalue()


def header(name: bytes, data: bytes, *, flags: int = 0, method: int = 0, extra: bytes = b"") -> bytes:
    """A local header and the member's bytes."""
    sizes = (0, len(data), len(data), len(name), len(extra))
    return struct.pack("<4s5H3I2H", SIGNATURES[0], 20, flags, method, 0, 0, *sizes) + name + extra + data


def central(name: bytes, size: int, offset: int, *, flags: int = 0, extra: bytes = b"") -> bytes:
    """An entry of the directory."""
    numbers = (20, 20, flags, 0, 0, 0, 0, size, size, len(name), len(extra), 0, 0, 0, 0, offset)
    return struct.pack("<4s6H3I5H2I", SIGNATURES[1], *numbers) + name + extra


def end(count: int, size: int, offset: int, comment: bytes = b"") -> bytes:
    """The end record."""
    return struct.pack("<4s4H2IH", SIGNATURES[2], 0, 0, count, count, size, offset, len(comment)) + comment


def two_directories(first: Parts, second: Parts) -> bytes:
    """All members of both, then a directory of each. Readers differ in which directory they use."""
    body, tables = b"", []
    for parts in (first, second):
        rows = []
        for name, data in parts.items():
            rows.append(central(name.encode(), len(data), len(body)))
            body += header(name.encode(), data)
        tables.append(rows)
    out = body
    for rows in tables:
        table = b"".join(rows)
        out += table + end(len(rows), len(table), len(out))
    return out


def hidden_local(parts: Parts, hostile: bytes) -> bytes:
    """Local headers whose contents differ from those in the directory."""
    body, rows = b"", []
    for name, data in parts.items():
        rows.append(central(name.encode(), len(data), len(body)))
        body += header(name.encode(), hostile if name.endswith("data.pkl") else data)
    table = b"".join(rows)
    return body + table + end(len(rows), len(table), len(body))


def flip(data: bytes, rng: random.Random) -> bytes:
    """Change some bytes."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8, 30))):
        out[rng.randrange(len(out))] = rng.randrange(256)
    return bytes(out)


def edit_field(data: bytes, rng: random.Random) -> bytes:
    """Put another number into a field of a zip record."""
    signature = rng.choice(SIGNATURES)
    places = [found.start() for found in re.finditer(re.escape(signature), data)]
    at = rng.choice(places or [rng.randrange(len(data))])
    field, width = at + rng.randrange(4, 56), rng.choice((1, 2, 4, 8))
    old = int.from_bytes(data[field : field + width], "little")
    new: int = rng.choice((*INTERESTING, old + 1, old - 1, len(data), rng.randrange(len(data)))) % 256**width
    return data[:field] + new.to_bytes(width, "little") + data[field + width :]


def cut(data: bytes, rng: random.Random) -> bytes:
    """Remove the end, the beginning or a piece."""
    first, last = sorted((rng.randrange(len(data)), rng.randrange(len(data) + 1)))
    pieces: tuple[bytes, ...] = (data[:last], data[first:], data[:first] + data[last:])
    return rng.choice(pieces)


def add(data: bytes, rng: random.Random) -> bytes:
    """Insert bytes before, after or inside."""
    tail = rng.choice(
        (b"\0", b"PK\5\6" + bytes(6), EMPTY_END, rng.randbytes(rng.randrange(1, 40)), *SIGNATURES)
    )
    at = rng.choice((0, len(data), len(data), rng.randrange(len(data))))
    return data[:at] + tail + data[at:]


def rename(data: bytes, rng: random.Random) -> bytes:
    """Rename a member, perhaps to another member's name."""
    parts = list(parts_of(data).items())
    index = rng.randrange(len(parts))
    root = parts[0][0].partition("/")[0]
    new = rng.choice((*NAMES, "", "/", "data.pkl\0x", "a\\b", "\u202edata.pkl", "x" * 3000, "./data.pkl"))
    named = [(name, value) for name, value in parts]
    named[index] = (rng.choice((f"{root}/", "", "other/")) + new, named[index][1])
    body, rows = b"", []
    for name, value in named:
        rows.append(central(name.encode(), len(value), len(body)))
        body += header(name.encode(), value)
    table = b"".join(rows)
    return body + table + end(len(rows), len(table), len(body))


def repack(data: bytes, rng: random.Random) -> bytes:
    """Compress the members, add a comment, or change their order."""
    parts = list(parts_of(data).items())
    rng.shuffle(parts)
    method = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    return stored(dict(parts), method, rng.choice((b"", b"", b"x", EMPTY_END)))


def join(data: bytes, rng: random.Random, hostile: bytes) -> bytes:
    """Put two archives into one file."""
    ours, theirs = parts_of(data), parts_of(hostile)
    return rng.choice(
        (
            data + hostile,
            hostile + data,
            two_directories(ours, theirs),
            two_directories(theirs, ours),
            hidden_local(ours, next(iter(theirs.values()))),
            stored({**ours, "archive/data/9": hostile}),
        )
    )


def mutate(original: bytes, rng: random.Random, hostile: Sequence[bytes]) -> bytes:
    """Change an archive once or several times."""
    changes: list[Callable[[bytes], bytes]] = [
        lambda old: flip(old, rng),
        lambda old: edit_field(old, rng),
        lambda old: edit_field(old, rng),
        lambda old: cut(old, rng),
        lambda old: add(old, rng),
        lambda old: rename(original, rng),
        lambda old: repack(original, rng),
        lambda old: join(original, rng, rng.choice(hostile)),
    ]
    data = original
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        data = rng.choice(changes)(data) if len(data) > 100 else flip(data or b"x", rng)
    return data
