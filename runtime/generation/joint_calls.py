"""Which requests share one call of the NAR or the codec, and what happens when such a call fails.

The engine serves the request that is due first. Requests that wait for the same kind of call may join it, so
that a GPU launches its kernels once for all of them. Joining changes no request's codes in float32. A request
with a listener never waits for another to join. This module holds no queue and no array.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from valle2.runtime.audio.chunks import ChunkDecoder
from valle2.runtime.generation.nar_runner import NARRunner, NARState
from valle2.runtime.generation.playback import Playback
from valle2.runtime.types import Codes

log = logging.getLogger("valle2")


MOST_YIELDS = 7
"""Another request needs no more passes than this to catch up."""


@dataclass(frozen=True, slots=True)
class JointLimits:
    """Bounds of a joint call.

    Args:
        chunks: requests that share a call; 1 for calls of one request each.
        positions: of all rows together, padding included.
        first_positions: the same, where somebody waits for a first chunk. Such a call must stay short.
        padding: the greatest share of the positions that may be padding.
    """

    chunks: int = 1
    positions: int = 8192
    first_positions: int = 2048
    padding: float = 0.25


ALONE = JointLimits()
"""Every call is of one request."""


class Call(ABC):
    """One request's next call of the NAR or the codec.

    stage: the field of `Timings` that counts its seconds. order: what comes later among the calls of a chunk.
    yielded: how often others went before it although it was due. error: why it failed, None if it did not.
    seconds: what the call took, in full for every request that shared it.
    """

    stage: ClassVar[str]
    order: int = 0
    yielded: int = 0

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.seconds = 0.0

    @property
    @abstractmethod
    def key(self) -> Hashable:
        """Calls of equal keys may be joined."""

    @property
    @abstractmethod
    def lengths(self) -> tuple[int, ...]:
        """Lengths of the parts of its row, each of which is padded to the longest of the joint call."""

    @abstractmethod
    def run(self, others: Sequence[Any]) -> None:
        """Run this call, and others of the same key with it."""


class NARCall(Call):
    """One pass of the NAR.

    Args:
        runner: of the graph. chunk: gets one codebook more. codebook: that one.
    """

    stage = "nar"

    def __init__(self, runner: NARRunner, chunk: NARState, codebook: int) -> None:
        super().__init__()
        self.runner, self.chunk, self.codebook, self.order = runner, chunk, codebook, codebook

    @property
    def key(self) -> Hashable:
        return self.stage, self.codebook

    @property
    def lengths(self) -> tuple[int, ...]:
        return len(self.chunk.text), len(self.chunk.codes)

    def run(self, others: Sequence[NARCall]) -> None:
        self.runner.run([self.chunk, *(call.chunk for call in others)], self.codebook)


class CodecCall(Call):
    """One call of the codec's decoder.

    The decoder takes no lengths, so padding would be heard at the end of the shorter rows. Therefore only
    rows of one length are joined.

    Args:
        decoder: of the sentence. codes: (T, Q) int64, its next ones. last: they end the sentence.

    wave: what the graph returned, float32.
    """

    stage = "codec"

    def __init__(self, decoder: ChunkDecoder, codes: Codes, *, last: bool) -> None:
        super().__init__()
        self.decoder, self.wave = decoder, np.zeros(0, np.float32)
        self.codes = decoder.begin(codes, last=last)

    @property
    def key(self) -> Hashable:
        return self.stage, self.decoder.key, len(self.codes)

    @property
    def lengths(self) -> tuple[int, ...]:
        return (len(self.codes),)

    def run(self, others: Sequence[CodecCall]) -> None:
        calls = [self, *others]
        rows = np.stack([call.codes for call in calls])
        waves = self.decoder.decode(rows, [call.decoder for call in calls])
        for call, wave in zip(calls, waves, strict=True):
            call.wave = wave


class JointCalls:
    """Chooses which requests share a call, and runs it.

    Args:
        limits: see `JointLimits`. `chunks` is halved when a joint call fails and all of its rows run alone,
            because the device may lack memory for so many.
    """

    def __init__(self, limits: JointLimits) -> None:
        self.limits = limits

    def choose(self, calls: Sequence[Call], playbacks: Sequence[Playback]) -> list[int]:
        """Choose the calls that run together.

        Args:
            calls: those that wait, in the order in which they are due. playbacks: of their requests.

        Returns:
            Indices into `calls`: of the one that leads, and of those that join it.
        """
        lead = self.lead(calls, playbacks)
        calls[0].yielded += bool(lead)
        chosen, lengths, urgent = [lead], [calls[lead].lengths], playbacks[lead].waits
        for index, call in enumerate(calls):
            if len(chosen) >= self.limits.chunks:
                break
            wanted, hurry = [*lengths, call.lengths], urgent or playbacks[index].waits
            if index != lead and call.key == calls[lead].key and self.fits(wanted, urgent=hurry):
                chosen.append(index)
                lengths, urgent = wanted, hurry
        return chosen

    def lead(self, calls: Sequence[Call], playbacks: Sequence[Playback]) -> int:
        """The call that runs in any case: the first one, which is due before all others.

        If nobody listens to its request, others that fit it and are at earlier codebooks catch up with it, so
        that they share the passes that are left. It yields so `MOST_YIELDS` times at most.
        """
        first = calls[0]
        if self.limits.chunks == 1 or not playbacks[0].whole or first.yielded >= MOST_YIELDS:
            return 0
        near = [
            index
            for index, call in enumerate(calls)
            if playbacks[index].whole
            and call.stage == first.stage
            and self.fits([first.lengths, call.lengths], urgent=False)
        ]
        return min([0, *near[: self.limits.chunks]], key=lambda index: calls[index].order)

    def fits(self, lengths: Sequence[tuple[int, ...]], *, urgent: bool) -> bool:
        """Are rows of these lengths within the limits?"""
        padded: int = len(lengths) * sum(map(max, zip(*lengths, strict=True)))
        padding = padded - sum(map(sum, lengths))
        most = self.limits.first_positions if urgent else self.limits.positions
        return padded <= most and padding <= self.limits.padding * padded

    def run(self, calls: Sequence[Call]) -> None:
        """Run calls of one key. A call keeps its own error, which fails no other call."""
        began = time.perf_counter()
        if len(calls) == 1 or not self.run_together(calls):
            for call in calls:
                self.run_alone(call)
            if len(calls) > 1 and not any(call.error for call in calls):
                self.limits = replace(self.limits, chunks=max(1, len(calls) // 2))
        seconds = time.perf_counter() - began
        for call in calls:
            call.seconds = seconds

    def run_together(self, calls: Sequence[Call]) -> bool:
        """Run several calls as one. Did that work?"""
        try:
            calls[0].run(calls[1:])
        except Exception as error:
            log.warning("a %s call of %d rows failed; they run alone: %s", calls[0].stage, len(calls), error)
            return False
        return True

    def run_alone(self, call: Call) -> None:
        """Run one call, and keep its error."""
        try:
            call.run([])
        except Exception as error:
            call.error = error
