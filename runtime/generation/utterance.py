"""One sentence on its way: its rows in the AR batch, and the codes that the NAR has completed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from valle2.engine import Closing
from valle2.engine.bundle.schema import MAX_CANDIDATES
from valle2.runtime.errors import PromptError
from valle2.runtime.generation.model import LoadedModel
from valle2.runtime.generation.nar_runner import NARState
from valle2.runtime.generation.playback import Playback
from valle2.runtime.generation.repetition import LoopDetector
from valle2.runtime.generation.sampling import best_candidate, uniforms
from valle2.runtime.generation.scheduler import Scheduler
from valle2.runtime.generation.sequence import Sequence, Status
from valle2.runtime.generation.token_layout import Text
from valle2.runtime.types import EOS, MAX_FRAMES, Codes, Settings, Timings

SENTENCE_STREAMS = 2**16
"""Streams of random numbers that one sentence may use: one for each candidate of each attempt."""
RETRY_STREAMS = SENTENCE_STREAMS // 2
"""Where the streams of the retries begin."""


class Utterance(Closing):
    """One sentence. As a context manager it cancels its rows when the block ends.

    Args:
        model: what it runs on. scheduler: gets a sequence for each candidate.
        text: ids of the transcript and the sentence, without marks. prompt: (P, Q) int64.
        index: which sentence of its request, so that each draws its own random numbers.
        playback: when its request's listener needs audio next.
        heard: it becomes audio, so it may not be empty: unless the settings give another number, it has as
            many frames as its text can be said in.

    An attempt has failed if it repeats itself, reaches the model's own limit or is silent. Then the sentence
    is decoded again, as often as `Settings.attempts` allows, unless a chunk has been given out.

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
        heard: bool = False,
    ) -> None:
        self.model, self.scheduler, self.settings = model, scheduler, settings
        self.index = index
        group = model.ar.group_size
        ar_text, self.nar_text = model.layout.texts(text)
        self.context = prompt[len(prompt) % group :]
        prompt_codes = self.context[:, 0]
        nar_frames = model.nar_prompt_frames(settings, self.context)
        self.context = self.prompt_context = self.context[len(self.context) - nar_frames :]
        start = int(model.layout.code_bos)
        empty = np.zeros((0, group, 2), np.float32)
        self.row = Sequence(ar_text, prompt_codes, empty, settings, start, playback=playback or Playback())
        needed = model.layout.fewest_frames(len(text.ids), text.prompt_length, len(prompt)) if heard else 0
        self.row.min_frames = settings.min_frames or needed
        self.row.step_limit = self.step_limit(self.row, text.prompt_length)
        self.attempts = [self.queued(0)]
        self.kept = 0
        self.silent: set[int] = set()
        self.taken = 0
        self.begun = self.known = 0
        self.done = False

    @property
    def candidates(self) -> list[Sequence]:
        """The sequences of the attempt under way, or of the one that is kept."""
        return self.attempts[self.kept]

    def queued(self, attempt: int) -> list[Sequence]:
        """New candidates, which wait for a row. attempt: from 0; each has random numbers of its own."""
        first = self.index * SENTENCE_STREAMS
        if attempt:
            first += RETRY_STREAMS + (attempt - 1) * MAX_CANDIDATES
        steps, group = self.row.step_limit, self.model.ar.group_size
        draws = [
            uniforms(self.settings.seed, stream, steps, group)
            for stream in range(first, first + self.settings.candidates)
        ]
        return [self.scheduler.add(self.candidate(numbers)) for numbers in draws]

    def candidate(self, numbers: NDArray[np.float32]) -> Sequence:
        """A new sequence of the sentence. numbers: (N, G, 2), its random numbers."""
        limit = self.settings.loop_frames
        return replace(self.row, uniforms=numbers, codes=[], loop=LoopDetector(limit) if limit else None)

    def step_limit(self, row: Sequence, prompt_length: int | None) -> int:
        """AR steps allowed: what was asked for, else a share of the text, within the model's room."""
        ar = self.model.ar
        usual = self.model.layout.frame_limit(len(row.text), len(row.prompt), prompt_length)
        frames, room = self.settings.max_frames or max(usual, self.settings.min_frames), ar.room(row)
        if room < 1:
            raise PromptError(
                f"a prompt of {len(row.prompt)} frames fills the model's "
                f"{self.model.sizes['max_frames']}; use a shorter prompt"
            )
        return min(-(-frames // ar.group_size), room)

    def close(self) -> None:
        """Cancel its rows."""
        for sequence in self.attempts[-1]:
            sequence.cancel()

    @property
    def has_row(self) -> bool:
        """Does a candidate decode or prefill? Otherwise AR steps do not advance the sentence."""
        return any(one.status in (Status.PREFILL, Status.DECODE) for one in self.candidates)

    def has(self, frames: int) -> bool:
        """Are the codes of a chunk of `frames` frames there? 0: only once speech has ended.

        Several candidates are decoded to their ends, since only then the best one is known.

        Raises:
            Exception: what a row's prefill failed with.
        """
        for sequence in self.candidates:
            if sequence.error:
                raise sequence.error
        if all(sequence.finished for sequence in self.candidates):
            if self.cut_off and self.retry():
                return False
            if self.cut_off and not self.taken:
                self.keep_first()
            return True
        streamed = frames and len(self.candidates) == 1
        return bool(streamed) and self.taken + frames <= len(self.candidates[0].codes)

    @property
    def cut_off(self) -> bool:
        """Was its speech cut off by something else than the user's own limit?"""
        return self.finish_reason not in (EOS, MAX_FRAMES if self.settings.max_frames else EOS)

    def retry(self) -> bool:
        """Decode the sentence once more, if that is possible. Is it?"""
        if self.taken or len(self.attempts) >= self.settings.attempts:
            return False
        self.attempts.append(self.queued(len(self.attempts)))
        self.kept = len(self.attempts) - 1
        return True

    def reject_silence(self) -> bool:
        """Its audio is silent and none of it has been given out: take another attempt. Is there one?"""
        self.silent.add(self.kept)
        self.context, self.taken, self.done = self.prompt_context, 0, False
        self.begun = self.known = 0
        return self.retry() or self.keep_first()

    def keep_first(self) -> bool:
        """Keep the first attempt that is not known to be silent. Is there one?"""
        left = [index for index in range(len(self.attempts)) if index not in self.silent]
        self.kept = left[0] if left else self.kept
        return bool(left)

    def next_chunk(self, frames: int) -> NARState:
        """The next chunk, ready for the NAR: `frames` frames, or the rest if that is less or `frames` is 0.

        The NAR sees what came before a chunk as part of its prompt. So chunks end at the same frames whether
        or not speech has ended by now, which depends on the requests beside it.

        A first chunk may have fewer codebooks than the rest (`Settings.first_chunk_codebooks`). Then the
        second chunk's state computes those that it lacks, in the same passes. So later chunks hear the first
        as if it had had all codebooks. Its audio has been given out and does not change.
        """
        kept = self.best.codes[: self.settings.max_frames or None]
        end = self.taken + frames if frames else len(kept)
        ended = all(sequence.finished for sequence in self.candidates)
        self.done = ended and (not frames or end > len(kept))
        end = min(end, len(kept))
        first = np.array(kept[self.taken : end], np.int64)
        first_chunk = bool(frames) and not self.index and not self.taken
        books = self.model.codebooks(self.settings, first_chunk=first_chunk)
        return self.model.nar.start(
            self.nar_text, self.context, first, books, self.model.neutral, self.begun, self.known
        )

    def finish_chunk(self, state: NARState) -> Codes:
        """The codes (T, Q) of a chunk that the NAR has completed; the next chunk continues them."""
        lacks_some = state.codebooks < self.model.codebooks(self.settings, first_chunk=False)
        self.begun, self.known = (len(state.fresh), state.codebooks) if lacks_some else (0, 0)
        self.context = state.codes
        self.taken += len(state.fresh)
        return state.fresh

    @property
    def best(self) -> Sequence:
        """The candidate that is kept."""
        lengths = [len(one.codes) for one in self.candidates]
        means = [one.log_prob / max(1, len(one.codes)) for one in self.candidates]
        ended = [one.finish_reason == EOS for one in self.candidates]
        return self.candidates[best_candidate(lengths, ended, means)]

    @property
    def finish_reason(self) -> str:
        """Of what is kept, once it is done."""
        return self.best.finish_reason

    def add_times(self, timings: Timings) -> None:
        """Add the seconds of its prefills and of its longest decode, for each attempt; count the retries."""
        timings.retries += len(self.attempts) - 1
        for attempt in self.attempts:
            timings.prefill += sum(one.prefill_seconds for one in attempt)
            timings.ar += max(one.decode_seconds for one in attempt)
            timings.steps += max(one.steps for one in attempt)
