"""Audio formats of a response, encoded piece by piece.

WAV, PCM and Opus are sent as they are made. The encoders of FLAC and MP3 write the length into the header at
the end, so these two are sent whole.
"""

from __future__ import annotations

from io import BytesIO
from typing import Any, Literal

import numpy as np
import soundfile

from valle2.runtime.audio.io import BLOCK, Audio, encode, join, pcm16, provenance, stream_header

Format = Literal["mp3", "opus", "flac", "wav", "pcm"]
MEDIA_TYPES: dict[Format, str] = {
    "wav": "audio/wav",
    "flac": "audio/flac",
    "mp3": "audio/mpeg",
    "opus": "audio/ogg",
    "pcm": "audio/pcm",
}
SENT_WHOLE: dict[Format, str] = {"flac": "FLAC", "mp3": "MP3"}
"""Formats that are encoded at the end, with libsndfile's names for them."""


class Encoder:
    """Encodes one request's audio: pieces (N,) float32 in, bytes out. rate: Hz."""

    def __init__(self, audio_format: Format, rate: int) -> None:
        self.format, self.rate = audio_format, rate
        self.sent = 0
        self.memory = BytesIO()
        self.file: Any = None
        self.pieces: list[Audio] = []
        if audio_format == "opus":
            self.file = soundfile.SoundFile(self.memory, "w", rate, 1, subtype="OPUS", format="OGG")
            self.file.comment, self.file.software = provenance()

    def head(self) -> bytes:
        """The bytes before the first audio."""
        return stream_header(self.rate) if self.format == "wav" else b""

    def add(self, audio: Audio) -> bytes:
        """Encode a piece; returns the bytes that are ready, which may be none."""
        if self.format in SENT_WHOLE:
            self.pieces.append(audio)
            return b""
        if self.file is None:
            return pcm16(audio)
        limited = np.clip(audio, -1.0, 1.0)
        for start in range(0, len(limited), BLOCK):
            self.file.write(limited[start : start + BLOCK])
        return self.unsent()

    def end(self) -> bytes:
        """The last bytes."""
        if self.format in SENT_WHOLE:
            return encode(join(self.pieces), self.rate, SENT_WHOLE[self.format])
        if self.file is None:
            return b""
        self.file.close()
        return self.unsent()

    def unsent(self) -> bytes:
        """What libsndfile has written since the last call."""
        data = self.memory.getvalue()[self.sent :]
        self.sent += len(data)
        return data
