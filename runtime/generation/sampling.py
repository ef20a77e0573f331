"""Nucleus and repetition-aware sampling (VALL-E 2, Algorithm 1) in numpy, and the choice among candidates.

These pure functions are the reference; the AR graph computes the same rule with tensors. Random numbers come
from a counter-based stream, so a request's draws do not depend on what else is in its batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

import numpy as np
from numpy.typing import NDArray

from valle2.engine.bundle.contract import EOS_CODE
from valle2.runtime.types import Codes

DRAWS = 2
"""Uniform numbers per code: one for the nucleus draw, one for the redraw."""
LENGTH_TOLERANCE = 0.25

Floats = NDArray[np.float32]


def uniforms(seed: int, stream: int, steps: int, group_size: int) -> Floats:
    """The random numbers of one request: (steps, G, 2) float32 in [0, 1).

    Args:
        seed: the request's seed. stream: which sample of the request (candidate, sentence).
        steps: AR steps to cover; a longer call begins with the same numbers.
    """
    generator = np.random.Generator(np.random.Philox(key=np.array([seed, stream], np.uint64)))
    return generator.random((steps, group_size, DRAWS), dtype=np.float32)


def ranked_probabilities(logits: Floats) -> tuple[Codes, Floats]:
    """Classes from likely to unlikely (ties: lower class first) and their probabilities."""
    order = np.argsort(-logits, kind="stable")
    exps = np.exp(logits[order] - logits[order[0]], dtype=np.float32)
    return order, exps / exps.sum(dtype=np.float32)


def nucleus(probs: Floats, top_p: float, uniform: float) -> int:
    """Draw a rank among the smallest set of leading classes whose mass reaches top_p; 0 is argmax."""
    cumulative = np.cumsum(probs, dtype=np.float64)  # a float32 sum of 1025 terms drifts by 2e-5
    kept = max(1, int(np.sum((cumulative - probs) < top_p)))
    target = uniform * cumulative[kept - 1]
    return min(int(np.sum(cumulative <= target)), kept - 1)


def repeats_too_often(code: int, history: Codes, window: int, threshold: float) -> bool:
    """Is the code's share of the last K codes, itself counted, above the threshold?

    A share is at most 1, so threshold 1 switches the rule off.
    """
    repeats = int(np.sum(history[-window:] == code))
    share = np.float32(min(repeats + 1, window)) / np.float32(window)
    return bool(share > np.float32(threshold))


def sample_group(
    logits: Floats,
    history: Codes,
    draws: Floats,
    *,
    top_p: float,
    window: int,
    threshold: float,
    least: int = 0,
) -> tuple[Codes, Codes, bool]:
    """Draw the G codes of one step.

    Among the first `least` slots `<eos>` is rejected: the slot is drawn again from the classes without it.
    The two random numbers swap places then, since the first one has led to `<eos>`. So the codes have the
    distribution that they would have if `<eos>` were masked before the draw.

    Args:
        logits: (G, 1025). history: (N,) codes so far, prompt included. draws: (G, 2) uniforms.
        least: slots before which the speech may not end.

    Returns:
        The codes before `<eos>` (at most G), the grown history, and whether `<eos>` was drawn.
    """
    kept: list[int] = []
    for slot, (slot_logits, pair) in enumerate(zip(logits, draws, strict=True)):
        code = draw_code(slot_logits, history, pair, top_p, window, threshold)
        if code == EOS_CODE and slot < least:
            code = draw_code(slot_logits[:EOS_CODE], history, pair[::-1], top_p, window, threshold)
        if code == EOS_CODE:
            return np.array(kept, np.int64), history, True
        kept.append(code)
        history = np.append(history, code)
    return np.array(kept, np.int64), history, False


def draw_code(
    logits: Floats, history: Codes, draws: Floats, top_p: float, window: int, threshold: float
) -> int:
    """Draw one code: from the nucleus, or from all classes if that code repeats too often.

    Args:
        logits: (V,). history: (N,). draws: (2,), for the first draw and the redraw.
    """
    order, probs = ranked_probabilities(logits)
    code = int(order[nucleus(probs, top_p, draws[0])])
    if repeats_too_often(code, history, window, threshold):
        code = int(order[nucleus(probs, np.inf, draws[1])])
    return code


def best_candidate(lengths: Sequence[int], ended: Sequence[bool], mean_log_probs: Sequence[float]) -> int:
    """Index of the candidate to keep: the paper's five-time sampling with a rule that needs no judge.

    Candidates that ended by `<eos>` come before those that reached the limit. Among them, those count whose
    length is within a quarter of the median. Of these the greatest mean log-probability wins, ties by order.

    Args:
        lengths: frames of each candidate. ended: drew `<eos>`. mean_log_probs: per code.
    """
    pool = [i for i, done in enumerate(ended) if done] or list(range(len(lengths)))
    middle = median(lengths[i] for i in pool)
    near = [i for i in pool if abs(lengths[i] - middle) <= LENGTH_TOLERANCE * middle] or pool
    return max(near, key=lambda i: (mean_log_probs[i], -i))
