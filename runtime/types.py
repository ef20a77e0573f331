"""Values that users pass in and get back: settings, prompts, requests, speech, timings.

Inputs are frozen, and their constructors check them.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from valle2.engine.bundle.contract import CODEBOOK_SIZE, CODEBOOKS
from valle2.engine.bundle.schema import SAMPLING, WHOLE
from valle2.engine.bundle.untrusted import shown
from valle2.runtime.errors import PromptError, SettingsError

Audio = NDArray[np.float32]
Codes = NDArray[np.int64]
EOS, MAX_FRAMES, REPETITION = "eos", "max_frames", "repetition"
"""Finish reasons: the model sampled its end-of-speech code, the speech reached its longest length, or it
repeated itself without an end."""
CUT_OFF = {
    MAX_FRAMES: "a sentence reached its longest length and was cut off; try another seed, "
    "or a better recording",
    REPETITION: "a sentence repeated itself and was cut off; try another seed, or a better recording",
}
"""What the user is told about a finish reason, the mildest first; nothing about "eos"."""


def worst_reason(reasons: Iterable[str]) -> str:
    """The finish reason of a whole: "repetition" if a sentence has it, else "max_frames", else "eos"."""
    found = set(reasons)
    return next((reason for reason in reversed(CUT_OFF) if reason in found), EOS)


FIRST_CHUNK_CODEBOOKS = 3
"""Codebooks of a stream's first chunk, unless the settings say otherwise (docs/quality.md)."""
RETRIES = 3
"""Times that a failed sentence is made again, unless the settings say otherwise (docs/quality.md)."""
MEANINGS = {
    "top_p": "0 is argmax, 1 the full distribution",
    "window": "codes in which the repetition rule counts repeats",
    "threshold": "1 switches repetition-aware sampling off",
    "seed": "any non-negative 63-bit number",
    "candidates": "samples, the best of which is kept",
    "max_frames": "0 takes the model's own limit",
    "min_frames": "0 takes a share of what the text needs",
    "loop_frames": "frames without a new code after which speech is cut off as a loop, 0 never",
    "retries": f"times a failed sentence is made again; -1: {RETRIES}, unless a seed is given",
    "codebooks": "0 computes all of the model's",
    "first_chunk_codebooks": f"0 computes {FIRST_CHUNK_CODEBOOKS}, or fewer if codebooks is less",
    "nar_prompt_seconds": "0 gives the NAR the whole prompt",
}
"""What a setting means, for error messages and `--help`."""
RANGES: dict[str, tuple[float, float, str]] = {
    name: (low, high, MEANINGS[name]) for name, (low, high) in SAMPLING.items()
}
"""Lowest value, highest value and meaning of each setting."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How codes are sampled (VALL-E 2, section 3.4 and Algorithm 1).

    Args:
        top_p: nucleus mass v in 0..1; 0 is argmax.
        window: K, the number of preceding codes in which repeats are counted.
        threshold: t_r in 0..1. A code whose share of the window is larger is drawn again from the full
            distribution. 1 switches the rule off.
        seed: of the request's random numbers. The same request with the same seed gives the same codes.
        candidates: samples decoded side by side, the best of which is kept.
        max_frames: most frames of speech per sentence; 0 takes the model's own limit.
        min_frames: fewest frames of speech per sentence: before them the model's end-of-speech code is
            rejected. 0 takes a share of what the text needs; 1 allows any speech that is not empty.
        loop_frames: frames of speech without a new code (`generation.repetition`) after which a sentence is
            cut off with the finish reason "repetition"; 0 for never.
        retries: how often a sentence is decoded again, with other random numbers of the same seed, if it
            repeats itself, reaches the model's own limit, or is silent. -1 stands for `RETRIES` with the seed
            0, and for 0 with a seed of your own. Of a stream only what has not been sent is decoded again.
        codebooks: how many the speech has, 0 for all. Each codebook after the first costs a pass of the NAR
            and adds detail.
        first_chunk_codebooks: how many the first chunk of a stream has; fewer make it come sooner. 0 takes
            `FIRST_CHUNK_CODEBOOKS`, or `codebooks` if that is less, or all if the bundle has no neutral
            codes. The second chunk's passes compute the others, which later chunks then hear.
        nar_prompt_seconds: how much of the prompt the NAR hears, counted from its end; 0 for all. The AR
            always hears the whole prompt. Each pass of the NAR gets shorter.

    Raises:
        SettingsError: a value is not a finite number within its range, or min_frames is above max_frames.
    """

    top_p: float = 0.2
    window: int = 10
    threshold: float = 0.1
    seed: int = 0
    candidates: int = 1
    max_frames: int = 0
    min_frames: int = 0
    loop_frames: int = 150
    retries: int = -1
    codebooks: int = 0
    first_chunk_codebooks: int = 0
    nar_prompt_seconds: float = 0.0

    def __post_init__(self) -> None:
        for entry in fields(self):
            object.__setattr__(self, entry.name, checked(entry.name, getattr(self, entry.name)))
        if self.min_frames > self.max_frames > 0:
            raise SettingsError(
                f"min_frames is {self.min_frames}; expected at most max_frames, which is {self.max_frames}"
            )

    def with_given(self, given: Mapping[str, Any]) -> Settings:
        """These settings, replaced by those that a user has given and that are not None.

        A given seed switches retries off, unless they were given too.
        """
        values = {name: value for name, value in given.items() if value is not None}
        if "seed" in values and self.retries < 0:
            values = {"retries": 0} | values
        return replace(self, **values)

    @property
    def attempts(self) -> int:
        """How often a sentence is decoded at most."""
        if self.retries >= 0:
            return 1 + self.retries
        return 1 if self.seed else 1 + RETRIES


