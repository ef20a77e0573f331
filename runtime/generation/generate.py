"""Tokens in, codes out: AR decode, choice among candidates and NAR passes of one utterance.

It knows ids and codes, never text or audio.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from valle2.engine import Backend, Closing
from valle2.runtime.errors import PromptError
from valle2.runtime.generation.ar_runner import Row
from valle2.runtime.generation.nar_runner import refine
from valle2.runtime.generation.sampling import uniforms
from valle2.runtime.generation.scheduler import Batch, Need, Sample
from valle2.runtime.generation.select import best_sample
from valle2.runtime.generation.token_layout import Rules, Text
from valle2.runtime.timings import Timings
from valle2.runtime.types import Settings

Codes = NDArray[np.int64]
SENTENCE_STREAMS = 2**16


@dataclass(frozen=True, slots=True)
class Generated:
    """codes: (T, 8) int64. finish_reason: `eos` or `max_frames`."""

    codes: Codes = field(repr=False)
    finish_reason: str


@dataclass(frozen=True, slots=True)
class Graphs:
    """What generating needs: the rows of the AR graph, the NAR graph, the manifest's sizes, the rules."""

    batch: Batch
    nar: Backend
    sizes: Mapping[str, int]
    rules: Rules


class Utterance(Closing):
    """One sentence being generated; as a context manager it frees its rows.

    Args:
        graphs: what it runs on. text: transcript and text without marks. prompt: (P, Q) int64.
        index: which sentence of its request, so that each draws its own random numbers.
        timings: gets the seconds of its stages.
    """

    def __init__(
        self, graphs: Graphs, text: Text, prompt: Codes, settings: Settings, index: int, timings: Timings
    ) -> None:
        self.graphs, self.settings, self.timings = graphs, settings, timings
        group = graphs.batch.slots.group_size
        words, self.text = graphs.rules.texts(text)
        self.prompt = prompt[len(prompt) % group :]
        start = int(graphs.rules.code_bos)
        row = Row(words, self.prompt[:, 0], np.zeros((0, group, 2), np.float32), settings, start)
        steps = self.step_limit(row, text.prompt_length)
        numbers = [
            uniforms(settings.seed, index * SENTENCE_STREAMS + candidate, steps, group)
            for candidate in range(settings.candidates)
        ]
        rows = [replace(row, uniforms=draws) for draws in numbers]
        self.samples = [graphs.batch.submit(row, steps) for row in rows]
        self.refined = 0
        self.done = False

    def close(self) -> None:
        """Free its rows."""
        for sample in self.samples:
            sample.cancelled = not sample.done

    def raise_error(self) -> None:
        """What kept one of its rows from a slot."""
        for sample in self.samples:
            if sample.error:
                raise sample.error

    def chunk(self, frames: int = 0) -> Generator[Need, None, Codes]:
        """The next codes (T, 8): at least `frames` of them, all that are left if 0 or once speech has ended.

        The NAR sees what came before a chunk as part of its prompt. Several candidates are decoded to their
        end before the best one is refined.
        """
        wanted = self.refined + frames if frames and len(self.samples) == 1 else 0
        while not all(s.done for s in self.samples) and not 0 < wanted <= len(self.samples[0].codes):
            yield Need.STEP
            self.raise_error()
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

    def step_limit(self, row: Row, prompt_length: int | None) -> int:
        """Steps allowed: what was asked for, else a share of the text, within the model's room."""
        slots = self.graphs.batch.slots
        usual = self.graphs.rules.frame_limit(len(row.text), len(row.prompt), prompt_length)
        frames = row.settings.max_frames or usual
        room = slots.room(row)
        if room < 1:
            raise PromptError(
                f"a prompt of {len(row.prompt)} frames fills the model's "
                f"{self.graphs.sizes['max_frames']}; use a shorter prompt"
            )
        return min(-(-frames // slots.group_size), room)
