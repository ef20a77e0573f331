"""The NAR passes: codebooks 1..7 of the target, one full-attention pass each, argmax (section 3.4)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from valle2.engine import Backend

Codes = NDArray[np.int64]
CODEBOOKS = 8


def refine(backend: Backend, text: Codes, prompt: Codes, first: Codes) -> Codes:
    """Fill codebooks 1..7.

    Args:
        backend: the NAR graph. text: (L,) int64 with `<eos>`. prompt: (P, 8) int64.
        first: (T,) int64, codebook 0 of the target.

    Returns:
        (T, 8) int64.
    """
    if not len(first):
        return np.zeros((0, CODEBOOKS), np.int64)
    codes = np.zeros((1, len(prompt) + len(first), CODEBOOKS), np.int64)
    codes[0, : len(prompt)] = prompt
    codes[0, len(prompt) :, 0] = first
    feeds = {
        "text": text[None],
        "text_lengths": np.array([len(text)]),
        "codes": codes,
        "prompt_lengths": np.array([len(prompt)]),
        "frame_lengths": np.array([codes.shape[1]]),
    }
    for stage in range(1, CODEBOOKS):
        found = backend.run({**feeds, "stage": np.array(stage)}, ("codes_out",))
        codes[0, len(prompt) :, stage] = found["codes_out"][0]
    return codes[0, len(prompt) :]
