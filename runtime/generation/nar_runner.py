"""The NAR passes: codebooks 1..Q-1 of the target, one full-attention pass each (section 3.4)."""

from __future__ import annotations

from collections.abc import Generator

import numpy as np
from numpy.typing import NDArray

from valle2.engine import Backend, sized
from valle2.runtime.generation.scheduler import Need
from valle2.runtime.timings import Timings

Codes = NDArray[np.int64]


def refine(
    backend: Backend, text: Codes, prompt: Codes, first: Codes, timings: Timings
) -> Generator[Need, None, Codes]:
    """Fill codebooks 1..Q-1, one pass at a turn.

    Args:
        backend: the NAR graph. text: (L,) int64 as the NAR reads it. prompt: (P, Q) int64.
        first: (T,) int64, codebook 0 of the target. timings: gets the seconds.

    Returns:
        (T, Q) int64.
    """
    books = prompt.shape[1]
    if not len(first):
        return np.zeros((0, books), np.int64)
    codes = np.zeros((1, len(prompt) + len(first), books), np.int64)
    codes[0, : len(prompt)] = prompt
    codes[0, len(prompt) :, 0] = first
    feeds = {
        "text": text[None],
        "text_lengths": np.array([len(text)]),
        "codes": codes,
        "prompt_lengths": np.array([len(prompt)]),
        "frame_lengths": np.array([codes.shape[1]]),
    }
    for stage in range(1, books):
        yield Need.WORK
        with timings.stage("nar"):
            found = backend.run({**feeds, "stage": np.array(stage)}, ("codes_out",))
        made = sized(backend.spec, "codes_out", found["codes_out"], (1, len(first)))
        codes[0, len(prompt) :, stage] = made[0]
    return codes[0, len(prompt) :]
