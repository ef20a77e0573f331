"""Which of several samples is kept: the paper's five-time sampling with a rule that needs no judge.

Rule: samples that ended by `<eos>` come before those that hit the cap; among them, those whose length is
within a quarter of the median length; among these, the greatest mean log-probability per code.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

LENGTH_TOLERANCE = 0.25


def best_sample(lengths: Sequence[int], ended: Sequence[bool], mean_log_probs: Sequence[float]) -> int:
    """Index of the sample to keep; ties go to the earlier one.

    Args:
        lengths: frames of each sample. ended: drew `<eos>`. mean_log_probs: per code.
    """
    pool = [i for i, done in enumerate(ended) if done] or list(range(len(lengths)))
    middle = median(lengths[i] for i in pool)
    near = [i for i in pool if abs(lengths[i] - middle) <= LENGTH_TOLERANCE * middle] or pool
    return max(near, key=lambda i: (mean_log_probs[i], -i))
