"""Grouped autoregressive decoding of codebook 0: one AR graph, a fixed number of rows, buffers that stay.

`Slots` owns arrays and no policy: which rows run and when they stop is the scheduler's. Rows enter and leave
at any step, each at its own position, and other rows may step between two chunks of a row's prefill. What a
step puts out is what the next takes in, so two sets of small buffers swap roles; caches are updated in place
and never copied. Axes: B rows, G codes per group, S new positions.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from valle2.engine import Backend, BackendError, Buffer, Step
from valle2.engine.bundle.profiles import PREFILL_CHUNK
from valle2.engine.bundle.schema import head_width
from valle2.runtime.types import Settings

Codes = NDArray[np.int64]
STATE = ("codes", "past_lengths", "steps", "history")
EMPTY = -1


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence to decode.

    text: (L,) int64 with `<eos>`. prompt: (P,) int64 codes of codebook 0, P a multiple of G.
    uniforms: (N, G, 2) float32, the random numbers of its N steps. start: positions between text and codes.
    """

    text: Codes
    prompt: Codes
    uniforms: NDArray[np.float32]
    settings: Settings
    start: int = 1

    def positions(self, group_size: int) -> int:
        """Positions before the first decoded group: text, `<bos>`, prompt groups."""
        return len(self.text) + self.start + len(self.prompt) // group_size


@dataclass(frozen=True, slots=True)
class Drawn:
    """What each row's latest step drew: views that the next step overwrites.

    codes: (B, G) int64. log_probs: (B, G) float32.
    """

    codes: Codes
    log_probs: NDArray[np.float32]


