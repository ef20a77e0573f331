"""Tokens in, codes out: AR decode, choice among candidates and NAR passes of one utterance.

It knows ids and codes, never text or audio.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from valle2.engine import Backend
from valle2.runtime.decode import Row
from valle2.runtime.errors import PromptError, TextError
from valle2.runtime.refine import CODEBOOKS, refine
from valle2.runtime.sampling import uniforms
from valle2.runtime.scheduler import Batch, Need, Sample
from valle2.runtime.select import best_sample
from valle2.runtime.settings import Prompt, Settings
from valle2.runtime.timings import Timings

Codes = NDArray[np.int64]
FRAMES_PER_TOKEN = 16
MIN_CAP_FRAMES = 150
SENTENCE_STREAMS = 2**16


@dataclass(frozen=True, slots=True)
class Generated:
    """codes: (T, 8) int64. finish_reason: `eos` or `max_frames`."""

    codes: Codes = field(repr=False)
    finish_reason: str


@dataclass(frozen=True, slots=True)
class Graphs:
    """What generating needs: the rows of the AR graph, the NAR graph, the manifest's sizes."""

    batch: Batch
    nar: Backend
    sizes: Mapping[str, int]


class Utterance:
    """One sentence being generated; as a context manager it frees its rows.

    Args:
        graphs: what it runs on. ids: (S,) int64, transcript and text without `<eos>`. prompt: (P, 8) int64.
        index: which sentence of its request, so that each draws its own random numbers.
        timings: gets the seconds of its stages.
    """

    def __init__(
        self, graphs: Graphs, ids: Codes, prompt: Codes, settings: Settings, index: int, timings: Timings
    ) -> None:
        self.graphs, self.settings, self.timings = graphs, settings, timings
        group = graphs.batch.slots.group_size
        self.text = np.append(ids, graphs.sizes["vocab_size"])
        self.prompt = prompt[len(prompt) % group :]
        row = Row(self.text, self.prompt[:, 0], np.zeros((0, group, 2), np.float32), settings)
        steps = self.step_limit(row)
        numbers = [
            uniforms(settings.seed, index * SENTENCE_STREAMS + candidate, steps, group)
            for candidate in range(settings.candidates)
        ]
        rows = [Row(row.text, row.prompt, draws, settings) for draws in numbers]
        self.samples = [graphs.batch.submit(row, steps) for row in rows]
        self.refined = 0
        self.done = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for sample in self.samples:
            sample.cancelled = not sample.done

    def chunk(self, frames: int = 0) -> Generator[Need, None, Codes]:
        """The next codes (T, 8): at least `frames` of them, all that are left if 0 or once speech has ended.

        The NAR sees what came before a chunk as part of its prompt. Several candidates are decoded to their
        end before the best one is refined.
        """
        wanted = self.refined + frames if frames and len(self.samples) == 1 else 0
        while not all(s.done for s in self.samples) and not 0 < wanted <= len(self.samples[0].codes):
            yield Need.STEP
        self.done = all(sample.done for sample in self.samples)
        kept = self.best.codes[: self.settings.max_frames or None]
        first = np.array(kept[self.refined : None if self.done else wanted], np.int64)
        codes = yield from refine(self.graphs.nar, self.text, self.prompt, first, self.timings)
        self.prompt = np.concatenate([self.prompt, codes])
        self.refined += len(codes)
        if self.done:
            self.add_times()
        return codes

    @property
    def best(self) -> Sample:
        """The candidate that is kept."""
        lengths = [len(s.codes) for s in self.samples]
        means = [s.log_prob / max(1, len(s.codes)) for s in self.samples]
        return self.samples[best_sample(lengths, [s.ended for s in self.samples], means)]

    @property
    def finish_reason(self) -> str:
        return "eos" if self.best.ended else "max_frames"

    def add_times(self) -> None:
        """Add its prefills and its longest decode."""
        self.timings.prefill += sum(sample.prefill_seconds for sample in self.samples)
        self.timings.ar += max(sample.step_seconds for sample in self.samples)
        self.timings.steps += max(sample.steps for sample in self.samples)

    def step_limit(self, row: Row) -> int:
        """Steps allowed: what was asked for, else a share of the text, within the model's room."""
        slots = self.graphs.batch.slots
        frames = row.settings.max_frames or max(MIN_CAP_FRAMES, FRAMES_PER_TOKEN * len(row.text))
        room = slots.room(row)
        if room < 1:
            raise PromptError(
                f"a prompt of {len(row.prompt)} frames fills the model's "
                f"{self.graphs.sizes['max_frames']}; use a shorter prompt"
            )
        return min(-(-frames // slots.group_size), room)


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
