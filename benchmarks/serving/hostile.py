"""What attackers send: texts, SSML, fields, recordings and forms that cost a careless server much.

Every item costs its sender little. `length` is always the number of characters or bytes that a server takes.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from typing import Any

UNITS = (
    "etc. ",
    "1",
    "1234567890 ",
    "1,",
    "1.1.",
    "1/2/1999 ",
    "12:34:56:",
    "$1.99 ",
    "-1e9",
    "MCMXCIV ",
    "Mr. ",
    "A.B.",
    "I.I. ",
    "a",
    "\xe9",
    "ss-",
    "!?",
    ".",
    "...",
    "((",
    "\u201c\u2019",
    "a\u0301\u0302",
    "\u0301",
    "\U0001f600",
    "\U0001f468\u200d\U0001f469\u200d",
    "\u202e",
    "\u4e2d",
    "\ufdfa",
    "\u0130",
    "http://a.b/c?d=e&",
    "a@b.c ",
    "www.a.",
    "&amp;",
    "&#x41;",
    "<a>",
    "<",
    "\t",
    "\n",
    "\x00",
    "**",
    "`",
    "| a ",
    "[a](b) ",
    "3 km/h ",
    "x ",
    "the the ",
)
"""Repeated to the longest text: abbreviations, numbers, one long word, marks, emoji, addresses, markup."""
NESTED = (
    ("<prosody rate='slow'>", "</prosody>"),
    ("<emphasis>", "</emphasis>"),
    ("<p><s>", "</s></p>"),
    ("<speak>", "</speak>"),
    ("<sub alias='etc. '>", "</sub>"),
    ("<a", ""),
    ("<!--", ""),
    ("<![CDATA[", ""),
    ("&", ""),
)
"""SSML elements, nested as deep as a text is long."""
REPEATED_SSML = (
    "<break time='10s'/> a ",
    "<break time='1e308s'/>",
    "<break time='0ms'/>",
    "<say-as interpret-as='characters'>99999</say-as>",
    "<say-as interpret-as='date'>31.12.1999</say-as>",
    "<say-as interpret-as='cardinal'>" + "9" * 300 + "</say-as>",
    "<phoneme alphabet='ipa' ph='" + "\u02c8" * 50 + "'>a</phoneme>",
    "<prosody rate='1e-300'>a</prosody>",
)
LAUGHS = (
    "<!DOCTYPE speak [<!ENTITY a 'aaaaaaaaaa'>"
    + "".join(f"<!ENTITY {b} '{f'&{a};' * 10}'>" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
    + "]><speak>&i;</speak>"
)
"""Entities that would expand to a gigabyte."""
FIELDS: tuple[dict[str, Any], ...] = (
    *(
        {name: value}
        for name in ("latency", "first_chunk_seconds")
        for value in (1e-300, 1e300, 0.05, 10, -0.0)
    ),
    *({"speed": value} for value in (1e-300, 1e300, 0.25, 4, 0)),
    {"speed": 0.25, "first_chunk_seconds": 0.05, "response_format": "opus"},
    {"max_frames": 2**63},
    {"max_frames": 10**400},
    {"max_frames": 1},
    {"window": 2**31},
    {"top_p": 1e-300},
    {"threshold": 1e300},
    {"candidates": 4},
    {"candidates": 10**9},
    {"codebooks": 10**9},
    {"seed": -(2**63)},
    {"seed": 10**4000},
    {"voice": "../" * 30},
    {"voice": {"id": {"id": "amber"}}},
    {"model": "\x00"},
    {"instructions": "a" * 50_000},
    {"lexicon": {f"word{index}": "a" for index in range(2500)}},
    {"lexicon": {"hello": "\u02c8a" * 10_000}},
    {"response_format": "mp3\r\nX: y"},
    {"timestamps": True, "stream_format": "sse"},
)
"""Fields of a request for speech at and beyond their bounds."""
BODIES = (
    b"",
    b"{",
    b"[]",
    b"\xff\xfe",
    b'{"input": 3}',
    b'{"input": ""}',
    b'{"input": "a", "seed": 1e400}',
    b'{"input": "a", "speed": NaN}',
    b'{"input": "a", "seed": ' + b"9" * 60_000 + b"}",
    b"[" * 60_000,
    b'{"a":' * 10_000,
    b'{"input": "' + b"\\u0041" * 4096 + b'"}',
    b'{"input": "\\ud800"}',
    b'{"input": "a", "input": "b"}',
    b"{" + b",".join(b'"k%d": 0' % index for index in range(5000)) + b"}",
    json.dumps({"input": "a" * 200_000}).encode(),
)
"""Bodies that are no request for speech."""
MP3_FRAME = b"\xff\xfb\x90\x64"
CRC_POLYNOMIAL = 0x04C11DB7


def texts(length: int) -> list[str]:
    """Every text and SSML of at most `length` characters."""
    plain = [(unit * length)[:length] for unit in UNITS]
    longest = length - len("<speak></speak>")
    nested = [left * (count := longest // len(left + right)) + right * count for left, right in NESTED]
    repeated = [part * (longest // len(part)) for part in REPEATED_SSML]
    return [*plain, *(f"<speak>{part}</speak>" for part in nested + repeated), LAUGHS]


# -- recordings ----------------------------------------------------------------------------------


def recordings() -> dict[str, bytes]:
    """Files of a few kilobytes up to some hundred, by name."""
    return {
        "opus.ogg": opus(255, 250),
        "vorbis.ogg": ogg([b"\x01vorbis" + struct.pack("<IBIiiiBB", 0, 255, 48_000, 0, 0, 0, 0xB8, 1)]),
        "endless.ogg": ogg([b"OpusHead" + struct.pack("<BBHIhB", 1, 2, 0, 48_000, 0, 0)], granule=2**62),
        "flac.flac": flac(8, 655_350, 2**36 - 1) + bytes(4096),
        "mp3.mp3": b"ID3\x04\x00\x00\x7f\x7f\x7f\x7f" + MP3_FRAME * 5000,
        "frames.mp3": b"\xff\xfb\x90\x64"
        + bytes(32)
        + b"Xing\x00\x00\x00\x03"
        + b"\xff" * 8
        + bytes(400) * 100,
        "channels.wav": wav(1, 65_535, 48_000, bytes(65_535 * 2)),
        "fast.wav": wav(1, 1, 2**31 - 1, bytes(100_000)),
        "slow.wav": wav(1, 1, 1, bytes(100_000)),
        "nan.wav": wav(3, 1, 24_000, struct.pack("<f", float("nan")) * 100_000, 32),
        "endless.wav": wav(1, 1, 24_000, bytes(200_000), claimed=2**32 - 1),
        "chunks.wav": b"RIFF\xff\xff\xff\xffWAVE" + b"junk\x00\x00\x00\x00" * 50_000,
        "ima.wav": wav(17, 1, 24_000, bytes(200_000), 4),
        "loud.wav": wav(1, 2, 384_000, b"\xff\x7f\x00\x80" * 1_000_000),
        "nothing.wav": b"",
        "random.bin": bytes(range(256)) * 1000,
    }


def wav(
    kind: int, channels: int, rate: int, data: bytes, bits: int = 16, claimed: int | None = None
) -> bytes:
    """A WAV. kind: the format's code. claimed: bytes of the data by its header."""
    block = channels * bits // 8 % 65_536
    head = struct.pack("<HHIIHH", kind, channels, rate, rate * block % 2**32, block, bits)
    size = len(data) if claimed is None else claimed
    parts = b"WAVEfmt " + struct.pack("<I", len(head)) + head + b"data" + struct.pack("<I", size)
    return b"RIFF" + struct.pack("<I", min(size + len(parts), 2**32 - 1)) + parts + data


