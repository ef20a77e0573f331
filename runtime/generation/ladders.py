"""The sizes at which calls of the NAR and the codec are captured as CUDA graphs.

See `engine.backends.ladder`. A call that fits none of them runs as it is. Long calls are left out: there the
device computes for longer than it launches.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import prod
from typing import Any

import numpy as np

from valle2.engine import Backend, GraphSpec
from valle2.engine.backends.ladder import Ladder, Sizes, lengths_up_to, shape_of
from valle2.engine.bundle.contract import CODEBOOK_SIZE
from valle2.engine.bundle.nar_inputs import BATCH_AXIS
from valle2.runtime.types import Codes

log = logging.getLogger("valle2")


MOST_POSITIONS = 2048
"""Positions of all rows of a captured call, text and padding included. It also bounds the buffers' memory."""
TEXTS, TEXT_GROWTH, TEXT_STEP = 64, 2.0, 64
"""The shortest text that calls are padded to, the factor to the next one, and what all are multiples of."""
FRAMES, FRAME_GROWTH, FRAME_STEP = 128, 1.5, 16
"""The same of the NAR's frames, prompt included."""
CODEC_FRAMES, CODEC_GROWTH, CODEC_STEP = 32, 1.5, 8
"""The same of the codec's frames."""
SCATTERED = 7919
"""A prime number: its multiples, in order, are codes without a pattern."""
ONE = {"text_lengths": 1, "frame_lengths": 1}
"""A row of padding has a text and a speech of one position, because attention over none is undefined."""


def captured(make: Callable[..., Ladder], backend: Backend, *arguments: Any) -> Ladder | None:
    """A ladder whose calls have all been captured; None where a backend captures none, or replays others.

    Args:
        make: `nar_ladder` or `codec_ladder`. backend, arguments: its own.
    """
    if not backend.captures_calls:
        log.warning("calls of %s cannot be captured here; they run as they are", backend.spec.file)
        return None
    ladder = make(backend, *arguments)
    if not ladder.warm_up(partial(example, backend.spec)):
        log.warning("captured calls of %s return something else; they run as they are", backend.spec.file)
        return None
    return ladder


def example(spec: GraphSpec, sizes: Sizes) -> dict[str, Codes]:
    """Inputs of the NAR or the codec: rows as long as the call with various codes, a third of them prompt."""
    shapes = {tensor.name: shape_of(tensor, sizes) for tensor in spec.inputs}
    values = {
        "text_lengths": sizes.get("tokens", 0),
        "frame_lengths": sizes["frames"],
        "prompt_lengths": sizes["frames"] // 3,
        "stage": 1,
    }
    made = {name: np.full(shape, values.get(name, 0), np.int64) for name, shape in shapes.items()}
    made["codes"] = np.arange(prod(shapes["codes"])).reshape(shapes["codes"]) * SCATTERED % CODEBOOK_SIZE
    return made


def nar_ladder(backend: Backend, sizes: Mapping[str, int], rows: int) -> Ladder:
    """The NAR's ladder.

    Args:
        backend: the graph `nar_batch`. sizes: the manifest's. rows: the most that share a call.
    """

    def outputs(sizes: Sizes) -> dict[str, tuple[int, ...]]:
        return {"codes_out": (sizes[BATCH_AXIS], sizes["frames"])}

    return Ladder(backend, nar_rungs(sizes, rows), outputs, ONE)


def nar_rungs(sizes: Mapping[str, int], rows: int) -> list[dict[str, int]]:
    """The sizes of the NAR's calls, the shortest first. Arguments are those of `nar_ladder`."""
    texts = lengths_up_to(TEXTS, sizes["max_text"], TEXT_GROWTH, TEXT_STEP)
    frames = lengths_up_to(FRAMES, sizes["max_frames"], FRAME_GROWTH, FRAME_STEP)
    rungs = [
        {BATCH_AXIS: count, "tokens": text, "frames": length}
        for count in row_counts(rows)
        for text in texts
        for length in frames
        if count * (text + length) <= MOST_POSITIONS
    ]
    return sorted(rungs, key=lambda rung: rung[BATCH_AXIS] * (rung["tokens"] + rung["frames"]))


def codec_ladder(backend: Backend, hop: int, rows: int) -> Ladder:
    """The codec's ladder.

    Args:
        backend: the graph `codec_decoder_padded`. hop: samples of a frame. rows: the most that share a call.
    """
    rungs = [
        {BATCH_AXIS: count, "frames": length}
        for count in row_counts(rows)
        for length in lengths_up_to(CODEC_FRAMES, MOST_POSITIONS, CODEC_GROWTH, CODEC_STEP)
        if count * length <= MOST_POSITIONS
    ]
    rungs.sort(key=lambda rung: rung[BATCH_AXIS] * rung["frames"])

    def outputs(sizes: Sizes) -> dict[str, tuple[int, ...]]:
        return {"audio": (sizes[BATCH_AXIS], hop * sizes["frames"])}

    return Ladder(backend, rungs, outputs, ONE)


def row_counts(most: int) -> Sequence[int]:
    """Numbers of rows that calls are padded to: powers of two, and the most."""
    return lengths_up_to(1, most, 2.0, 1)
