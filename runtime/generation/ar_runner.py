"""Runs the AR graph: grouped decoding of codebook 0 over a fixed number of rows (VALL-E 2, section 3.3).

`ARRunner` holds the arrays and no policy: the scheduler says which rows run and when they stop. Each row is
at a position of its own, and the others may step between two chunks of a row's prefill. The small outputs of
a step are the inputs of the next one, so sets of buffers swap roles: two, or more where several steps run
before their codes are read. The KV caches are updated in place and never copied. Axes: B rows, G codes of a
group.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from valle2.engine import Backend, BackendError, Buffer, Step
from valle2.engine.bundle.contract import CACHE_PREFIX, CODEBOOK_SIZE, EOS_CODE, LOGITS, OUT_SUFFIX
from valle2.engine.bundle.profiles import PREFILL_CHUNK
from valle2.engine.bundle.schema import head_width
from valle2.runtime.generation.sampling import sample_group
from valle2.runtime.generation.sequence import Sequence
from valle2.runtime.types import Codes

STATE = ("codes", "past_lengths", "steps", "history")
EMPTY = -1
"""What the history holds where no code has been drawn."""


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What each row's latest step or prefill drew: views that the next step overwrites.

    Args:
        codes: (B, G) int64. log_probs: (B, G) float32, of each code.
    """

    codes: Codes
    log_probs: NDArray[np.float32]


@dataclass(slots=True)
class PrefillState:
    """A row whose prefill is under way.

    Args:
        prefix: the row's inputs: text, codes, history, steps. ends: positions at which its chunks end.
        inputs: views of the row in the fixed buffers and the caches. outputs: of the row in the outputs.
        chunks: how many chunks have been computed.
    """

    prefix: Mapping[str, Codes]
    ends: list[int]
    inputs: dict[str, Buffer]
    outputs: dict[str, Buffer]
    chunks: int = 0


