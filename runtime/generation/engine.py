"""The engine: requests in, audio out, one step at a time. Knows ids and codes, never text or files.

    engine = SynthesisEngine(model)
    request = engine.add(encoded)
    for event in engine.step(): ...

A step decodes one group of every row, prefills one chunk of the next sequence, and then makes one call of
the NAR or the codec. A long request does not hold up the streams beside it: free rows and that call go to the
request whose listener needs audio first (`generation.playback`). If that request still decodes, the step ends
without a call. On a GPU others may share the call (`generation.joint_calls`). The order does not change any
request's codes. One thread may use an engine.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Generator
from dataclasses import dataclass, field
from enum import Enum
from typing import NewType

import numpy as np

from valle2.runtime.audio.chunks import ChunkDecoder, chunk_decoder, chunk_sizes
from valle2.runtime.audio.io import silence
from valle2.runtime.audio.stretch import TimeStretcher
from valle2.runtime.errors import SynthesisError
from valle2.runtime.generation.alignment import Aligner
from valle2.runtime.generation.ar_runner import ARRunner
from valle2.runtime.generation.joint_calls import Call, CodecCall, JointCalls, NARCall
from valle2.runtime.generation.model import LoadedModel
from valle2.runtime.generation.playback import Playback
from valle2.runtime.generation.scheduler import Scheduler
from valle2.runtime.generation.sequence import Sequence, Status
from valle2.runtime.generation.token_layout import Text
from valle2.runtime.generation.utterance import Utterance
from valle2.runtime.types import EOS, Audio, Codes, Settings, Timings, Word, WordSpan, worst_reason

SILENT = 3e-3
"""A sentence whose samples are all below this (-50 dB of full scale) has no speech."""
NO_SPEECH = "the model made no speech for a sentence; try another seed, or a voice from a better recording"

RequestId = NewType("RequestId", int)


@dataclass(frozen=True, slots=True)
class Sentence:
    """One sentence of a request.

    Args:
        text: ids of the prompt's transcript and of the sentence. pause: seconds of silence before it.
        speed: 0.25 to 4: how many times faster than the model speaks, its pause included.
        words: spans of the ids whose times are wanted, in order.
    """

    text: Text
    pause: float = 0.0
    speed: float = 1.0
    words: tuple[WordSpan, ...] = ()


@dataclass(frozen=True, slots=True)
class EncodedRequest:
    """A request whose text is already normalised, split and encoded.

    Args:
        sentences: in their order.
        prompt: (P, Q) int64 codes of the voice.
        settings: how codes are drawn.
        first_chunk_seconds: seconds of speech in the first chunk; 0 makes one chunk of each sentence.
        codes_only: leave the codec out; the audio of every chunk is empty.
        whole: nobody listens before the end, so that requests with listeners go first.
        warnings: about the voice and the text, for the user.
        end_pause: seconds of silence after the last sentence.
        arrived: `time.perf_counter()` at which the request came, for its timings.
    """

    sentences: tuple[Sentence, ...]
    prompt: Codes = field(repr=False)
    settings: Settings
    first_chunk_seconds: float = 0.0
    codes_only: bool = False
    whole: bool = False
    warnings: tuple[str, ...] = ()
    end_pause: float = 0.0
    arrived: float = field(default_factory=time.perf_counter)


@dataclass(frozen=True, slots=True)
class AudioChunk:
    """The next piece of a request. audio: (N,) float32. codes: (T, Q) int64, T = 0 for a pause.

    timings: of the request, still growing. words: whose times are certain now, if they were asked for. They
    are heard in this audio or before it.
    """

    request: RequestId
    audio: Audio = field(repr=False)
    codes: Codes = field(repr=False)
    timings: Timings
    words: tuple[Word, ...] = ()


@dataclass(frozen=True, slots=True)
class Done:
    """A request is complete. finish_reason: see `Speech`."""

    request: RequestId
    finish_reason: str
    timings: Timings


@dataclass(frozen=True, slots=True)
class Failed:
    """A request has ended with an error; the others go on."""

    request: RequestId
    error: Exception


Event = AudioChunk | Done | Failed


@dataclass(frozen=True, slots=True)
class Stats:
    """What the engine holds: sequences by status, rows in all, and AR steps since it was made."""

    waiting: int
    prefilling: int
    decoding: int
    rows: int
    steps: int


class WaitFor(Enum):
    """What a request needs next."""

    ROW = "a free row"
    STEP = "an AR step, which all rows share"
    TURN = "its turn to run the NAR or the codec"


@dataclass(slots=True, eq=False)
class SynthesisState:
    """One request under way.

    Args:
        events: the engine's list, which gets this request's events.
        samples: of the audio given out.
        playback: when its listener needs audio next.
        wait_for: what it needs next. call: of the NAR or the codec, where it waits for its turn.
        work: `SynthesisEngine.speak`, suspended until it gets what it waits for.
    """

    id: RequestId
    request: EncodedRequest
    events: list[Event]
    playback: Playback
    timings: Timings = field(default_factory=Timings)
    samples: int = 0
    wait_for: WaitFor = WaitFor.STEP
    call: Call | None = None
    work: Generator[WaitFor, None, str] | None = None

    def emit(self, audio: Audio, codes: Codes, words: tuple[Word, ...] = ()) -> None:
        """Give out a chunk."""
        timings = self.timings
        timings.total = time.perf_counter() - self.request.arrived
        if len(audio) and not timings.first_audio:
            timings.first_audio = timings.total
        self.samples += len(audio)
        self.events.append(AudioChunk(self.id, audio, codes, timings, words))


class SynthesisEngine:
    """Synthesises many requests side by side.

    Args:
        model: the loaded graphs, which the engine uses alone from now on.
    """

    playback = Playback
    """How requests share rows, NAR and codec. A benchmark compares another order with this one."""

    def __init__(self, model: LoadedModel) -> None:
        self.model = model
        self.scheduler = Scheduler(model.ar.rows)
        self.joint_calls = JointCalls(model.joint_limits)
        self.requests: list[SynthesisState] = []
        self.events: list[Event] = []
        self.ids = itertools.count()
        self.steps = 0

    def add(self, request: EncodedRequest) -> RequestId:
        """Take a request; its work begins with the next step. Its errors come as `Failed`."""
        whole = request.whole or request.codes_only or not request.first_chunk_seconds
        playback = self.playback.of(time.perf_counter(), whole)
        state = SynthesisState(RequestId(next(self.ids)), request, self.events, playback)
        state.work = self.speak(state)
        self.requests.append(state)
        return state.id

    def step(self) -> list[Event]:
        """One turn of the loop; returns what came of it.

        An error of the AR step ends every request, since all of them need it.
        """
        try:
            self.steps += advance_rows(self.scheduler, self.model.ar, self.steps_at_once)
        except Exception as error:
            self.fail(error)
        self.advance_requests()
        return self.collect()

    @property
    def steps_at_once(self) -> int:
        """The most AR steps before their codes are read: one while there is other work between steps."""
        waits = any(state.wait_for is WaitFor.TURN for state in self.requests)
        return 1 if waits or self.scheduler.prefills else self.model.ar.steps_per_read

    def cancel(self, request: RequestId) -> None:
        """End a request without another event; its rows are free before the next step."""
        for state in [state for state in self.requests if state.id == request]:
            self.end(state)
        self.events[:] = [event for event in self.events if event.request != request]

    def stats(self) -> Stats:
        """Counts for gauges and logs."""
        held = [sequence.status for sequence in self.scheduler.rows if sequence]
        return Stats(
            waiting=len(self.scheduler.waiting),
            prefilling=held.count(Status.PREFILL),
            decoding=held.count(Status.DECODE),
            rows=len(self.scheduler.rows),
            steps=self.steps,
        )

    @property
    def busy(self) -> bool:
        """Is there a request under way?"""
        return bool(self.requests)

    def close(self) -> None:
        """Cancel every request and free the model's memory."""
        for state in list(self.requests):
            self.end(state)
        self.model.close()

    # -- one request ----------------------------------------------------------------------------

    def speak(self, state: SynthesisState) -> Generator[WaitFor, None, str]:
        """A request's stages in their order (figure 1): AR, NAR, codec; by sentences and chunks.

        Returns:
            The finish reason.
        """
        request, model, timings = state.request, self.model, state.timings
        reasons = set[str]()
        for index, spoken in enumerate(request.sentences):
            text, speed = spoken.text, spoken.speed
            if spoken.pause and not request.codes_only:
                self.emit_pause(state, spoken.pause / speed)
            decoder, sizes = self.open_chunks(request)
            stretcher = self.open_stretcher(speed)
            aligner, began = self.open_words(spoken), state.samples
            heard, playback, loudest = not request.codes_only, state.playback, 0.0
            with Utterance(
                model, self.scheduler, text, request.prompt, request.settings, index, playback, heard=heard
            ) as sentence:
                while not sentence.done:
                    frames = next(sizes)
                    while not sentence.has(frames):
                        yield WaitFor.STEP if sentence.has_row else WaitFor.ROW
                    chunk = sentence.next_chunk(frames)
                    for codebook in chunk.passes:
                        yield from self.take_turn(state, NARCall(model.nar, chunk, codebook))
                    codes, audio = sentence.finish_chunk(chunk), np.zeros(0, np.float32)
                    if decoder:
                        call = CodecCall(decoder, codes, last=sentence.done)
                        yield from self.take_turn(state, call)
                        with timings.stage("codec"):
                            audio = decoder.finish(call.wave, last=sentence.done)
                            loudest = max(loudest, float(np.abs(audio).max(initial=0.0)))
                            if stretcher:
                                audio = stretcher.add(audio, last=sentence.done)
                        if sentence.done and loudest < SILENT:
                            if state.samples > began or not sentence.reject_silence():
                                raise SynthesisError(NO_SPEECH)
                            decoder, sizes = self.open_chunks(request)
                            stretcher, aligner = self.open_stretcher(speed), self.open_words(spoken)
                            continue
                    if sentence.done:
                        sentence.add_times(timings)
                    words: tuple[Word, ...] = ()
                    if aligner:
                        words = aligner.add(codes[:, 0])
                        if sentence.done:
                            words += aligner.finish(complete=sentence.finish_reason == EOS)
                    self.emit(state, audio, codes, self.heard(words, began, speed))
                reasons.add(sentence.finish_reason)
        if request.end_pause and not request.codes_only:
            self.emit_pause(state, request.end_pause)
        return worst_reason(reasons)

    def take_turn(self, state: SynthesisState, call: Call) -> Generator[WaitFor, None, None]:
        """Wait until the engine has made this call, alone or with others.

        Raises:
            Exception: what the call failed with.
        """
        state.call = call
        yield WaitFor.TURN
        state.call = None
        setattr(state.timings, call.stage, getattr(state.timings, call.stage) + call.seconds)
        if call.error:
            raise call.error

    def open_chunks(self, request: EncodedRequest) -> tuple[ChunkDecoder | None, Generator[int, None, None]]:
        """How a sentence's codes become audio, and the frames of its chunks."""
        if request.codes_only:
            return None, chunk_sizes(0.0, 1.0)
        codec, seconds = self.model.need_codec(), request.first_chunk_seconds
        return chunk_decoder(codec, seconds), chunk_sizes(seconds, codec.frame_rate)

    def open_stretcher(self, speed: float) -> TimeStretcher | None:
        """What changes a sentence's speed, if it is to be changed."""
        return None if speed == 1.0 else TimeStretcher(speed, self.model.need_codec().sample_rate)

    def open_words(self, sentence: Sentence) -> Aligner | None:
        """What finds the times of a sentence's words, if they are wanted."""
        if not sentence.words:
            return None
        first = sentence.text.prompt_length or 0
        words = [WordSpan(word.text, word.start - first, word.end - first) for word in sentence.words]
        table, rate = self.model.need_alignment(), self.model.need_codec().frame_rate
        return Aligner(table, sentence.text.ids[first:], words, rate)

    def heard(self, words: tuple[Word, ...], began: int, speed: float) -> tuple[Word, ...]:
        """Words of a sentence with their times in the request's audio.

        Args:
            words: with their times in the sentence as the model speaks it. began: sample where it begins.
        """
        if not words:
            return ()
        start = began / self.model.need_codec().sample_rate
        return tuple(Word(one.text, start + one.start / speed, start + one.end / speed) for one in words)

    def emit_pause(self, state: SynthesisState, seconds: float) -> None:
        """Silence before a sentence."""
        rate = self.model.need_codec().sample_rate
        self.emit(state, silence(seconds, rate), np.zeros((0, state.request.prompt.shape[1]), np.int64))

    def emit(self, state: SynthesisState, audio: Audio, codes: Codes, words: tuple[Word, ...] = ()) -> None:
        """Give out a chunk, which moves the request's deadline."""
        if len(audio):
            state.playback.add(len(audio) / self.model.need_codec().sample_rate, time.perf_counter())
        state.emit(audio, codes, words)

    # -- all requests ---------------------------------------------------------------------------

    def advance_requests(self) -> None:
        """Let requests use the new codes; then make the call that is due first, and others with it."""
        for state in [state for state in self.requests if state.wait_for is not WaitFor.TURN]:
            self.advance(state)
        ready = [state for state in self.requests if state.wait_for is WaitFor.TURN]
        ready.sort(key=lambda state: state.playback.due)
        if not ready or self.must_yield(ready[0]):
            return
        calls = [state.call for state in ready if state.call]
        now = time.perf_counter()
        chosen = self.joint_calls.choose(calls, [state.playback for state in ready])
        self.joint_calls.run([calls[index] for index in chosen])
        for state in [ready[index] for index in chosen]:
            state.playback.take_turn(now)
            self.advance(state)

    def must_yield(self, state: SynthesisState) -> bool:
        """Does a request that is due before this one wait for AR steps? A call would delay them."""
        steps = (other for other in self.requests if other.wait_for is WaitFor.STEP)
        return any(other.playback.goes_before(state.playback) for other in steps)

    def advance(self, state: SynthesisState) -> None:
        """Run one request to its next wait. Its error is its own."""
        assert state.work
        try:
            state.wait_for = next(state.work)
        except StopIteration as end:
            self.events.append(Done(state.id, end.value, state.timings))
            self.end(state)
        except Exception as error:
            self.events.append(Failed(state.id, error))
            self.end(state)

    def end(self, state: SynthesisState) -> None:
        """Forget a request and free its rows."""
        if state.work:
            state.work.close()
        self.requests.remove(state)
        retire(self.scheduler, self.model.ar)

    def fail(self, error: Exception) -> None:
        """End every request with this error."""
        for state in list(self.requests):
            self.end(state)
            self.events.append(Failed(state.id, error))

    def collect(self) -> list[Event]:
        """The events since the last call."""
        found = self.events[:]
        self.events.clear()
        return found


