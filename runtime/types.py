"""Values that users pass in and get back: settings, prompts, requests, speech, timings.

Inputs are frozen and checked when they are made.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from valle2.engine.bundle.contract import CODEBOOK_SIZE, CODEBOOKS
from valle2.engine.bundle.schema import SAMPLING, WHOLE
from valle2.runtime.errors import PromptError, SettingsError

Audio = NDArray[np.float32]
Codes = NDArray[np.int64]
EOS, MAX_FRAMES = "eos", "max_frames"
"""Reasons why speech ended: the model said so, or a limit of length was reached."""
MEANINGS = {
    "top_p": "0 is argmax, 1 the full distribution",
    "window": "codes that the repetition rule looks back on",
    "threshold": "1 switches repetition-aware sampling off",
    "seed": "any non-negative 63-bit number",
    "candidates": "samples of which the best is kept",
    "max_frames": "0 takes the model's own limit",
}
RANGES: dict[str, tuple[float, float, str]] = {
    name: (low, high, MEANINGS[name]) for name, (low, high) in SAMPLING.items()
}


@dataclass(frozen=True, slots=True)
class Settings:
    """How codes are drawn (VALL-E 2, section 3.4 and Algorithm 1).

    Args:
        top_p: nucleus mass v in 0..1; 0 is argmax.
        window: K, the codes before the drawn one in which repeats are counted.
        threshold: t_r in 0..1; a share of the window above it is drawn again from the full
            distribution. 1 switches the rule off.
        seed: names the request's stream of random numbers.
        candidates: samples drawn side by side, of which the best is kept (see `select`).
        max_frames: frames of speech per sentence at the most; 0 takes the model's own limit.

    Raises:
        SettingsError: a value is not a finite number within its range.
    """

    top_p: float = 0.2
    window: int = 10
    threshold: float = 0.1
    seed: int = 0
    candidates: int = 1
    max_frames: int = 0

    def __post_init__(self) -> None:
        for entry in fields(self):
            object.__setattr__(self, entry.name, checked(entry.name, getattr(self, entry.name)))


def checked(name: str, value: Any) -> float | int:
    """The value as a plain number, or an error that names its range."""
    low, high, meaning = RANGES[name]
    kind = Integral if name in WHOLE else Real
    fits = isinstance(value, kind) and not isinstance(value, bool)
    if not fits or not math.isfinite(value) or not low <= value <= high:
        noun = "a whole number" if name in WHOLE else "a number"
        raise SettingsError(f"{name} is {value!r}; expected {noun} from {low} to {high} ({meaning})")
    return int(value) if name in WHOLE else float(value)


class Phones(str):
    """A text that is written in the model's own symbols: a request's text, or a prompt's transcript.

    Methods of `str` return plain text, so make `Phones` of their results again.
    """

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Prompt:
    """A voice: codes of recorded speech and what it says.

    Args:
        codes: (P, 8) int64. transcript: the words spoken, or `Phones`.
        name, source, licence, consent: for people.
    """

    codes: Codes = field(repr=False)
    transcript: str
    name: str = "prompt"
    source: str = ""
    licence: str = ""
    consent: str = ""

    def __post_init__(self) -> None:
        codes = self.codes
        if codes.ndim != 2 or codes.shape[1] != CODEBOOKS or not len(codes) or codes.dtype != np.int64:
            raise PromptError(
                f"prompt codes are {codes.dtype} {codes.shape}; expected int64 (P, {CODEBOOKS}), P >= 1"
            )
        check_span(codes)


def check_span(codes: NDArray[Any]) -> None:
    """Refuse prompt codes that no codebook has."""
    if len(codes) and (codes.min() < 0 or codes.max() >= CODEBOOK_SIZE):
        raise PromptError(f"prompt codes span {codes.min()}..{codes.max()}; expected 0..{CODEBOOK_SIZE - 1}")


@dataclass(frozen=True, slots=True)
class Request:
    """One text, or `Phones`, to be spoken in one voice."""

    text: str
    prompt: Prompt
    settings: Settings = field(default_factory=Settings)


@dataclass(slots=True)
class Timings:
    """Seconds per stage of one request, its AR steps, and the seconds of audio made.

    Args:
        prefill, ar, nar, codec: seconds in each stage; AR steps shared with other requests count in full.
        total: from the request to its latest piece of audio, preparation of the text included.
        first_audio: from the request to the first playable sample.
        steps: AR steps. audio: seconds of audio.
    """

    prefill: float = 0.0
    ar: float = 0.0
    nar: float = 0.0
    codec: float = 0.0
    total: float = 0.0
    first_audio: float = 0.0
    steps: int = 0
    audio: float = 0.0

    @property
    def rtf(self) -> float:
        """Real-time factor: computing time over audio time."""
        return self.total / self.audio if self.audio else 0.0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the seconds of a block to a stage."""
        began = time.perf_counter()
        try:
            yield
        finally:
            setattr(self, name, getattr(self, name) + time.perf_counter() - began)


@dataclass(frozen=True, slots=True)
class Speech:
    """Synthesised speech.

    Args:
        audio: (N,) float32 in -1..1. sample_rate: Hz. codes: (T, 8) int64.
        finish_reason: "max_frames" if a sentence reached its limit, "cancelled" if the request was not
            finished, else "eos".
        timings: seconds per stage.
    """

    audio: Audio = field(repr=False)
    sample_rate: int
    codes: Codes = field(repr=False)
    finish_reason: str
    timings: Timings


@dataclass(frozen=True, slots=True)
class Generated:
    """Codes made from tokens. codes: (T, 8) int64. finish_reason: "eos" or "max_frames"."""

    codes: Codes = field(repr=False)
    finish_reason: str
