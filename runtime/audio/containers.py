"""Audio files that libsndfile misreads: WAV with wrong sizes in its header, and formats it does not know.

A program that writes a WAV to a pipe cannot know its length. It writes 0 or 0xFFFFFFFF, or the length of the
first block, and libsndfile then reads nothing or too little.
"""

from __future__ import annotations

import struct
from io import BytesIO
from typing import BinaryIO

from valle2.runtime.errors import PromptError

RIFF, RF64 = b"RIFF", b"RF64"
CHUNK = struct.Struct("<4sI")
MAX_CHUNKS = 64
MAX_BYTES = 2**28
"""Bytes that are read of a WAV with a wrong header; a prompt of any rate and sample format has fewer."""
FOREIGN = (
    (4, b"ftyp", "MP4 (m4a)"),
    (0, b"\x1aE\xdf\xa3", "WebM or Matroska"),
    (0, b"\xff\xf1", "AAC"),
    (0, b"\xff\xf9", "AAC"),
    (0, b"ADIF", "AAC"),
    (0, b"#!AMR", "AMR"),
    (0, b"\x30\x26\xb2\x75", "WMA"),
)
"""Formats that people send and libsndfile does not read: where their mark stands, the mark, the name."""


def check_format(name: str, file: BinaryIO) -> None:
    """Refuse formats that are known but not read. name: of the recording.

    Raises:
        PromptError: it is one of them; the message has the command that converts it.
    """
    head = file.read(16)
    file.seek(0)
    for start, mark, kind in FOREIGN:
        if head[start : start + len(mark)] == mark:
            raise PromptError(
                f"{name} is {kind}; expected WAV, FLAC, OGG (Vorbis or Opus) or MP3: convert it with "
                "ffmpeg -i RECORDING -ac 1 recording.wav"
            )


def repaired(file: BinaryIO) -> BinaryIO:
    """The file itself; of a WAV with wrong sizes in its header a copy in memory with the right ones.

    The data chunk reaches to the end of the file unless other chunks follow it.
    """
    head = file.read(12)
    found = data_chunk(file) if head[:4] in (RIFF, RF64) and head[8:] == b"WAVE" else None
    end = file.seek(0, 2)
    file.seek(0)
    if found is None or sizes_fit(file, head, *found, end):
        file.seek(0)
        return file
    file.seek(0)
    content = bytearray(file.read(MAX_BYTES))
    start = found[0]
    content[:4] = RIFF
    if content[12:16] == b"ds64":
        content[12:16] = b"JUNK"
    struct.pack_into("<I", content, 4, len(content) - 8)
    struct.pack_into("<I", content, start - 4, len(content) - start)
    return BytesIO(bytes(content))


def data_chunk(file: BinaryIO) -> tuple[int, int] | None:
    """Where the samples begin and how many bytes the header says they have; None without a data chunk."""
    long_size = None
    for _ in range(MAX_CHUNKS):
        head = file.read(CHUNK.size)
        if len(head) < CHUNK.size:
            return None
        name, size = CHUNK.unpack(head)
        if name == b"data":
            return file.tell(), size if long_size is None else long_size
        if name == b"ds64":
            sizes = file.read(size)
            long_size = struct.unpack_from("<Q", sizes, 8)[0] if len(sizes) >= 16 else 0
            file.seek(size % 2, 1)
        else:
            file.seek(size + size % 2, 1)
    return None


def sizes_fit(file: BinaryIO, head: bytes, start: int, size: int, end: int) -> bool:
    """Does the data chunk end where the file ends, or where further chunks begin?

    A size beyond the end is right enough: libsndfile reads to the end. In an RF64 it is repaired.
    """
    if start + size > end:
        return head[:4] == RIFF
    at = start + size + size % 2
    for _ in range(MAX_CHUNKS):
        if at >= end - CHUNK.size:
            return True
        file.seek(at)
        name, length = CHUNK.unpack(file.read(CHUNK.size))
        if not name.isascii() or not name.decode("ascii", "replace").isprintable():
            return False
        at += CHUNK.size + length + length % 2
        if at > end + 1:
            return False
    return False
