"""One sentence on its way: its rows in the AR batch, and the codes that the NAR has completed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from valle2.engine import Closing
from valle2.runtime.errors import PromptError, SynthesisError
from valle2.runtime.generation.model import LoadedModel
from valle2.runtime.generation.nar_runner import NARState
from valle2.runtime.generation.playback import Playback
from valle2.runtime.generation.sampling import best_candidate, uniforms
from valle2.runtime.generation.scheduler import Scheduler
from valle2.runtime.generation.sequence import Sequence
from valle2.runtime.generation.token_layout import Text
from valle2.runtime.types import EOS, Codes, Settings, Timings

SENTENCE_STREAMS = 2**16
"""Streams of random numbers that one sentence may use: one for each candidate, and as many for a retry."""
RETRY_STREAMS = SENTENCE_STREAMS // 2
"""Where the streams of a retry begin."""


class Utterance(Closing):
    """One sentence. As a context manager it cancels its rows when the block ends.

    Args:
        model: what it runs on. scheduler: gets a sequence for each candidate.
        text: ids of the transcript and the sentence, without marks. prompt: (P, Q) int64.
        index: which sentence of its request, so that each draws its own random numbers.
        playback: when its request's listener needs audio next.
        check: decode it once more if its speech is empty or shorter than its text can be said in.

    Raises:
        PromptError: the prompt leaves no room for speech.
    """

    def __init__(
        self,
        model: LoadedModel,
        scheduler: Scheduler,
        text: Text,
        prompt: Codes,
        settings: Settings,
        index: int = 0,
        playback: Playback | None = None,
        *,
        check: bool = False,
    ) -> None:
        self.model, self.scheduler, self.settings = model, scheduler, settings
        self.index, self.check = index, check
        group = model.ar.group_size
        ar_text, self.nar_text = model.layout.texts(text)
        self.context = prompt[len(prompt) % group :]
        prompt_codes = self.context[:, 0]
        heard = model.nar_prompt_frames(settings, self.context)
        self.context = self.context[len(self.context) - heard :]
        start = int(model.layout.code_bos)
        empty = np.zeros((0, group, 2), np.float32)
        self.row = Sequence(ar_text, prompt_codes, empty, settings, start, playback=playback or Playback())
        self.row.step_limit = self.step_limit(self.row, text.prompt_length)
        self.fewest = model.layout.fewest_frames(len(text.ids), text.prompt_length)
        self.rejected: list[Sequence] = []
        self.candidates = self.queued(0)
        self.taken = 0
        self.done = False

    def queued(self, offset: int) -> list[Sequence]:
        """New candidates, which wait for a row. offset: of their random streams within the sentence's."""
        first = self.index * SENTENCE_STREAMS + offset
        steps, group = self.row.step_limit, self.model.ar.group_size
        draws = [
            uniforms(self.settings.seed, stream, steps, group)
            for stream in range(first, first + self.settings.candidates)
        ]
        return [self.scheduler.add(replace(self.row, uniforms=numbers, codes=[])) for numbers in draws]

    def step_limit(self, row: Sequence, prompt_length: int | None) -> int:
        """AR steps allowed: what was asked for, else a share of the text, within the model's room."""
        ar = self.model.ar
        usual = self.model.layout.frame_limit(len(row.text), len(row.prompt), prompt_length)
        frames, room = self.settings.max_frames or usual, ar.room(row)
        if room < 1:
            raise PromptError(
                f"a prompt of {len(row.prompt)} frames fills the model's "
                f"{self.model.sizes['max_frames']}; use a shorter prompt"
            )
        return min(-(-frames // ar.group_size), room)

    def close(self) -> None:
        """Cancel its rows."""
        for sequence in self.candidates:
            sequence.cancel()

    def has(self, frames: int) -> bool:
        """Are the codes of a chunk of `frames` frames there? 0: only once speech has ended.

        Several candidates are decoded to their ends, since only then the best one is known.

        Raises:
            SynthesisError: the speech is too short, and a retry has failed or is not possible.
            Exception: what a row's prefill failed with.
        """
        for sequence in self.candidates:
            if sequence.error:
                raise sequence.error
        if all(sequence.finished for sequence in self.candidates):
            if self.too_short(self.best):
                self.retry()
                return False
            return True
        streamed = frames and len(self.candidates) == 1
        return bool(streamed) and self.taken + frames <= len(self.candidates[0].codes)

    def too_short(self, sequence: Sequence) -> bool:
        """Did it end by itself with fewer frames than the text can be said in?"""
        return self.check and sequence.finish_reason == EOS and len(sequence.codes) < self.fewest

    def retry(self) -> None:
        """Decode the sentence once more, with other random numbers.

        Raises:
            SynthesisError: this was the second time, or a chunk of the first has been given out.
        """
        if self.rejected or self.taken:
            found = len(self.best.codes)
            raise SynthesisError(
                f"the model made {found} frames of speech for a sentence that needs {self.fewest} or more; "
                "try another seed, or a voice from a better recording"
            )
        self.rejected = self.candidates
        self.candidates = self.queued(RETRY_STREAMS)

    def next_chunk(self, frames: int) -> NARState:
        """The next chunk, ready for the NAR: `frames` frames, or the rest if that is less or `frames` is 0.

        The NAR sees what came before a chunk as part of its prompt. So chunks end at the same frames whether
        or not speech has ended by now, which depends on the requests beside it.
        """
        kept = self.best.codes[: self.settings.max_frames or None]
        end = self.taken + frames if frames else len(kept)
        ended = all(sequence.finished for sequence in self.candidates)
        self.done = ended and (not frames or end > len(kept))
        end = min(end, len(kept))
        first = np.array(kept[self.taken : end], np.int64)
        books = self.settings.codebooks
        if frames and not self.index and not self.taken:
            books = self.settings.first_chunk_codebooks or books
        return self.model.nar.start(self.nar_text, self.context, first, books, self.model.neutral)

    def finish_chunk(self, state: NARState) -> Codes:
        """The codes (T, Q) of a chunk that the NAR has completed; the next chunk continues them."""
        self.context = state.codes
        self.taken += len(state.target)
        return state.target

    @property
    def best(self) -> Sequence:
        """The candidate that is kept, one that is long enough if there is any."""
        pool = [one for one in self.candidates if not self.too_short(one)] or self.candidates
        lengths = [len(one.codes) for one in pool]
        means = [one.log_prob / max(1, len(one.codes)) for one in pool]
        ended = [one.finish_reason == EOS for one in pool]
        return pool[best_candidate(lengths, ended, means)]

    @property
    def finish_reason(self) -> str:
        """Either "eos" or "max_frames", once it is done."""
        return self.best.finish_reason

    def add_times(self, timings: Timings) -> None:
        """Add the seconds of its prefills and of its longest decode, those of a rejected attempt too."""
        for attempt in filter(None, (self.rejected, self.candidates)):
            timings.prefill += sum(one.prefill_seconds for one in attempt)
            timings.ar += max(one.decode_seconds for one in attempt)
            timings.steps += max(one.steps for one in attempt)
