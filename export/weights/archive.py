"""The zip archives that `torch.save` writes, read by one strict parser.

Two zip readers can see two different contents in one file. One reads the directory at the end, the other the
local headers. One takes the first directory, the other the last. This parser passes no file on to another
reader. It accepts a file only if every byte has one meaning: stored members with local headers one after
another from byte 0, then one directory that agrees with the headers, then the end record.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from valle2.engine.bundle.untrusted import shown

LOCAL, CENTRAL, END = b"PK\3\4", b"PK\1\2", b"PK\5\6"
END64, LOCATOR64, DESCRIPTOR = b"PK\6\6", b"PK\6\7", b"PK\7\x08"
LOCAL_HEADER = struct.Struct("<4s5H3I2H")
CENTRAL_HEADER = struct.Struct("<4s6H3I5H2I")
END_RECORD = struct.Struct("<4s4H2IH")
END64_RECORD = struct.Struct("<4sQ2H2I4Q")
LOCATOR64_RECORD = struct.Struct("<4sIQI")
DESCRIPTORS = tuple(struct.Struct(form) for form in ("<4s3I", "<4sI2Q", "<3I", "<I2Q"))
"""Checksum and sizes after a member: with and without a signature, in 32 and in 64 bits."""
FULL16, FULL32 = 0xFFFF, 0xFFFFFFFF
"""Values of a field whose real value is in a ZIP64 record."""
ZIP64_FIELD = 1
FOLLOWED, UTF8 = 1 << 3, 1 << 11
"""Flags: a descriptor follows the member; the member's name is UTF-8."""
MAX_MEMBERS, LONGEST_NAME, MAX_FIELDS = 2**15, 1024, 8
SCRIPT = {b"constants.pkl", b"code"}
"""Only TorchScript archives have these in their folder. Their code is compressed."""
Bytes = bytes | memoryview


class ArchiveError(ValueError):
    """The bytes are not an archive as torch.save writes it. The message continues a sentence: "FILE ..."."""


@dataclass(frozen=True, slots=True)
class Member:
    """A stored file of the archive: its bytes from `start` to `end`."""

    name: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Entry:
    """A member's entry in the directory. offset: where its local header begins."""

    name: bytes
    flags: int
    checksum: int
    size: int
    offset: int


def is_archive(data: Bytes) -> bool:
    """Whether the file begins as an archive. Any other file is not read as one, whatever its end."""
    return bytes(data[:4]) == LOCAL


def read_archive(data: Bytes) -> dict[str, Member]:
    """Find the members of an archive.

    Args:
        data: the whole file.

    Returns:
        Members by name, in the order of their offsets.

    Raises:
        ArchiveError: compressed, encrypted or split into disks; a byte that belongs to nothing; a local
            header that disagrees with the directory.
    """
    directory, count = find_directory(data)
    entries = sorted(read_directory(data, directory, count), key=lambda entry: entry.offset)
    members: dict[str, Member] = {}
    at = 0
    ends = [entry.offset for entry in entries[1:]] + [directory.start]
    for entry, end in zip(entries, ends, strict=True):
        if entry.offset != at or end < at:
            raise ArchiveError("is damaged: its members overlap, or bytes between them belong to no member")
        member = read_member(data, entry, end)
        if member.name in members:
            raise ArchiveError(f"is damaged: it holds {shown(member.name)} twice")
        members[member.name] = member
        at = end
    if at != directory.start:
        raise ArchiveError("is damaged: bytes before its directory belong to no member")
    return members


def find_directory(data: Bytes) -> tuple[range, int]:
    """The directory's byte range and its number of entries, from the record in the last 22 bytes."""
    at = len(data) - END_RECORD.size
    if at < 0 or bytes(data[at : at + 4]) != END:
        raise ArchiveError("is damaged: it is cut off, or there are bytes after its end")
    _, disk, first, here, count, size, offset, comment = END_RECORD.unpack_from(data, at)
    if comment:
        raise ArchiveError("is damaged: it has a comment, which torch.save never writes")
    end = at
    if at >= LOCATOR64_RECORD.size and bytes(data[at - LOCATOR64_RECORD.size : at][:4]) == LOCATOR64:
        end, wide = read_end64(data, at - LOCATOR64_RECORD.size)
        narrow = ((disk, FULL16), (first, FULL16), (here, FULL16), (count, FULL16))
        for (value, full), other in zip((*narrow, (size, FULL32), (offset, FULL32)), wide, strict=True):
            if value not in (full, other):
                raise ArchiveError("is damaged: its two end records differ")
        disk, first, here, count, size, offset = wide
    if disk or first or here != count:
        raise ArchiveError("is damaged: it is split into several disks, which torch.save never does")
    if offset + size != end or count * CENTRAL_HEADER.size > size:
        raise ArchiveError("is damaged: its directory does not end where its end record begins")
    if count > MAX_MEMBERS:
        raise ArchiveError(f"holds {count} members; expected at most {MAX_MEMBERS}")
    return range(offset, end), count


def read_end64(data: Bytes, at: int) -> tuple[int, tuple[int, ...]]:
    """The ZIP64 end record before a locator at `at`: its offset, and the same numbers as the short record."""
    _, disk, offset, disks = LOCATOR64_RECORD.unpack_from(data, at)
    if disk or disks != 1 or offset + END64_RECORD.size != at or bytes(data[offset : offset + 4]) != END64:
        raise ArchiveError("is damaged: its ZIP64 record is not where it should be")
    _, length, _, _, *numbers = END64_RECORD.unpack_from(data, offset)
    if length != END64_RECORD.size - 12:
        raise ArchiveError("is damaged: its ZIP64 record has another size")
    return offset, tuple(numbers)


