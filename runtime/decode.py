"""Grouped autoregressive decoding of codebook 0: one AR graph, fixed buffers, a generator of groups.

The decoder owns arrays and no policy: which rows run and when they stop is the caller's. What a step
puts out is what the next takes in, so two sets of small buffers swap roles and the caches are updated
in place. Axes: B rows, G codes per group, S new positions.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from valle2.engine import Backend, Buffer, Step
from valle2.runtime.settings import Settings

Codes = NDArray[np.int64]
STATE = ("codes", "past_lengths", "steps", "history")
EMPTY = -1


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence to decode.

    text: (L,) int64 with `<eos>`. prompt: (P,) int64 codes of codebook 0, P a multiple of G.
    uniforms: (N, G, 2) float32, the random numbers of every step.
    """

    text: Codes
    prompt: Codes
    uniforms: NDArray[np.float32]
    settings: Settings

    def positions(self, group_size: int) -> int:
        """Positions before the first decoded group: text, `<bos>`, prompt groups."""
        return len(self.text) + 1 + len(self.prompt) // group_size


@dataclass(frozen=True, slots=True)
class Group:
    """What one step drew: views that the next step overwrites.

    codes: (B, G) int64. finished: (B,) bool. log_probs: (B, G) float32.
    """

    codes: Codes
    finished: NDArray[np.bool_]
    log_probs: NDArray[np.float32]


class Decoder:
    """Decodes batches of rows on one AR graph; caches are kept and reused between calls."""

    def __init__(self, backend: Backend, sizes: Mapping[str, int], cache_length: int) -> None:
        self.backend = backend
        self.group_size = sizes["group_size"]
        self.max_positions = sizes["max_frames"] // self.group_size
        self.cache_length = cache_length
        self.cache_axes = (sizes["heads"], sizes["d_model"] // sizes["heads"])
        self.cache_names = tuple(spec.name for spec in backend.spec.inputs if spec.name.startswith("cache_"))
        self.caches: dict[str, Buffer] = {}
        self.cache_shape = (0, 0)

    def room(self, row: Row) -> int:
        """Steps that fit after the row's prefix."""
        left = self.max_positions - len(row.prompt) // self.group_size
        if self.cache_length:
            left = min(left, self.cache_length - row.positions(self.group_size) + 1)
        return left

    def decode(self, rows: Sequence[Row], max_steps: int) -> Generator[Group, None, None]:
        """Yield at most `max_steps` groups, the first from the prefill itself.

        The caller stops iterating when it has what it needs; a row that has finished is decoded on
        and its codes are to be ignored. max_steps must fit every row's `room`.
        """
        prefix = max(row.positions(self.group_size) for row in rows)
        self.reserve(len(rows), self.cache_length or prefix + max_steps)
        fixed = self.fixed_inputs(rows)
        states = [self.state(rows), self.state(rows)]
        results = {"finished": np.bool_, "log_probs": np.float32}
        shapes = {"finished": (len(rows),), "log_probs": (len(rows), self.group_size)}
        outs = {name: self.backend.buffer(shapes[name], kind) for name, kind in results.items()}
        self.prefill(rows, prefix, fixed, states, outs)
        fixed |= self.step_inputs(len(rows))
        steps = [self.bind(fixed, states[i], states[1 - i], outs) for i in (1, 0)]
        for index in range(max_steps):
            if index:
                steps[(index - 1) % 2]()
            current = states[(index + 1) % 2]
            yield Group(current["codes"].read()[:, 0], outs["finished"].read(), outs["log_probs"].read())

    def reserve(self, batch: int, capacity: int) -> None:
        """Keep caches of at least this many rows and slots; memory is only touched where used."""
        if self.cache_shape[0] != batch or self.cache_shape[1] < capacity:
            heads, width = self.cache_axes
            shape = (batch, heads, capacity, width)
            self.caches = {name: self.backend.buffer(shape, np.float32) for name in self.cache_names}
            self.cache_shape = (batch, capacity)

    def fixed_inputs(self, rows: Sequence[Row]) -> dict[str, Buffer]:
        """Inputs that stay the same in every call of these rows."""
        draws = max(len(row.uniforms) for row in rows)
        uniforms = np.zeros((len(rows), draws, self.group_size, 2), np.float32)
        for index, row in enumerate(rows):
            uniforms[index, : len(row.uniforms)] = row.uniforms
        settings = [row.settings for row in rows]
        arrays: dict[str, NDArray[Any]] = {
            "text_lengths": np.array([len(row.text) for row in rows], np.int64),
            "uniforms": uniforms,
            "top_p": np.array([s.top_p for s in settings], np.float32),
            "repeat_window": np.array([s.window for s in settings], np.int64),
            "threshold": np.array([s.threshold for s in settings], np.float32),
        }
        return {name: self.filled(array) for name, array in arrays.items()} | self.caches

    def state(self, rows: Sequence[Row]) -> dict[str, Buffer]:
        """One set of the buffers that swap roles, filled for the first call."""
        slots = max(row.settings.window for row in rows)
        history = np.full((len(rows), slots), EMPTY, np.int64)
        for index, row in enumerate(rows):
            tail = row.prompt[-slots:]
            history[index, slots - len(tail) :] = tail
        zeros = np.zeros(len(rows), np.int64)
        codes = np.zeros((len(rows), 1, self.group_size), np.int64)
        arrays: tuple[Codes, ...] = (codes, zeros, zeros, history)
        named = zip(STATE, arrays, strict=True)
        return {name: self.filled(array) for name, array in named}

    def step_inputs(self, batch: int) -> dict[str, Buffer]:
        """A decode step has one new position per row and no text."""
        return {
            "text": self.filled(np.zeros((batch, 1), np.int64)),
            "new_lengths": self.filled(np.ones(batch, np.int64)),
        }

    def prefill(
        self,
        rows: Sequence[Row],
        prefix: int,
        fixed: Mapping[str, Buffer],
        states: Sequence[Mapping[str, Buffer]],
        outs: Mapping[str, Buffer],
    ) -> None:
        """Run all prefixes, right-padded, and draw the first group."""
        text = np.zeros((len(rows), prefix), np.int64)
        codes = np.zeros((len(rows), prefix, self.group_size), np.int64)
        for index, row in enumerate(rows):
            length = len(row.text)
            text[index, :length] = row.text
            groups = row.prompt.reshape(-1, self.group_size)
            codes[index, length + 1 : length + 1 + len(groups)] = groups
        lengths = np.array([row.positions(self.group_size) for row in rows], np.int64)
        arrays = {"text": text, "codes": codes, "new_lengths": lengths}
        inputs = {name: self.filled(array) for name, array in arrays.items()}
        self.bind({**fixed, **inputs}, {**states[0], "codes": inputs["codes"]}, states[1], outs)()

    def bind(
        self,
        fixed: Mapping[str, Buffer],
        before: Mapping[str, Buffer],
        after: Mapping[str, Buffer],
        outs: Mapping[str, Buffer],
    ) -> Step:
        """Bind one direction of the swap; the caches are input and output at the same address."""
        outputs = {f"{name}_out": after[name] for name in STATE} | dict(outs)
        outputs |= {f"{name}_out": buffer for name, buffer in self.caches.items()}
        return self.backend.bind({**fixed, **before}, outputs)

    def filled(self, array: NDArray[Any]) -> Buffer:
        buffer = self.backend.buffer(array.shape, array.dtype)
        buffer.write(array)
        return buffer
