"""Audio to codes and back, through the codec graphs of a bundle."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from valle2.engine import Backend, sized
from valle2.engine.backends.ladder import Ladder
from valle2.engine.bundle.contract import CODEBOOKS
from valle2.runtime.types import Codes

Audio = NDArray[np.float32]


class Codec:
    """The codec of a bundle.

    Args:
        open_encoder: loads the encoder. It is called for the first recording, because voices need no encoder.
        decoder: the decoder's graph. sizes: `sample_rate` in Hz and `hop` in samples a frame.
        stream: the graph of a decoder that takes and returns its state, or None.
        ladder: bound calls of a decoder that takes padding, or None. The codec closes it.
    """

    def __init__(
        self,
        open_encoder: Callable[[], Backend],
        decoder: Backend,
        sizes: Mapping[str, int],
        stream: Backend | None = None,
        ladder: Ladder | None = None,
    ) -> None:
        self.open_encoder = open_encoder
        self.decoder = decoder
        self.stream = stream
        self.ladder = ladder
        self.sample_rate = sizes["sample_rate"]
        self.hop = sizes["hop"]

    @cached_property
    def encoder(self) -> Backend:
        """The encoder's graph, loaded at its first use."""
        return self.open_encoder()

    @property
    def frame_rate(self) -> float:
        """Frames a second."""
        return self.sample_rate / self.hop

    def encode(self, audio: Audio) -> Codes:
        """(N,) float32 -> (N // hop, 8) int64; the last incomplete frame is dropped."""
        whole = audio[: len(audio) // self.hop * self.hop]
        codes = self.encoder.run({"audio": whole[None]})["codes"]
        made = sized(self.encoder.spec, "codes", codes, (1, len(whole) // self.hop, CODEBOOKS))
        return np.asarray(made[0])

    def decode(self, codes: Codes) -> Audio:
        """(T, 8) int64 -> (T * hop,) float32."""
        return np.asarray(self.decode_rows(codes[None])[0])

    def decode_rows(self, codes: Codes) -> Audio:
        """Rows of one length: (B, T, 8) int64 -> (B, T * hop) float32."""
        rows, frames, _ = codes.shape
        if not frames:
            return np.zeros((rows, 0), np.float32)
        if self.ladder:
            bound = self.ladder.run({"codes": codes, "frame_lengths": np.full(rows, frames, np.int64)})
            if bound is not None:
                return np.asarray(bound["audio"][:rows, : frames * self.hop])
        audio = self.decoder.run({"codes": codes})["audio"]
        return np.asarray(sized(self.decoder.spec, "audio", audio, (rows, frames * self.hop)))

    def close(self) -> None:
        """Free the graphs' memory."""
        opened = [self.decoder, self.stream, self.__dict__.get("encoder")]
        if self.ladder:
            self.ladder.close()  # its calls hold the graph
            opened.append(self.ladder.backend)
        for backend in opened:
            if backend:
                backend.close()