def read_directory(data: Bytes, where: range, count: int) -> Iterator[Entry]:
    """The directory's entries. They must fill its byte range."""
    at = where.start
    for _ in range(count):
        if at + CENTRAL_HEADER.size > where.stop or bytes(data[at : at + 4]) != CENTRAL:
            raise ArchiveError("is damaged: its directory has fewer entries than it says")
        (_, _, _, flags, method, _, _, checksum, packed, size, name, extra, comment, disk, _, _, offset) = (
            CENTRAL_HEADER.unpack_from(data, at)
        )
        at += CENTRAL_HEADER.size
        if at + name + extra + comment > where.stop or name > LONGEST_NAME:
            raise ArchiveError("is damaged: a directory entry is cut off, or its name is too long")
        title = bytes(data[at : at + name])
        fields = bytes(data[at + name : at + name + extra])
        at += name + extra
        if comment or disk not in (0, FULL16):
            raise ArchiveError("is damaged: an entry has a comment or another disk")
        size, packed, offset, disk = widened(fields, size, packed, offset, disk)
        if SCRIPT & set(title.split(b"/")[1:2]):
            raise ArchiveError("is a TorchScript archive, which is code; expected a state dict")
        check_stored(flags, method, size, packed)
        if disk:
            raise ArchiveError("is damaged: an entry lies on another disk")
        yield Entry(title, flags, checksum, size, offset)
    if at != where.stop:
        raise ArchiveError("is damaged: its directory has more entries than it says")


def check_stored(flags: int, method: int, size: int, packed: int) -> None:
    """Refuse compressed or encrypted members."""
    if method or size != packed:
        raise ArchiveError("is a compressed archive; expected a file of torch.save, which compresses nothing")
    if flags & ~(FOLLOWED | UTF8):
        raise ArchiveError(f"is damaged: a member has the flags {flags:#x}; torch.save encrypts nothing")


def extra_fields(fields: bytes) -> Iterator[tuple[int, bytes]]:
    """(id, value) of each extra field. The fields must fill their bytes."""
    at = count = 0
    while at < len(fields):
        count += 1
        if at + 4 > len(fields) or count > MAX_FIELDS:
            raise ArchiveError(f"is damaged: an extra field is cut off, or a member has over {MAX_FIELDS}")
        kind, length = struct.unpack_from("<2H", fields, at)
        value = fields[at + 4 : at + 4 + length]
        if len(value) != length:
            raise ArchiveError("is damaged: an extra field is cut off")
        yield kind, value
        at += 4 + length


def widened(fields: bytes, size: int, packed: int, offset: int = 0, disk: int = 0) -> tuple[int, ...]:
    """Size, compressed size, offset and disk. Each comes from the ZIP64 field if the header says so."""
    values = [size, packed, offset, disk]
    found = [value for kind, value in extra_fields(fields) if kind == ZIP64_FIELD]
    if len(found) > 1:
        raise ArchiveError("is damaged: a member has two ZIP64 fields")
    rest = found[0] if found else b""
    for index, width in enumerate((8, 8, 8, 4)):
        if values[index] != (FULL32 if width == 8 else FULL16):
            continue
        if len(rest) < width:
            raise ArchiveError("is damaged: a ZIP64 field is missing or too short")
        values[index], rest = int.from_bytes(rest[:width], "little"), rest[width:]
    return tuple(values)


def read_member(data: Bytes, entry: Entry, end: int) -> Member:
    """One member between its local header and `end`. Every byte in between must belong to it."""
    at = entry.offset
    if at + LOCAL_HEADER.size > end or bytes(data[at : at + 4]) != LOCAL:
        raise ArchiveError("is damaged: a member has no header where the directory says")
    _, _, flags, method, _, _, checksum, packed, size, name, extra = LOCAL_HEADER.unpack_from(data, at)
    at += LOCAL_HEADER.size
    start = at + name + extra
    if start + entry.size > end:
        raise ArchiveError("is damaged: a member is longer than the bytes before the next one")
    fields = bytes(data[at + name : start])
    empty = (checksum, packed, size) == (0, 0, 0) and flags & FOLLOWED
    if not empty:
        size, packed, *_ = widened(fields, size, packed)
        check_stored(flags, method, size, packed)
    for _ in extra_fields(fields):
        pass
    same = empty or (checksum, size) == (entry.checksum, entry.size)
    if bytes(data[at : at + name]) != entry.name or (flags, method) != (entry.flags, 0) or not same:
        raise ArchiveError("is damaged: a member's header disagrees with the directory")
    check_descriptor(bytes(data[start + entry.size : min(end, start + entry.size + 25)]), entry)
    return Member(member_name(entry.name), start, start + entry.size)


def check_descriptor(rest: bytes, entry: Entry) -> None:
    """Check the bytes after a member: nothing, or its checksum and sizes once more."""
    if entry.flags & FOLLOWED:
        told = (entry.checksum, entry.size, entry.size)
        for form in DESCRIPTORS:
            if len(rest) == form.size and form.unpack(rest) in (told, (DESCRIPTOR, *told)):
                return
    if rest or entry.flags & FOLLOWED:
        raise ArchiveError("is damaged: bytes after a member belong to no member")


def member_name(name: bytes) -> str:
    """A member's name as text. It must be printable, and a path inside the archive."""
    try:
        text = name.decode("utf-8")
    except UnicodeDecodeError:
        raise ArchiveError("is damaged: a member's name is not UTF-8") from None
    parts = text.split("/")
    if not text.isprintable() or "\\" in text or {"", ".", ".."} & set(parts) or len(text) > LONGEST_NAME:
        raise ArchiveError(f"is damaged: it holds a member named {shown(text)}")
    return text
