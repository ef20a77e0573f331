"""Decides whether an exported graph is right, and describes the worst difference if it is not.

Logits within 1e-4 of eager float32 are right. Large logits of a deep network differ by more, since float32
cannot represent them more precisely. Then the same module in float64 decides. The graph's error may be up to
`MULTIPLE` times the error of eager float32, and the graph must choose the same codes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from valle2.engine.errors import Valle2Error

LOGITS_TOLERANCE = 1e-4
"""Greatest difference of logits from eager float32 that passes without float64."""
MULTIPLE = 3.0
"""How many times the error of eager float32 a graph's error may be.

Right graphs of random networks (2 to 12 layers, width 64 to 1024) had 0.8 to 1.8 times the error of eager
float32: they add in another order, and the maximum over few positions varies.
"""
Array = NDArray[Any]


class ParityError(Valle2Error):
    """An exported graph does not compute what the PyTorch module computes."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A graph's difference at its worst place, its bound, and a sentence that names the place."""

    figure: float
    bound: float
    sentence: str

    @property
    def right(self) -> bool:
        """Whether the difference is within the bound. NaN is not."""
        return self.figure <= self.bound

    @property
    def badness(self) -> tuple[bool, float]:
        """Sort key of differences, with NaN last."""
        return math.isnan(self.figure), self.figure / self.bound if self.bound else math.inf


@dataclass(slots=True)
class Judge:
    """Collects the differences of the comparisons, and refuses wrong graphs.

    accept: record a wrong graph in `accepted` instead of refusing it. suffix: appended to graph names.
    parity: by graph, the greatest difference from eager float32. If float64 decided, also `NAME_float64` and
    `NAME_eager_float64`: the errors of the graph and of eager float32.
    """

    accept: bool = False
    suffix: str = ""
    parity: dict[str, float] = field(default_factory=dict)
    accepted: list[str] = field(default_factory=list)

    def record(self, graph: str, figure: float, kind: str = "") -> None:
        """Keep the greatest figure of a graph and kind."""
        name = f"{graph}{self.suffix}{kind}"
        self.parity[name] = max(figure, self.parity.get(name, 0.0))

    def settle(self, graph: str, found: Sequence[Difference]) -> None:
        """Check every difference against its bound.

        Raises:
            ParityError: one exceeds it and is not accepted, or is not a number.
        """
        wrong = [one for one in found if not one.right]
        if not wrong:
            return
        worst = max(wrong, key=lambda one: one.badness)
        line = f"{graph}{self.suffix}: {worst.sentence}"
        if not self.accept or not math.isfinite(worst.figure):
            raise ParityError(
                f"{line}; nothing was written. Please report this line with the model's "
                f"sizes, torch {torch.__version__} and onnxruntime {onnxruntime.__version__}; to write the "
                "bundle in spite of it, pass --accept-difference"
            )
        self.accepted.append(line)

    def check(self, graph: str, found: Difference) -> float:
        """Record one difference and check it. Returns its figure."""
        self.record(graph, found.figure)
        self.settle(graph, [found])
        return found.figure


@dataclass(frozen=True, slots=True)
class Sides:
    """The same numbers from the graph, from eager float32 and from the module in float64.

    of: what the numbers are. axes: names of the axes; the last one counts codes.
    chosen: the graph's codes, indices into the last axis.
    """

    of: str
    axes: tuple[str, ...]
    graph: Array
    eager: Array
    truth: Array
    chosen: Array

    @property
    def rounding(self) -> float:
        """The greatest error of eager float32."""
        return gap(self.eager, self.truth)

    def worst(self, bound: float, rounding: float) -> Difference:
        """The number with the graph's greatest error. rounding: the greatest error of eager float32."""
        at = greatest(self.graph - self.truth)
        figure = abs(float(self.graph[at] - self.truth[at]))
        return Difference(
            figure,
            bound,
            f"{self.of} at {self.place(at)} is {self.graph[at]:.7g} in the graph, {self.eager[at]:.7g} in "
            f"eager float32 and {self.truth[at]:.7g} in float64; the graph is off by {figure:.2e}, more than "
            f"{bound:.2e}, and eager float32 by {rounding:.2e} at most",
        )

    def choice(self, bound: float) -> Difference:
        """The chosen code with the greatest loss under float64, and the code that float64 chooses.

        Two codes whose float64 scores differ by less than the bound are a tie, which rounding decides.
        """
        taken = np.take_along_axis(self.truth, self.chosen[..., None], axis=-1)[..., 0]
        lost, best = self.truth.max(axis=-1) - taken, self.truth.argmax(axis=-1)
        at = greatest(lost)
        return Difference(
            float(lost[at]),
            bound,
            f"by {self.of} at {self.place(at)} the graph chooses code {self.chosen[at]} and float64 chooses "
            f"{best[at]}, whose score is higher by {lost[at]:.2e}, more than rounding explains ({bound:.2e})",
        )

    def place(self, index: tuple[int, ...]) -> str:
        return ", ".join(f"{axis} {number}" for axis, number in zip(self.axes, index, strict=False))


def judge_logits(graph: str, judge: Judge, parts: Sequence[Sides]) -> list[Difference]:
    """Compare logits, and the codes chosen as the likeliest, with float64."""
    off, rounding = max(gap(part.graph, part.truth) for part in parts), max(part.rounding for part in parts)
    judge.record(graph, off, "_float64")
    judge.record(graph, rounding, "_eager_float64")
    bound = max(LOGITS_TOLERANCE, MULTIPLE * rounding)
    return [part.worst(bound, rounding) for part in parts] + [part.choice(bound) for part in parts]


def judge_choices(parts: Sequence[Sides]) -> list[Difference]:
    """Compare codes that were chosen by other scores than logits with float64."""
    bound = MULTIPLE * max(part.rounding for part in parts)
    return [part.choice(bound) for part in parts]


def greatest(values: Array) -> tuple[int, ...]:
    """Index of the number with the greatest magnitude, or of the first NaN."""
    return tuple(int(part) for part in np.unravel_index(np.abs(values).argmax(), values.shape))


def gap(found: Array, expected: Array) -> float:
    """The greatest difference, NaN if there is a NaN."""
    return float(np.abs(found - expected).max(initial=0.0))