def checked(name: str, value: Any) -> float | int:
    """The value of a setting as a plain int or float.

    Raises:
        SettingsError: the value is not a finite number within its range.
    """
    low, high, meaning = RANGES[name]
    kind = Integral if name in WHOLE else Real
    fits = isinstance(value, kind) and not isinstance(value, bool)
    if not fits or not low <= value <= high:  # NaN is in no range; a whole number may be too long for a float
        noun = "a whole number" if name in WHOLE else "a number"
        raise SettingsError(f"{name} is {shown(value)}; expected {noun} from {low} to {high} ({meaning})")
    return int(value) if name in WHOLE else float(value)


class Phones(str):
    """A text or a transcript in the model's own symbols (phones) instead of letters.

    Methods of `str` return plain strings; convert their results with `Phones(...)`.
    """

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Prompt:
    """A voice: the codes of a recording and the words spoken in it.

    Args:
        codes: (P, 8) int64 in 0..1023, P >= 1. transcript: the words, or `Phones`.
        name, source, licence, consent: information for people; the model does not use it.
        warnings: what makes the recording a poor prompt, one sentence each.

    Raises:
        PromptError: the codes have another shape, dtype or range.
    """

    codes: Codes = field(repr=False)
    transcript: str
    name: str = "prompt"
    source: str = ""
    licence: str = ""
    consent: str = ""
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        codes = self.codes
        if codes.ndim != 2 or codes.shape[1] != CODEBOOKS or not len(codes) or codes.dtype != np.int64:
            raise PromptError(
                f"prompt codes are {codes.dtype} {codes.shape}; expected int64 (P, {CODEBOOKS}) with P >= 1"
            )
        check_span(codes)


def check_span(codes: NDArray[Any]) -> None:
    """Check that prompt codes are entries of a codebook.

    Raises:
        PromptError: a code is not in 0..1023.
    """
    if len(codes) and (codes.min() < 0 or codes.max() >= CODEBOOK_SIZE):
        raise PromptError(f"prompt codes span {codes.min()}..{codes.max()}; expected 0..{CODEBOOK_SIZE - 1}")


SLOWEST, FASTEST = 0.25, 4.0
"""The range of a speed."""


@dataclass(frozen=True, slots=True)
class Request:
    """One text, or `Phones`, to speak in one voice.

    Args:
        speed: 0.25 to 4: how many times faster than the model speaks. The pitch stays.
        lexicon: words and their phonemes in the IPA, which win over the model's lexicon.
        timestamps: find out when each word is heard.

    Raises:
        SettingsError: the speed is out of range.
    """

    text: str
    prompt: Prompt
    settings: Settings = field(default_factory=Settings)
    speed: float = 1.0
    timestamps: bool = False
    lexicon: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "speed", checked_speed(self.speed))


def checked_speed(value: Any) -> float:
    """A speed as a float.

    Raises:
        SettingsError: it is not a finite number from 0.25 to 4.
    """
    number = isinstance(value, Real) and not isinstance(value, bool)
    if not number or not SLOWEST <= value <= FASTEST:
        raise SettingsError(
            f"speed is {value!r}; expected a number from {SLOWEST:g} to {FASTEST:g} (1 is the model's pace)"
        )
    return float(value)


@dataclass(slots=True)
class Timings:
    """Where the time of one request went.

    Args:
        prefill, ar, nar, codec: seconds in each stage. An AR step counts in full for every request in it.
        total: seconds from the request to its latest piece of audio, preparation of the text included.
        first_audio: seconds from the request to the first playable sample.
        steps: number of AR steps. audio: seconds of audio made. retries: how often a sentence was made again.
    """

    prefill: float = 0.0
    ar: float = 0.0
    nar: float = 0.0
    codec: float = 0.0
    total: float = 0.0
    first_audio: float = 0.0
    steps: int = 0
    audio: float = 0.0
    retries: int = 0

    @property
    def rtf(self) -> float:
        """Real-time factor: computing time over audio time."""
        return self.total / self.audio if self.audio else 0.0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the `with` block and add its seconds to a stage."""
        began = time.perf_counter()
        try:
            yield
        finally:
            setattr(self, name, getattr(self, name) + time.perf_counter() - began)


@dataclass(frozen=True, slots=True)
class Word:
    """A spoken word and when it is heard. start, end: seconds from the beginning of the audio."""

    text: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class WordSpan:
    """Which ids of a text are the sounds of a word: `start` to `end`, the last one excluded."""

    text: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class SpokenSentence:
    """How one sentence is said.

    Args:
        text: as it was written. spoken: in the words that are pronounced; empty for phones.
        phonemes: in the model's symbols, which `Phones` takes. ids: of the tokens.
    """

    text: str
    spoken: str
    phonemes: str
    ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SpokenText:
    """What is said for a text. warnings: what is not spoken as it was written, one sentence each."""

    sentences: tuple[SpokenSentence, ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Speech:
    """Synthesised speech.

    Args:
        audio: (N,) float32 in -1..1. sample_rate: Hz. codes: (T, 8) int64.
        finish_reason: "cancelled" if the request did not finish, "repetition" if a sentence repeated itself
            and was cut off, "max_frames" if one reached its limit, else "eos".
        timings: where the time went.
        warnings: about the voice and the text, one sentence each.
        words: with their times, if they were asked for.
    """

    audio: Audio = field(repr=False)
    sample_rate: int
    codes: Codes = field(repr=False)
    finish_reason: str
    timings: Timings
    warnings: tuple[str, ...] = ()
    words: tuple[Word, ...] = ()


@dataclass(frozen=True, slots=True)
class Generated:
    """Codes generated from text ids. codes: (T, 8) int64. finish_reason: as of `Speech`."""

    codes: Codes = field(repr=False)
    finish_reason: str