class ARRunner:
    """The AR graph, its KV caches and the rows that share it.

    Args:
        backend: the AR graph. sizes: the manifest's. cache_length: positions of the cache where the graph
            fixes them, 0 where any number fits. rows: how many sequences fit side by side.
        window: the longest repetition window. chunk: positions that one call prefills.
        whole_text: the first chunk takes all of the text, for models whose text attends in both directions.
        decoder: the graph of a step, where it is another than the graph of the prefill.
        prefiller: a graph that fills a row's caches and draws nothing, where there is one. `backend` then
            computes a prefill's last position.
        steps_per_read: the most steps that run before their codes are read.

    Memory is reserved for every row's longest sequence; on a CPU it is only used where it is touched.
    """

    def __init__(
        self,
        backend: Backend,
        sizes: Mapping[str, int],
        cache_length: int,
        rows: int,
        window: int,
        *,
        chunk: int = PREFILL_CHUNK,
        whole_text: bool = False,
        decoder: Backend | None = None,
        prefiller: Backend | None = None,
        steps_per_read: int = 1,
    ) -> None:
        self.backend, self.rows, self.chunk, self.whole_text = backend, rows, chunk, whole_text
        self.decoder, self.prefiller = decoder or backend, prefiller
        self.steps_per_read = steps_per_read
        self.group_size = sizes["group_size"]
        self.max_groups = sizes["max_frames"] // self.group_size
        self.capacity = cache_length or sizes["max_text"] + 1 + self.max_groups
        self.dtypes = {spec.name: spec.dtype for spec in (*backend.spec.inputs, *backend.spec.outputs)}
        names = [spec.name for spec in backend.spec.inputs if spec.name.startswith(CACHE_PREFIX)]
        shape = (rows, sizes["heads"], self.capacity, head_width(sizes))
        self.caches = {name: self.zeros(name, shape) for name in names}
        group = self.group_size
        self.fixed = {
            "text_lengths": self.zeros("text_lengths", (rows,)),
            "uniforms": self.zeros("uniforms", (rows, self.max_groups, group, 2)),
            "top_p": self.zeros("top_p", (rows,)),
            "repeat_window": self.filled("repeat_window", np.ones(rows)),
            "threshold": self.zeros("threshold", (rows,)),
        }
        self.step_inputs = {
            "text": self.zeros("text", (rows, 1)),
            "new_lengths": self.filled("new_lengths", np.ones(rows)),
        }
        self.outputs = {"finished": self.zeros("finished", (rows,))}
        shapes = {
            "codes": (rows, 1, group),
            "past_lengths": (rows,),
            "steps": (rows,),
            "history": (rows, window),
        }
        self.prefill_logits = self.logits_buffer(backend)
        sets = 1 + steps_per_read
        self.states = [{name: self.zeros(name, shapes[name]) for name in STATE} for _ in range(sets)]
        self.log_probs = [self.zeros("log_probs", (rows, group)) for _ in range(sets)]
        self.turn = 0
        self.prefills: dict[int, PrefillState] = {}
        self.prefilled = np.zeros(rows, np.int64)
        self.parked: dict[int, int] = {}
        self.bound: dict[tuple[int, int], Step] = {}

    def close(self) -> None:
        """Free the graph's memory and the caches."""
        for buffers in (self.bound, self.prefills, self.caches, self.fixed, self.step_inputs, self.outputs):
            buffers.clear()
        self.states.clear()
        self.log_probs.clear()
        self.backend.close()
        if self.decoder is not self.backend:
            self.decoder.close()
        if self.prefiller:
            self.prefiller.close()

    def room(self, sequence: Sequence) -> int:
        """Steps that fit behind the sequence's prefix."""
        left = self.max_groups - len(sequence.prompt) // self.group_size
        return min(left, self.capacity - sequence.positions(self.group_size) + 1)

    # -- prefill --------------------------------------------------------------------------------

    def enter(self, row: int, sequence: Sequence) -> None:
        """Prefill a row without a pause."""
        self.start_prefill(row, sequence)
        while not self.prefill_chunk(row):
            pass

    def start_prefill(self, row: int, sequence: Sequence) -> None:
        """Prepare a row's prefill, whatever was there; other rows stay as they are.

        Where its chunks end depends on nothing but the sequence, so its codes are the same in any company.

        Raises:
            BackendError: the sequence does not fit the KV cache.
        """
        positions = sequence.positions(self.group_size)
        if self.room(sequence) < 1:
            raise BackendError(
                f"a sequence of {positions} positions, {len(sequence.prompt)} frames of prompt among them, "
                f"leaves no room for speech; the model has {self.capacity} positions and "
                f"{self.max_groups * self.group_size} frames: use a shorter text or prompt"
            )
        self.write_settings(row, sequence)
        only = slice(row, row + 1)
        inputs = {name: buffer.rows(only) for name, buffer in {**self.fixed, **self.caches}.items()}
        outputs = {name: buffer.rows(only) for name, buffer in self.outputs.items()}
        outputs |= {f"{name}{OUT_SUFFIX}": inputs[name] for name in self.caches}
        outputs[LOGITS] = self.prefill_logits
        self.prefills[row] = PrefillState(self.prefix(sequence), self.chunk_ends(sequence), inputs, outputs)
        self.prefilled[row] = 0

    def prefill_chunk(self, row: int) -> bool:
        """Compute the next chunk of a row's prefill; until the last one the row is idle (see `step`).

        Returns:
            Whether that was the last chunk. It drew the row's first group; what the others draw is
            overwritten.
        """
        state = self.prefills[row]
        start = state.ends[state.chunks - 1] if state.chunks else 0
        end = state.ends[state.chunks]
        only = slice(row, row + 1)
        drawn = {f"{name}{OUT_SUFFIX}": buffer.rows(only) for name, buffer in self.states[self.turn].items()}
        drawn["log_probs"] = self.log_probs[self.turn].rows(only)
        inputs = state.inputs | self.chunk_inputs(state.prefix, start, end)
        if self.prefiller and end < state.ends[-1]:
            self.bind_named(self.prefiller, inputs, state.outputs)()
        else:
            self.backend.bind(inputs, state.outputs | drawn)()
        state.chunks += 1
        self.prefilled[row] = end
        if end < state.ends[-1]:
            return False
        self.release(row)
        return True

    def release(self, row: int) -> None:
        """Forget a row's prefill: it has ended or nobody wants it."""
        self.prefills.pop(row, None)
        self.prefilled[row] = 0

    def chunk_ends(self, sequence: Sequence) -> list[int]:
        """Positions at which the chunks of a sequence's prefix end."""
        positions = sequence.positions(self.group_size)
        first = max(self.chunk, len(sequence.text) if self.whole_text else 0)
        if self.prefiller and positions > 1:
            return [*range(first, positions - 1, self.chunk), positions - 1, positions]
        return [*range(first, positions, self.chunk), positions]

    def chunk_inputs(self, prefix: Mapping[str, Codes], start: int, end: int) -> dict[str, Buffer]:
        """Inputs of positions start..end-1 of a prefix."""
        parts = {name: prefix[name][:, start:end] for name in ("text", "codes")}
        lengths = {"past_lengths": np.array([start]), "new_lengths": np.array([end - start])}
        return {name: self.filled(name, array) for name, array in {**prefix, **parts, **lengths}.items()}

    def prefix(self, sequence: Sequence) -> dict[str, Codes]:
        """Inputs of a whole prefill: text, start mark, prompt groups; the prompt's last codes as history."""
        positions, length = sequence.positions(self.group_size), len(sequence.text)
        text = np.zeros((1, positions), np.int64)
        codes = np.zeros((1, positions, self.group_size), np.int64)
        text[0, :length] = sequence.text
        codes[0, length + sequence.start :] = sequence.prompt.reshape(-1, self.group_size)
        history = np.full((1, self.states[0]["history"].shape[1]), EMPTY, np.int64)
        tail = sequence.prompt[-history.shape[1] :]
        history[0, history.shape[1] - len(tail) :] = tail
        return {"text": text, "codes": codes, "history": history, "steps": np.zeros(1, np.int64)}

    def write_settings(self, row: int, sequence: Sequence) -> None:
        """Write a row's inputs that stay the same at every step."""
        draws = np.zeros(self.fixed["uniforms"].shape[1:], np.float32)
        draws[: len(sequence.uniforms)] = sequence.uniforms
        settings = sequence.settings
        values: dict[str, Any] = {
            "text_lengths": len(sequence.text),
            "uniforms": draws,
            "top_p": settings.top_p,
            "repeat_window": settings.window,
            "threshold": settings.threshold,
        }
        for name, value in values.items():
            target = self.fixed[name].rows(slice(row, row + 1))
            target.write(np.asarray(value, self.dtypes[name])[None])

    # -- decode ---------------------------------------------------------------------------------

    def step(self, count: int, idle: tuple[int, ...] = ()) -> None:
        """Decode one group of rows 0..count-1.

        Idle rows among them compute a position that nobody reads, behind what they have prefilled.
        """
        self.park(idle)
        key, following = (count, self.turn), self.set_of(-1)
        if key not in self.bound:
            self.bound[key] = self.bind(count, self.turn, following)
        self.bound[key]()
        self.turn = following

    def steps(self, number: int, count: int, idle: tuple[int, ...] = ()) -> list[StepOutput]:
        """Decode several groups of rows 0..count-1, and read them together.

        On a device each step is enqueued before the one before it has ended, and the host waits for the last
        alone. It also waits between steps if it has to move idle rows back (see `park`).

        Args:
            number: of steps, at most `steps_per_read`.

        Returns:
            What each step drew, the earliest first.
        """
        moves = bool(idle) and self.decoder is self.backend
        try:
            for step in range(number):
                self.decoder.waits = moves or step == number - 1
                self.step(count, idle)
        finally:
            self.decoder.waits = True
        return [self.output(back) for back in reversed(range(number))]

    def set_of(self, back: int) -> int:
        """Which set of buffers holds what was drawn `back` steps before the latest; -1 for the next step."""
        return (self.turn - back) % len(self.states)

    def warm_up(self) -> None:
        """Take steps with every number of rows, all of them idle, from every set of buffers to the next.

        A backend that captures calls does so at the second call of a binding, for a third of a second. After
        this no request waits for it.
        """
        for count in range(1, self.rows + 1):
            for _ in range(2 * len(self.states)):
                self.step(count, tuple(range(count)))

    def park(self, idle: tuple[int, ...]) -> None:
        """Keep idle rows at the position behind what they have prefilled.

        A decode graph of its own leaves a row without new positions where it is. Then the host writes only
        what has changed since the step before.
        """
        places = {row: int(self.prefilled[row]) for row in idle}
        if self.decoder is self.backend:
            self.parked.clear()
        elif places.keys() != self.parked.keys():
            new = np.ones(self.rows, self.dtypes["new_lengths"])
            new[list(places)] = 0
            self.step_inputs["new_lengths"].write(new)
        past = self.states[self.turn]["past_lengths"]
        for row, place in places.items():
            if self.parked.get(row) != place:
                past.rows(slice(row, row + 1)).write(np.array([place], self.dtypes["past_lengths"]))
        self.parked = places

    def output(self, back: int = 0) -> StepOutput:
        """What a step drew, or a row's prefill. back: how many steps came after it."""
        held = self.set_of(back)
        return StepOutput(self.states[held]["codes"].read()[:, 0], self.log_probs[held].read())

    def redraw(
        self, sequence: Sequence, drawn: list[int], *, prefilled: bool, back: int = 0
    ) -> tuple[list[int], list[float]]:
        """Draw a row's group again, because it ends the speech too early. The row goes on from there.

        Logits stay on the device at every other step. So this call of the row is run once more, which writes
        the same positions again. The codes before `<eos>` stay as they are. What later steps have drawn for
        this row is forgotten: its position moves back, and the next steps write there again.

        Args:
            sequence: before it takes the group. drawn: the G codes of it.
            prefilled: whether the group is that of the row's prefill, whose logits are still there.
            back: how many steps came after that of the group.

        Returns:
            The G codes and their log-probabilities, which the row continues with.
        """
        logits = self.prefill_logits.read() if prefilled else self.step_logits(sequence.row, back)
        logits = np.asarray(logits[0], np.float32)
        before = drawn.index(EOS_CODE)
        history = np.concatenate([sequence.prompt, np.array(sequence.codes + drawn[:before], np.int64)])
        settings = sequence.settings
        codes, history, ended = sample_group(
            logits[before:],
            history,
            sequence.uniforms[sequence.steps, before:],
            top_p=settings.top_p,
            window=settings.window,
            threshold=settings.threshold,
            least=sequence.min_frames - len(sequence.codes) - before,
        )
        group = [*drawn[:before], *codes.tolist()]
        group += [EOS_CODE] * (self.group_size - len(group))
        if not ended:
            self.continue_with(sequence.row, group, history, back)
        norms = logits.max(axis=1) + np.log(np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1))
        return group, (logits[range(self.group_size), group] - norms).tolist()

    def continue_with(self, row: int, group: list[int], history: Codes, back: int) -> None:
        """Replace what a row drew. group: G codes. history: (N,), codes of the row. back: see `redraw`."""
        state, only = self.states[self.turn], slice(row, row + 1)
        for name in ("past_lengths", "steps") if back else ():
            state[name].rows(only).write(self.states[self.set_of(back)][name].rows(only).read())
        kept = np.full((1, state["history"].shape[1]), EMPTY, np.int64)
        tail = history[-kept.shape[1] :]
        kept[0, kept.shape[1] - len(tail) :] = tail
        for name, values in {"codes": np.array([[group]]), "history": kept}.items():
            state[name].rows(only).write(values.astype(self.dtypes[name]))

    def step_logits(self, row: int, back: int) -> NDArray[Any]:
        """(1, G, 1025): the logits of a row's step, which is run once more. back: see `redraw`."""
        only, logits = slice(row, row + 1), self.logits_buffer(self.decoder)
        inputs = {**self.fixed, **self.step_inputs, **self.caches, **self.states[self.set_of(back + 1)]}
        outputs = {f"{name}{OUT_SUFFIX}": cache.rows(only) for name, cache in self.caches.items()}
        rows = {name: buffer.rows(only) for name, buffer in inputs.items()}
        self.bind_named(self.decoder, rows, outputs | {LOGITS: logits})()
        return logits.read()

    def logits_buffer(self, backend: Backend) -> Buffer:
        """A buffer for the logits of one row."""
        dtype = next(tensor.dtype for tensor in backend.spec.outputs if tensor.name == LOGITS)
        return backend.buffer((1, self.group_size, CODEBOOK_SIZE + 1), dtype)

    def bind(self, count: int, source: int, target: int) -> Step:
        """Bind a step from one set of buffers to another; a cache is input and output at the same address."""
        rows = slice(0, count)
        inputs = {**self.fixed, **self.step_inputs, **self.caches, **self.states[source]}
        drawn = {f"{name}{OUT_SUFFIX}": b for name, b in {**self.states[target], **self.caches}.items()}
        drawn["log_probs"] = self.log_probs[target]
        return self.bind_named(
            self.decoder,
            {name: buffer.rows(rows) for name, buffer in inputs.items()},
            {name: buffer.rows(rows) for name, buffer in (drawn | self.outputs).items()},
        )

    def bind_named(
        self, backend: Backend, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]
    ) -> Step:
        """Bind those of the buffers that a graph has tensors for."""
        taken, made = (
            {tensor.name for tensor in part} for part in (backend.spec.inputs, backend.spec.outputs)
        )
        return backend.bind(
            {name: buffer for name, buffer in inputs.items() if name in taken},
            {name: buffer for name, buffer in outputs.items() if name in made},
        )

    def zeros(self, name: str, shape: tuple[int, ...]) -> Buffer:
        """A zeroed buffer with the dtype of one of the graph's tensors."""
        return self.backend.buffer(shape, self.dtypes[name])

    def filled(self, name: str, array: NDArray[Any]) -> Buffer:
        """A buffer that holds these values."""
        buffer = self.zeros(name, array.shape)
        buffer.write(array.astype(self.dtypes[name]))
        return buffer
