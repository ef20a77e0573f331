"""A WAV stream of unknown length: what goes through a pipe or a socket before the speech has ended."""

from __future__ import annotations

import struct

import numpy as np

from valle2.runtime.audio.io import Audio, provenance

UNKNOWN = 0xFFFFFFFF
BYTES_PER_SAMPLE = 2


def stream_header(rate: int) -> bytes:
    """Header of 16-bit mono WAV whose length is not known yet; players read on until the stream ends."""
    comment, software = (text.encode() + b"\0" * (2 - len(text) % 2) for text in provenance())
    fmt = struct.pack("<HHIIHH", 1, 1, rate, rate * BYTES_PER_SAMPLE, BYTES_PER_SAMPLE, 8 * BYTES_PER_SAMPLE)
    info = b"INFO" + chunk(b"ICMT", comment) + chunk(b"ISFT", software)
    head = b"WAVE" + chunk(b"fmt ", fmt) + chunk(b"LIST", info)
    return b"RIFF" + struct.pack("<I", UNKNOWN) + head + b"data" + struct.pack("<I", UNKNOWN)


def chunk(name: bytes, data: bytes) -> bytes:
    """A RIFF chunk; data: an even number of bytes."""
    return name + struct.pack("<I", len(data)) + data


def pcm16(audio: Audio) -> bytes:
    """(N,) float32 as little-endian 16-bit samples, rounded as libsndfile does, clipped beyond full scale."""
    return np.clip(np.floor(audio * 32768), -32768, 32767).astype("<i2").tobytes()
