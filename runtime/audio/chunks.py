"""Audio before the end: how large the chunks are, and how their seams are made inaudible."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from valle2.engine import Backend
from valle2.engine.backends.stateful import Stateful
from valle2.engine.bundle.contract import CODEBOOKS
from valle2.runtime.audio.codec import Codec
from valle2.runtime.audio.io import Audio, faded

Codes = NDArray[np.int64]
LATENCY_SECONDS = 0.4
GROWTH = 2.0
LONGEST_SECONDS = 4.0
CONTEXT_FRAMES = 24
HELD_FRAMES = 6
FADE_FRAMES = 2
MIRRORED_FRAMES = 7
"""The reach of EnCodec's first convolution."""


def chunk_sizes(latency: float, frame_rate: float) -> Iterator[int]:
    """Frames of each chunk: `latency` seconds at first, then twice as long each time up to four seconds.

    A latency of 0 is one chunk, the whole sentence.
    """
    seconds = latency
    while True:
        yield int(np.ceil(seconds * frame_rate))
        seconds = min(seconds * GROWTH, LONGEST_SECONDS)


class Seams:
    """Decodes one sentence's codes chunk by chunk.

    A chunk is decoded with the frames before it as context. Its last frames, which lack what follows, are
    held back and decoded again with the next chunk; the two versions are cross-faded.
    """

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        self.codes = np.zeros((0, CODEBOOKS), np.int64)
        self.sent = 0
        self.tail = np.zeros(0, np.float32)

    def add(self, codes: Codes, *, last: bool) -> Audio:
        """codes: (T, 8), the next ones. -> audio (N,) float32 that is final now, all of it if `last`."""
        hop, first = self.codec.hop, not self.sent
        self.codes = np.concatenate([self.codes, codes])
        start = max(0, self.sent - CONTEXT_FRAMES)
        end = len(self.codes) if last else max(self.sent, len(self.codes) - HELD_FRAMES)
        wave = self.codec.decode(self.codes[start:])
        audio = wave[(self.sent - start) * hop : (end - start) * hop].copy()
        size = min(len(self.tail), len(audio))
        ramp = np.linspace(0, 1, size, dtype=np.float32)
        audio[:size] = audio[:size] * ramp + self.tail[:size] * (1 - ramp)
        self.tail = wave[(end - start) * hop : (end - start + FADE_FRAMES) * hop]
        self.sent = end
        return faded(audio, self.codec.sample_rate, first=first, last=last)


class Causal:
    """Decodes one sentence's codes chunk by chunk, the decoder's state handed on: what it makes is final."""

    def __init__(self, codec: Codec, stream: Backend) -> None:
        self.codec = codec
        self.decoder = Stateful(stream)
        self.waiting = np.zeros((0, CODEBOOKS), np.int64)

    def add(self, codes: Codes, *, last: bool) -> Audio:
        """As `Seams.add`. The first chunk waits until it covers the mirror image before the sentence."""
        self.waiting = np.concatenate([self.waiting, codes])
        first = not self.decoder.started
        if not len(self.waiting) or (first and not last and len(self.waiting) < MIRRORED_FRAMES):
            return np.zeros(0, np.float32)
        audio = np.asarray(self.decoder.run({"codes": self.waiting[None]})["audio"][0])
        self.waiting = self.waiting[:0]
        return faded(audio, self.codec.sample_rate, first=first, last=last)


def seams_of(codec: Codec, latency: float) -> Seams | Causal:
    """How the codec's chunks are joined; with a latency of 0 there is one chunk."""
    return Causal(codec, codec.stream) if codec.stream and latency else Seams(codec)
