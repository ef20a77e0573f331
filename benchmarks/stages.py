"""Single stages of a loaded model, for benchmarks that time or check one stage alone.

This is the only module of the benchmarks that knows how the runtime keeps rows, caches and bound calls. All
other benchmarks use the public names of `valle2.runtime` and the functions here. Axes: B rows, G codes per
group, L text ids, P prompt frames, Q codebooks, T frames of speech.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from valle2.engine import Backend
from valle2.engine.bundle.nar_inputs import NARInputs
from valle2.engine.bundle.precisions import AUTO
from valle2.engine.bundle.schema import MAX_WINDOW
from valle2.engine.errors import Valle2Error
from valle2.runtime import Prompt, Request, Settings, Valle2
from valle2.runtime.generation.ar_runner import ARRunner
from valle2.runtime.generation.engine import advance_rows
from valle2.runtime.generation.scheduler import Scheduler
from valle2.runtime.generation.sequence import Sequence
from valle2.runtime.types import Codes

Floats = NDArray[np.float32]
ARRow = Sequence
"""One sequence as `ARStage` takes it; made by `ar_row`."""


def load_model(model: str | Path, **options: Any) -> Valle2:
    """`Valle2.load`, which has to run in the precision that is asked for.

    Raises:
        Valle2Error: it runs in another one, because the weights that a recipe makes cannot be kept.
    """
    tts = Valle2.load(model, **options)
    asked = options.get("precision", AUTO)
    if asked not in (AUTO, tts.precision):
        found = tts.precision
        tts.close()
        raise Valle2Error(
            f"{asked} was asked for and {model} runs in {found}; set XDG_CACHE_HOME to a folder that can be "
            "written"
        )
    return tts


@dataclass(frozen=True, slots=True)
class EncodedSentence:
    """The inputs of AR and NAR for the first sentence of a request.

    text: (L,) ids that the AR reads, with `<eos>`. nar_text: ids that the NAR reads. prompt: (P, Q) codes, P
    a multiple of G. start: start positions between text and codes, 0 or 1.
    """

    text: Codes
    nar_text: Codes
    prompt: Codes
    start: int


def encode_sentences(tts: Valle2, request: Request) -> list[EncodedSentence]:
    """Every sentence of a request as the graphs read it."""
    layout, group = tts.model.layout, tts.manifest.sizes["group_size"]
    encoded = tts.encode(request)
    prompt = encoded.prompt[len(encoded.prompt) % group :]
    texts = [sentence.text for sentence in encoded.sentences]
    return [EncodedSentence(*layout.texts(text), prompt, int(layout.code_bos)) for text in texts]


def transcript_length(tts: Valle2, voice: Prompt) -> int:
    """Text ids of a voice's transcript."""
    assert tts.front is not None
    return len(tts.front.encode(voice.transcript))


def ar_row(text: Codes, prompt: Codes, uniforms: Floats, settings: Settings, start: int = 1) -> ARRow:
    """One sequence for `ARStage`.

    Args:
        text: (L,) ids with `<eos>`. prompt: (P,) codes of codebook 0, P a multiple of G.
        uniforms: (N, G, 2), the random numbers of N steps. start: start positions after the text, 0 or 1.
    """
    return Sequence(text, prompt, uniforms, settings, start)


