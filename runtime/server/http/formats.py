"""Audio formats of a response, encoded piece by piece.

WAV, PCM and Opus leave as they are made. The header of FLAC and MP3 is rewritten at the end with the
length, so these are sent whole; ask for one of the others to hear speech early.
"""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
import soundfile

from valle2.runtime.audio.io import BLOCK, Audio, encode, join, pcm16, provenance, stream_header

MEDIA = {
    "wav": "audio/wav",
    "flac": "audio/flac",
    "mp3": "audio/mpeg",
    "opus": "audio/ogg",
    "pcm": "audio/pcm",
}
WHOLE = {"flac": "FLAC", "mp3": "MP3"}


class Encoder:
    """Pieces (N,) float32 in, bytes out."""

    def __init__(self, kind: str, rate: int) -> None:
        self.kind, self.rate = kind, rate
        self.sent = 0
        self.memory = BytesIO()
        self.file: Any = None
        self.held: list[Audio] = []
        if kind == "opus":
            self.file = soundfile.SoundFile(self.memory, "w", rate, 1, subtype="OPUS", format="OGG")
            self.file.comment, self.file.software = provenance()

    def head(self) -> bytes:
        """What comes before the first audio."""
        return stream_header(self.rate) if self.kind == "wav" else b""

    def add(self, audio: Audio) -> bytes:
        """The bytes that are ready after this piece; libsndfile holds some back."""
        if self.kind in WHOLE:
            self.held.append(audio)
            return b""
        if self.file is None:
            return pcm16(audio)
        limited = np.clip(audio, -1.0, 1.0)
        for start in range(0, len(limited), BLOCK):
            self.file.write(limited[start : start + BLOCK])
        return self.fresh()

    def end(self) -> bytes:
        """What is left."""
        if self.kind in WHOLE:
            return encode(join(self.held), self.rate, WHOLE[self.kind])
        if self.file is None:
            return b""
        self.file.close()
        return self.fresh()

    def fresh(self) -> bytes:
        """Appended since the last call."""
        data = self.memory.getvalue()[self.sent :]
        self.sent += len(data)
        return data
