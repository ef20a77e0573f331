"""Tokens in, codes out: the AR decode, the choice among candidates and the NAR, for one request.

It knows ids and codes, never text or audio.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from valle2.engine import Backend
from valle2.runtime.decode import Decoder, Row
from valle2.runtime.errors import PromptError, TextError
from valle2.runtime.refine import CODEBOOKS, refine
from valle2.runtime.sampling import EOS_CODE, uniforms
from valle2.runtime.select import best_sample
from valle2.runtime.settings import Prompt, Settings

Codes = NDArray[np.int64]
FRAMES_PER_TOKEN = 16
MIN_CAP_FRAMES = 150
SENTENCE_STREAMS = 2**16


@dataclass(slots=True)
class Timings:
    """Seconds per stage, AR steps, and seconds of audio made."""

    prefill: float = 0.0
    ar: float = 0.0
    nar: float = 0.0
    codec: float = 0.0
    total: float = 0.0
    steps: int = 0
    audio: float = 0.0

    @property
    def rtf(self) -> float:
        """Compute time over audio time."""
        return self.total / self.audio if self.audio else 0.0


@dataclass(frozen=True, slots=True)
class Generated:
    """codes: (T, 8) int64. finish_reason: `eos` or `max_frames`."""

    codes: Codes = field(repr=False)
    finish_reason: str


@dataclass(slots=True)
class Sample:
    """One decoded row: codes of codebook 0, summed log-probability, whether `<eos>` was drawn."""

    codes: list[int] = field(default_factory=list)
    log_prob: float = 0.0
    ended: bool = False


class Generator:
    """Generates codes with one AR and one NAR graph.

    Args:
        ar, nar: the graphs. sizes: the manifest's. cache_length: fixed cache slots, 0 where any length fits.
    """

    def __init__(self, ar: Backend, nar: Backend, sizes: Mapping[str, int], cache_length: int) -> None:
        self.decoder = Decoder(ar, sizes, cache_length)
        self.nar = nar
        self.sizes = sizes

    @property
    def group_size(self) -> int:
        return self.decoder.group_size

    def generate(
        self, ids: Codes, prompt: Codes, settings: Settings, sentence: int, timings: Timings
    ) -> Generated:
        """AR, choice among candidates, NAR."""
        group = self.decoder.group_size
        text = np.append(ids, self.sizes["vocab_size"])
        prompt = prompt[len(prompt) % group :]
        row = Row(text, prompt[:, 0], np.zeros((0, group, 2), np.float32), settings)
        steps = self.step_limit(row, settings)
        first = sentence * SENTENCE_STREAMS
        rows = [
            replace(row, uniforms=uniforms(settings.seed, first + index, steps, group))
            for index in range(settings.candidates)
        ]
        samples = self.decode(rows, steps, timings)
        lengths = [len(s.codes) for s in samples]
        means = [s.log_prob / max(1, len(s.codes)) for s in samples]
        best = samples[best_sample(lengths, [s.ended for s in samples], means)]
        began = time.perf_counter()
        kept = best.codes[: settings.max_frames or None]
        codes = refine(self.nar, text, prompt, np.array(kept, np.int64))
        timings.nar += time.perf_counter() - began
        return Generated(codes, "eos" if best.ended else "max_frames")

    def step_limit(self, row: Row, settings: Settings) -> int:
        """Steps allowed: what was asked for, else a share of the text, within the model's room."""
        group = self.decoder.group_size
        frames = settings.max_frames or max(MIN_CAP_FRAMES, FRAMES_PER_TOKEN * len(row.text))
        room = self.decoder.room(row)
        if room < 1:
            raise PromptError(
                f"a prompt of {len(row.prompt)} frames fills the model's "
                f"{self.sizes['max_frames']}; use a shorter prompt"
            )
        return min(-(-frames // group), room)

    def decode(self, rows: Sequence[Row], steps: int, timings: Timings) -> list[Sample]:
        """Decode rows until all have ended or the steps are used up."""
        samples = [Sample() for _ in rows]
        began = time.perf_counter()
        with closing(self.decoder.decode(rows, steps)) as groups:
            for index, drawn in enumerate(groups):
                if not index:
                    timings.prefill += time.perf_counter() - began
                    began = time.perf_counter()
                collect(samples, drawn.codes, drawn.log_probs)
                timings.steps += 1
                if all(sample.ended for sample in samples):
                    break
        timings.ar += time.perf_counter() - began
        return samples


def collect(samples: Sequence[Sample], codes: Codes, log_probs: NDArray[np.float32]) -> None:
    """Append a step's codes up to `<eos>` to the samples that have not ended."""
    for sample, row, scores in zip(samples, codes.tolist(), log_probs.tolist(), strict=True):
        if sample.ended:
            continue
        sample.ended = EOS_CODE in row
        kept = row.index(EOS_CODE) if sample.ended else len(row)
        sample.codes += row[:kept]
        sample.log_prob += sum(scores[:kept])


def check_tokens(text_ids: Codes, prompt_codes: Codes, sizes: Mapping[str, int]) -> tuple[Codes, Codes]:
    """Ids (S,) and prompt codes (P, 8) as int64, or an error that names what does not fit the model."""
    ids = np.asarray(text_ids)
    vocab, longest = sizes["vocab_size"], sizes["max_text"] - 1
    if ids.ndim != 1 or not 1 <= len(ids) <= longest or ids.dtype.kind not in "iu":
        raise TextError(f"text ids are {ids.dtype} {ids.shape}; expected whole numbers (1..{longest},)")
    if ids.min() < 0 or ids.max() >= vocab:
        raise TextError(f"text ids span {ids.min()}..{ids.max()}; expected 0..{vocab - 1}")
    prompt = np.asarray(prompt_codes)
    if prompt.ndim != 2 or prompt.shape[1] != CODEBOOKS or prompt.dtype.kind not in "iu":
        raise PromptError(f"prompt codes are {prompt.dtype} {prompt.shape}; expected integers (P, 8)")
    if len(prompt):
        Prompt(prompt.astype(np.int64), "")
    return ids.astype(np.int64), prompt.astype(np.int64)