def advance_rows(scheduler: Scheduler, ar: ARRunner, most: int = 1) -> int:
    """Decode one group of every row that decodes; then one prefill chunk of the next sequence.

    After its last chunk a sequence joins the rows that decode. An error of a chunk fails only that sequence.

    Args:
        most: groups to decode before they are read. A sequence that has ended among them takes no more, and
            one whose end is rejected goes on from there. So the codes are those of one group at a time.

    Returns:
        How many AR steps were run.
    """
    retire(scheduler, ar)
    decoding, number = scheduler.decoding(), 0
    if decoding:
        count = decoding[-1].row + 1
        busy = {sequence.row for sequence in decoding}
        began = time.perf_counter()
        number = min(most, *(sequence.step_limit - sequence.steps for sequence in decoding))
        outputs = ar.steps(number, count, tuple(row for row in range(count) if row not in busy))
        drawn = [(one.codes[:count].tolist(), one.log_probs[:count].tolist()) for one in outputs]
        seconds = (time.perf_counter() - began) / number
        for sequence in decoding:
            for back, (codes, log_probs) in zip(reversed(range(number)), drawn, strict=True):
                sequence.decode_seconds += seconds
                kept = take_group(ar, sequence, codes[sequence.row], log_probs[sequence.row], back=back)
                if sequence.finished or not kept:
                    break
        retire(scheduler, ar)
    prefill_next(scheduler, ar)
    return number


