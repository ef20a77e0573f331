"""Streaming: how many frames each chunk has, and how chunks of codes become audio without audible joints."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Hashable, Sequence
from typing import Any

import numpy as np

from valle2.engine import Backend
from valle2.engine.backends.stateful import Stateful, run_together
from valle2.engine.bundle.contract import CODEBOOKS
from valle2.runtime.audio.codec import Codec
from valle2.runtime.audio.io import faded
from valle2.runtime.types import Audio, Codes

FIRST_CHUNK_SECONDS = 0.4
"""Speech in a stream's first chunk, unless the caller says otherwise."""
MIN_FIRST_CHUNK_SECONDS = 0.05
"""Shorter chunks would cost the NAR and the codec several times the work."""
GROWTH = 2.0
LONGEST_SECONDS = 4.0
CONTEXT_FRAMES = 24
"""Frames decoded before a chunk, so that the decoder's convolutions see what came before."""
HELD_FRAMES = 6
"""Frames at a chunk's end that lack what follows, and are decoded again with the next chunk."""
FADE_FRAMES = 2
MIRRORED_FRAMES = 7
"""The reach of EnCodec's first convolution, which mirrors the signal at its start."""


def chunk_sizes(first_chunk_seconds: float, frame_rate: float) -> Generator[int, None, None]:
    """Frames of each chunk: the first as asked, each further one twice as long, up to four seconds.

    0 seconds give 0 frames, which stand for the whole sentence.
    """
    seconds = first_chunk_seconds
    while True:
        yield int(np.ceil(seconds * frame_rate))
        seconds = min(seconds * GROWTH, LONGEST_SECONDS)


class ChunkDecoder(ABC):
    """Decodes one sentence's codes chunk by chunk.

    A call is `begin`, `decode` and `finish`. `decode` may take rows of several sentences, whose decoders have
    equal keys and whose rows have one length.
    """

    @property
    @abstractmethod
    def key(self) -> Hashable:
        """Decoders of equal keys can share a call of the graph."""

    @abstractmethod
    def begin(self, codes: Codes, *, last: bool) -> Codes:
        """Take the next codes (T, Q) int64; returns those to decode now, which may be none."""

    @abstractmethod
    def decode(self, rows: Codes, decoders: Sequence[Any]) -> Audio:
        """Decode what `begin` returned to each of the decoders: (B, T, Q) int64 -> (B, N) float32."""

    @abstractmethod
    def finish(self, wave: Audio, *, last: bool) -> Audio:
        """The audio (N,) float32 that is final now. wave: this sentence's row of what `decode` returned."""

    def add(self, codes: Codes, *, last: bool) -> Audio:
        """Decode the next codes (T, Q) int64; returns the audio (N,) float32 that is final now."""
        row = self.begin(codes, last=last)
        return self.finish(self.decode(row[None], [self])[0], last=last)


class OverlapDecoder(ChunkDecoder):
    """Decodes one sentence's codes chunk by chunk with any codec.

    A chunk is decoded with the frames before it as context. Its last frames are held back and decoded again
    with the next chunk; the two versions are cross-faded.
    """

    key = "overlap"

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        self.codes = np.zeros((0, CODEBOOKS), np.int64)
        self.sent = 0
        self.tail = np.zeros(0, np.float32)

    @property
    def start(self) -> int:
        """The first frame that is decoded with the next chunk."""
        return max(0, self.sent - CONTEXT_FRAMES)

    def begin(self, codes: Codes, *, last: bool) -> Codes:
        self.codes = np.concatenate([self.codes, codes])
        return self.codes[self.start :]

    def decode(self, rows: Codes, decoders: Sequence[OverlapDecoder]) -> Audio:
        return self.codec.decode_rows(rows)

    def finish(self, wave: Audio, *, last: bool) -> Audio:
        hop, first, start = self.codec.hop, not self.sent, self.start
        end = len(self.codes) if last else max(self.sent, len(self.codes) - HELD_FRAMES)
        audio = wave[(self.sent - start) * hop : (end - start) * hop].copy()
        size = min(len(self.tail), len(audio))
        ramp = np.linspace(0, 1, size, dtype=np.float32)
        audio[:size] = audio[:size] * ramp + self.tail[:size] * (1 - ramp)
        self.tail = wave[(end - start) * hop : (end - start + FADE_FRAMES) * hop]
        self.sent = end
        return faded(audio, self.codec.sample_rate, first=first, last=last)


class StatefulDecoder(ChunkDecoder):
    """Decodes one sentence's codes chunk by chunk with a causal codec, whose state is handed on.

    Its audio is final at once and equals that of the whole sentence. The first chunk waits until it covers
    what the decoder mirrors.
    """

    def __init__(self, codec: Codec, stream: Backend) -> None:
        self.codec = codec
        self.decoder = Stateful(stream)
        self.waiting = np.zeros((0, CODEBOOKS), np.int64)
        self.started = False

    @property
    def key(self) -> Hashable:
        return "stateful", self.decoder.started

    def begin(self, codes: Codes, *, last: bool) -> Codes:
        self.waiting = np.concatenate([self.waiting, codes])
        if not self.decoder.started and not last and len(self.waiting) < MIRRORED_FRAMES:
            return self.waiting[:0]
        taken, self.waiting = self.waiting, self.waiting[:0]
        return taken

    def decode(self, rows: Codes, decoders: Sequence[StatefulDecoder]) -> Audio:
        if not rows.shape[1]:
            return np.zeros((len(rows), 0), np.float32)
        found = run_together([one.decoder for one in decoders], {"codes": rows})
        return np.asarray(found["audio"])

    def finish(self, wave: Audio, *, last: bool) -> Audio:
        first, self.started = not self.started, self.started or len(wave) > 0
        return faded(wave, self.codec.sample_rate, first=first, last=last) if len(wave) else wave


def chunk_decoder(codec: Codec, first_chunk_seconds: float) -> ChunkDecoder:
    """The decoder for one sentence; a sentence in one chunk needs no state."""
    if codec.stream and first_chunk_seconds:
        return StatefulDecoder(codec, codec.stream)
    return OverlapDecoder(codec)
