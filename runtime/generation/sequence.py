"""One row of the AR batch from its request to its last code. Plain values: no graph and no buffer."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from valle2.engine.bundle.contract import EOS_CODE
from valle2.runtime.generation.playback import Playback
from valle2.runtime.generation.repetition import LoopDetector
from valle2.runtime.types import EOS, MAX_FRAMES, REPETITION, Codes, Settings


class Status(Enum):
    """Where a sequence stands. The last three are final."""

    WAITING = "waiting for a free row"
    PREFILL = "its text and prompt are being computed"
    DECODE = "it takes part in every AR step"
    DONE = "it drew <eos>, reached its limit or repeated itself"
    FAILED = "its prefill raised an error"
    CANCELLED = "nobody wants the rest"


FINAL = frozenset({Status.DONE, Status.FAILED, Status.CANCELLED})


@dataclass(slots=True, eq=False)
class Sequence:
    """One row's whole state.

    Args:
        text: (L,) int64 ids as the AR reads them, with `<eos>`.
        prompt: (P,) int64 codes of codebook 0, P a multiple of the group size G.
        uniforms: (N, G, 2) float32, the random numbers of its N steps.
        settings: top_p, window and threshold of its sampling.
        start: positions between the text and the codes: 1 for a model with a start mark, else 0.
        step_limit: steps after which it ends without `<eos>`.
        playback: when its request's listener needs audio next.
        loop: ends it when it repeats itself; None for never.
        min_frames: frames before which `<eos>` is rejected (`sampling.sample_group`).

    status and row say where it is: `row` is its index in the batch from PREFILL on. codes are the codes of
    codebook 0 drawn so far, up to `<eos>`; log_prob is the sum of their log-probabilities. finish_reason is
    "eos", "max_frames" or "repetition" once it is DONE. error says why it FAILED.
    """

    text: Codes
    prompt: Codes
    uniforms: NDArray[np.float32]
    settings: Settings
    start: int = 1
    step_limit: int = 0
    status: Status = Status.WAITING
    row: int = -1
    codes: list[int] = field(default_factory=list)
    log_prob: float = 0.0
    steps: int = 0
    finish_reason: str = ""
    error: Exception | None = None
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    playback: Playback = field(default_factory=Playback)
    loop: LoopDetector | None = None
    min_frames: int = 0

    def __post_init__(self) -> None:
        self.step_limit = self.step_limit or len(self.uniforms)

    @property
    def finished(self) -> bool:
        """Is its status final?"""
        return self.status in FINAL

    def positions(self, group_size: int) -> int:
        """Positions of the KV cache before the first decoded group: text, start mark, prompt groups."""
        return len(self.text) + self.start + len(self.prompt) // group_size

    def ends_early(self, codes: list[int]) -> bool:
        """Would the speech end before its fewest frames with this group?"""
        return EOS_CODE in codes and len(self.codes) + codes.index(EOS_CODE) < self.min_frames

    def append(self, codes: list[int], log_probs: list[float]) -> None:
        """Take one step's group of G codes up to `<eos>`; the sequence may be DONE after it."""
        ended = EOS_CODE in codes
        kept = codes.index(EOS_CODE) if ended else len(codes)
        self.codes += codes[:kept]
        self.log_prob += sum(log_probs[:kept])
        self.steps += 1
        looped = False
        if self.loop:
            for code in codes[:kept]:
                looped = self.loop.add(code) or looped
        if ended or looped or self.steps >= self.step_limit:
            self.status = Status.DONE
            self.finish_reason = EOS if ended else REPETITION if looped else MAX_FRAMES

    def fail(self, error: Exception) -> None:
        """End it with an error that is its own."""
        self.status, self.error = Status.FAILED, error

    def cancel(self) -> None:
        """End it unless it has ended."""
        if not self.finished:
            self.status = Status.CANCELLED