def prefill_next(scheduler: Scheduler, ar: ARRunner) -> None:
    """Run one chunk of the sequence in PREFILL, or of the first that gets a free row."""
    sequence = scheduler.next_prefill()
    if sequence is None:
        return
    row, began = sequence.row, time.perf_counter()
    try:
        if row not in ar.prefills:
            ar.start_prefill(row, sequence)
        entered = ar.prefill_chunk(row)
        output = ar.output() if entered else None
    except Exception as error:
        sequence.fail(error)
        retire(scheduler, ar)
        return
    sequence.prefill_seconds += time.perf_counter() - began
    if output:
        sequence.status = Status.DECODE
        take_group(ar, sequence, output.codes[row].tolist(), output.log_probs[row].tolist(), prefilled=True)


def take_group(
    ar: ARRunner,
    sequence: Sequence,
    codes: list[int],
    log_probs: list[float],
    *,
    prefilled: bool = False,
    back: int = 0,
) -> bool:
    """Give a sequence the group that was drawn for it, drawn again if it ends the speech too early.

    Args:
        back: how many steps came after that of the group.

    Returns:
        Whether the group is as it was drawn.
    """
    early = sequence.ends_early(codes)
    if early:
        codes, log_probs = ar.redraw(sequence, codes, prefilled=prefilled, back=back)
    sequence.append(codes, log_probs)
    return not early


def retire(scheduler: Scheduler, ar: ARRunner) -> None:
    """Free the rows of finished sequences."""
    for sequence in scheduler.retire():
        ar.release(sequence.row)