def flac(channels: int, rate: int, samples: int) -> bytes:
    """The beginning of a FLAC with this STREAMINFO."""
    packed = rate << 44 | (channels - 1) << 41 | 31 << 36 | samples
    info = struct.pack(">HH", 65_535, 65_535) + bytes(6) + packed.to_bytes(8, "big") + bytes(16)
    return b"fLaC\x80" + len(info).to_bytes(3, "big") + info


def opus(channels: int, packets: int) -> bytes:
    """An Opus of so many channels: 20 ms of silence a packet, two bytes a channel."""
    head = struct.pack("<BBHIhB", 1, channels, 0, 48_000, 0, 255) + bytes([channels, 0, *range(channels)])
    packet = b"\xf8\x00" * (channels - 1) + b"\xf8"
    tags = struct.pack("<I4sI", 4, b"none", 0)
    return ogg([b"OpusHead" + head, b"OpusTags" + tags, *[packet] * packets], 960 * packets)


def ogg(packets: Iterable[bytes], granule: int = 0) -> bytes:
    """An Ogg with a page for each packet. granule: position of the last one."""
    listed, found = list(packets), b""
    for number, packet in enumerate(listed):
        last = number == len(listed) - 1
        flags = 2 * (not number) | 4 * last
        position = granule if last else 960 * max(0, number - 1)
        lacing = bytes([*[255] * (len(packet) // 255), len(packet) % 255])
        page = b"OggS\x00" + struct.pack("<BqIIIB", flags, position, 1, number, 0, len(lacing))
        page += lacing + packet
        found += page[:22] + struct.pack("<I", ogg_crc(page)) + page[26:]
    return found


def ogg_crc(data: bytes) -> int:
    """Ogg's checksum of a page whose checksum is 0."""
    value = 0
    for byte in data:
        value = (value << 8 & 0xFFFFFFFF) ^ CRC_TABLE[value >> 24 ^ byte]
    return value


def crc_entry(value: int) -> int:
    value <<= 24
    for _ in range(8):
        value = (value << 1 ^ (CRC_POLYNOMIAL if value >> 31 else 0)) & 0xFFFFFFFF
    return value


CRC_TABLE = [crc_entry(value) for value in range(256)]

# -- forms ---------------------------------------------------------------------------------------

FIELD_NAMES = {"name": "attack", "transcript": "hello there", "consent": "true"}
FILE_HEAD = b'Content-Disposition: form-data; name="file"; filename="%s"\r\n\r\n'


def form(boundary: str, parts: Iterable[bytes]) -> bytes:
    """A multipart body of parts that have their headers."""
    line = f"--{boundary}\r\n".encode()
    return b"".join(line + part + b"\r\n" for part in parts) + f"--{boundary}--\r\n".encode()


def upload(name: str, data: bytes, charset: str = "") -> bytes:
    """The form of a recording. charset: of its text fields."""
    kind = f"\r\nContent-Type: text/plain; charset={charset}" if charset else ""
    fields = [
        f'Content-Disposition: form-data; name="{field}"{kind}\r\n\r\n{value}'.encode()
        for field, value in FIELD_NAMES.items()
    ]
    return form("b", [*fields, FILE_HEAD % name.encode() + data])


def forms() -> list[tuple[str, bytes]]:
    """Content types and bodies of forms that are costly to read."""
    plain = b'Content-Disposition: form-data; name="a%d"\r\n\r\nx'
    long_value = b'Content-Disposition: form-data; name="transcript"\r\n\r\n' + b"a-" * 8000
    kind = "multipart/form-data; boundary=b"
    return [
        *(
            (f"{kind}; charset={name}", form("b", [long_value]))
            for name in ("punycode", "utf-7", "idna", "zip")
        ),
        *((kind, upload("a.wav", b"", charset)) for charset in ("punycode", "utf-7", "utf-16")),
        (kind, form("b", (plain % index for index in range(20_000)))),
        (kind, form("b", [b"X: y\r\n" * 20_000 + b"\r\n"])),
        (kind, form("b", [b"X" * 500_000])),
        (kind, form("b", [FILE_HEAD % b"a" for _ in range(5000)])),
        (kind, form("b", [FILE_HEAD % (b"a" * 100_000) + b"x"])),
        (kind, form("b", [b'Content-Disposition: form-data; name="_charset_"\r\n\r\npunycode', long_value])),
        (kind, b"--b\r\n" * 50_000),
        (kind, b"\r\n--" * 100_000),
        ("multipart/form-data; boundary=" + "b" * 60, b"-" * 500_000),
        ("multipart/form-data", upload("a.wav", b"")),
        (f"multipart/mixed{kind[19:]}", upload("a.wav", b"")),
        ("application/x-www-form-urlencoded", b"a=b&" * 50_000),
    ]