class Slots:
    """Rows of one AR graph.

    Args:
        backend: the AR graph. sizes: the manifest's. cache_length: positions of the cache where the graph
            fixes them, 0 where any number fits. count: rows. window: the longest repetition window.
        chunk: positions that one call prefills. whole_text: the first call takes all of the text.

    Memory is reserved for every row's longest sequence; on a CPU it is only used where it is touched.
    """

    def __init__(
        self,
        backend: Backend,
        sizes: Mapping[str, int],
        cache_length: int,
        count: int,
        window: int,
        *,
        chunk: int = PREFILL_CHUNK,
        whole_text: bool = False,
    ) -> None:
        self.backend, self.count, self.chunk, self.whole_text = backend, count, chunk, whole_text
        self.group_size = sizes["group_size"]
        self.max_groups = sizes["max_frames"] // self.group_size
        self.capacity = cache_length or sizes["max_text"] + 1 + self.max_groups
        self.tensors = {spec.name: spec.dtype for spec in (*backend.spec.inputs, *backend.spec.outputs)}
        names = [spec.name for spec in backend.spec.inputs if spec.name.startswith("cache_")]
        shape = (count, sizes["heads"], self.capacity, head_width(sizes))
        self.caches = {name: self.empty(name, shape) for name in names}
        rows, group = (count,), self.group_size
        self.fixed = {
            "text_lengths": self.empty("text_lengths", rows),
            "uniforms": self.empty("uniforms", (count, self.max_groups, group, 2)),
            "top_p": self.empty("top_p", rows),
            "repeat_window": self.filled("repeat_window", np.ones(rows)),
            "threshold": self.empty("threshold", rows),
        }
        self.step_inputs = {
            "text": self.empty("text", (count, 1)),
            "new_lengths": self.filled("new_lengths", np.ones(rows)),
        }
        self.outs = {
            "finished": self.empty("finished", rows),
            "log_probs": self.empty("log_probs", (count, group)),
        }
        state = {"codes": (count, 1, group), "past_lengths": rows, "steps": rows, "history": (count, window)}
        self.states = [{name: self.empty(name, state[name]) for name in STATE} for _ in range(2)]
        self.filled_to = np.zeros(count, np.int64)
        self.turn = 0
        self.bound: dict[tuple[int, int], Step] = {}

    def room(self, row: Row) -> int:
        """Steps that fit after the row's prefix."""
        left = self.max_groups - len(row.prompt) // self.group_size
        return min(left, self.capacity - row.positions(self.group_size) + 1)

    def enter(self, index: int, row: Row) -> None:
        """Prefill one row without a pause; see `prefill`."""
        for _ in self.prefill(index, row):
            pass

    def prefill(self, index: int, row: Row) -> Generator[bool, None, None]:
        """Prefill one row, whatever was there, a chunk whenever it is advanced; other rows stay as they are.

        How a row is cut depends on nothing but the row, so that its codes are the same in any company. Until
        the end it is idle (see `step`). What a chunk before the last draws is overwritten.

        Yields:
            Whether that was the last chunk, which drew the row's first group.
        """
        if self.room(row) < 1:
            raise BackendError(f"a row of {row.positions(self.group_size)} positions exceeds {self.capacity}")
        self.write_settings(index, row)
        ours = slice(index, index + 1)
        kept = {name: buffer.rows(ours) for name, buffer in {**self.fixed, **self.caches}.items()}
        outputs = {name: buffer.rows(ours) for name, buffer in self.outs.items()}
        outputs |= {f"{name}_out": kept[name] for name in self.caches}
        prefix, ends = self.prefix(row), self.cuts(row)
        try:
            for start, end in pairwise([0, *ends]):
                state = {f"{name}_out": b.rows(ours) for name, b in self.states[self.turn].items()}
                self.backend.bind(kept | self.part(prefix, start, end), outputs | state)()
                self.filled_to[index] = end
                yield end == ends[-1]
        finally:
            self.filled_to[index] = 0

    def cuts(self, row: Row) -> list[int]:
        """Where the chunks of a row's prefix end."""
        positions = row.positions(self.group_size)
        first = max(self.chunk, len(row.text) if self.whole_text else 0)
        return [*range(first, positions, self.chunk), positions]

    def step(self, count: int, idle: tuple[int, ...] = ()) -> None:
        """One position of rows 0..count-1.

        Idle rows among them compute a position that nobody reads, behind what they have prefilled.
        """
        for index in idle:
            ours = slice(index, index + 1)
            self.states[self.turn]["past_lengths"].rows(ours).write(self.filled_to[ours])
        key = (count, self.turn)
        if key not in self.bound:
            self.bound[key] = self.bind(count, self.states[self.turn], self.states[1 - self.turn])
        self.bound[key]()
        self.turn = 1 - self.turn

    def drawn(self) -> Drawn:
        """The groups of the latest step, or of a row's prefill."""
        return Drawn(self.states[self.turn]["codes"].read()[:, 0], self.outs["log_probs"].read())

    def bind(self, count: int, before: Mapping[str, Buffer], after: Mapping[str, Buffer]) -> Step:
        """Bind one direction of the swap; the caches are input and output at the same address."""
        part = slice(0, count)
        inputs = {**self.fixed, **self.step_inputs, **self.caches, **before}
        outputs = {f"{name}_out": buffer for name, buffer in {**after, **self.caches}.items()} | self.outs
        return self.backend.bind(
            {name: buffer.rows(part) for name, buffer in inputs.items()},
            {name: buffer.rows(part) for name, buffer in outputs.items()},
        )

    def write_settings(self, index: int, row: Row) -> None:
        """A row's own inputs that stay the same at every step."""
        draws = np.zeros(self.fixed["uniforms"].shape[1:], np.float32)
        draws[: len(row.uniforms)] = row.uniforms
        settings = row.settings
        values: dict[str, Any] = {
            "text_lengths": len(row.text),
            "uniforms": draws,
            "top_p": settings.top_p,
            "repeat_window": settings.window,
            "threshold": settings.threshold,
        }
        for name, value in values.items():
            target = self.fixed[name].rows(slice(index, index + 1))
            target.write(np.asarray(value, self.tensors[name])[None])

    def prefix(self, row: Row) -> dict[str, Codes]:
        """Inputs of a prefill: text, `<bos>`, prompt groups; the prompt as history; no step yet."""
        positions, length = row.positions(self.group_size), len(row.text)
        text = np.zeros((1, positions), np.int64)
        codes = np.zeros((1, positions, self.group_size), np.int64)
        text[0, :length] = row.text
        codes[0, length + row.start :] = row.prompt.reshape(-1, self.group_size)
        history = np.full((1, self.states[0]["history"].shape[1]), EMPTY, np.int64)
        tail = row.prompt[-history.shape[1] :]
        history[0, history.shape[1] - len(tail) :] = tail
        return {"text": text, "codes": codes, "history": history, "steps": np.zeros(1, np.int64)}

    def part(self, prefix: Mapping[str, Codes], start: int, end: int) -> dict[str, Buffer]:
        """Inputs of one chunk of a prefill."""
        cut = {name: prefix[name][:, start:end] for name in ("text", "codes")}
        lengths = {"past_lengths": np.array([start]), "new_lengths": np.array([end - start])}
        return {name: self.filled(name, array) for name, array in {**prefix, **cut, **lengths}.items()}

    def empty(self, name: str, shape: tuple[int, ...]) -> Buffer:
        """A zeroed buffer of one of the graph's tensors."""
        return self.backend.buffer(shape, self.tensors[name])

    def filled(self, name: str, array: NDArray[Any]) -> Buffer:
        buffer = self.empty(name, array.shape)
        buffer.write(array.astype(self.tensors[name]))
        return buffer