class ARStage:
    """The AR graph of a loaded model and its rows. Nothing else may use the model at the same time."""

    def __init__(self, tts: Valle2) -> None:
        self.runner: ARRunner = tts.model.ar

    @property
    def group_size(self) -> int:
        """G, codes per step."""
        return self.runner.group_size

    @property
    def max_groups(self) -> int:
        """Groups of prompt and speech that fit into one row."""
        return self.runner.max_groups

    @property
    def capacity(self) -> int:
        """Positions of one row's KV cache."""
        return self.runner.capacity

    @property
    def chunk(self) -> int:
        """Positions that one prefill call computes. It may be set."""
        return self.runner.chunk

    @chunk.setter
    def chunk(self, positions: int) -> None:
        self.runner.chunk = positions

    def prefill(self, index: int, row: ARRow) -> None:
        """Prefill the row with this index in one go."""
        self.runner.enter(index, row)

    def prefill_chunks(self, index: int, row: ARRow) -> Iterator[bool]:
        """Prefill one chunk per iteration. Other rows may step between two chunks."""
        self.runner.start_prefill(index, row)
        last = False
        while not last:
            last = self.runner.prefill_chunk(index)
            yield last

    def step(self, rows: int) -> None:
        """Decode one position of the first `rows` rows."""
        self.runner.step(rows)

    def positions(self) -> list[int]:
        """Positions that each row's cache holds for the next step."""
        found: list[int] = self.runner.states[self.runner.turn]["past_lengths"].read().tolist()
        return found

    def set_positions(self, rows: int, positions: int) -> None:
        """Let the next step of the first rows see `positions` positions of their caches."""
        state = self.runner.states[self.runner.turn]
        for name, value in (("past_lengths", positions), ("steps", 0)):
            state[name].rows(slice(0, rows)).write(np.full(rows, value))

    def caches(self) -> dict[str, NDArray[np.float32]]:
        """Keys and values by tensor name, each (B, heads, capacity, head width)."""
        return {name: buffer.read() for name, buffer in self.runner.caches.items()}

    def first_draws(self, row: ARRow, codes: Codes) -> Codes:
        """Decode with known codes: each step draws a group, then reads the true codes instead of it.

        Args:
            row: the sequence, with random numbers for N steps. codes: (T,) the true codes of codebook 0.

        Returns:
            (N * G,) what each step drew from the nucleus.
        """
        group, steps = self.group_size, len(row.uniforms)
        true = np.zeros(steps * group, np.int64)
        true[: len(codes)] = codes
        found = []
        self.prefill(0, row)
        for step in range(min(steps, self.runner.room(row))):
            if step:
                self.step(1)
            found.append(self.runner.output().codes[0].copy())
            fed = self.runner.states[self.runner.turn]["codes"].rows(slice(0, 1))
            fed.write(true[step * group :][:group].reshape(1, 1, group))
        return np.concatenate(found)

    def logits(self, row: ARRow) -> Floats:
        """(G, classes): logits after the row's prompt. The chunks before the last one fill the caches."""
        runner = self.runner
        runner.start_prefill(0, row)
        state = runner.prefills[0]
        *before, end = state.ends
        for _ in before:
            runner.prefill_chunk(0)
        start = before[-1] if before else 0
        inputs = state.inputs | runner.chunk_inputs(state.prefix, start, end)
        runner.release(0)
        feeds = {name: buffer.read() for name, buffer in inputs.items()}
        return np.asarray(runner.backend.run(feeds, ("logits",))["logits"][0])


def decode_together(
    backend: Backend,
    sizes: Mapping[str, int],
    capacity: int,
    rows: list[ARRow],
    steps: int,
    decoder: Backend | None = None,
) -> list[Codes]:
    """Decode rows in one batch. Each enters one step after the row before, so that prefill meets decode.

    Args:
        backend: an AR graph. sizes: the model's. capacity: positions of its cache. steps: of each row.
            decoder: the graph of the steps, where it is another.

    Returns:
        Codes (T,) of codebook 0 of each row, up to its `<eos>`.
    """
    runner = ARRunner(backend, sizes, capacity, len(rows), MAX_WINDOW, decoder=decoder)
    scheduler = Scheduler(len(rows))
    sequences = [scheduler.add(replace(row, step_limit=steps, codes=[])) for row in rows]
    while not all(sequence.finished for sequence in sequences):
        advance_rows(scheduler, runner)
    return [np.array(sequence.codes, np.int64) for sequence in sequences]


class StepClock:
    """Seconds spent inside the AR graph's bound calls; the rest of the AR time is host overhead."""

    def __init__(self, tts: Valle2) -> None:
        self.bound = tts.model.ar.bound
        self.seconds = 0.0
        self.clocked: set[tuple[int, int]] = set()

    def restart(self) -> None:
        """Count from 0, and include the calls that were bound since the last restart."""
        for key in self.bound.keys() - self.clocked:
            self.bound[key] = self.timed(self.bound[key])
            self.clocked.add(key)
        self.seconds = 0.0

    def timed(self, step: Callable[[], None]) -> Callable[[], None]:
        def call() -> None:
            began = time.perf_counter()
            step()
            self.seconds += time.perf_counter() - began

        return call


def nar_pass(tts: Valle2, sentence: EncodedSentence, codes: Codes, stage: int) -> tuple[Floats, Codes]:
    """One NAR pass.

    Args:
        codes: (T, Q) of the target; the pass reads codebooks 0..stage-1. stage: 1..Q-1.

    Returns:
        Logits (T, classes) of codebook `stage`, and its codes (T,).
    """
    whole = np.concatenate([sentence.prompt, codes])
    inputs = NARInputs(
        text=sentence.nar_text[None],
        text_lengths=np.array([len(sentence.nar_text)]),
        codes=whole[None],
        prompt_lengths=np.array([len(sentence.prompt)]),
        frame_lengths=np.array([len(whole)]),
        stage=np.array(stage),
    )
    found = tts.model.nar.backend.run(inputs.feeds(), ("logits", "codes_out"))
    return found["logits"][0], found["codes_out"][0]
