"""What is right of an exported graph, and what is said of one that is not.

Logits that differ from eager float32 by 1e-4 or less are right. Large logits of a deep network differ by
more, because float32 holds them no better. Then the same module in float64 decides: the graph may be off by
`MULTIPLE` times what eager float32 itself is off by, and it must choose the same codes.
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
"""Greatest difference of logits from eager float32 that needs no float64 to be right."""
MULTIPLE = 3.0
"""How many times what eager float32 is off by from float64 the graph may be off by.

Right graphs of random networks (2 to 12 layers, width 64 to 1024) were off by 0.8 to 1.8 times as much as
eager: they add in another order, and the maximum over the few positions of a check scatters.
"""
Array = NDArray[Any]


class ParityError(Valle2Error):
    """An exported graph does not compute what the PyTorch module computes."""


@dataclass(frozen=True, slots=True)
class Difference:
    """How far a graph is off at its worst place, how far it may be, and a sentence that names the place."""

    figure: float
    bound: float
    sentence: str

    @property
    def right(self) -> bool:
        """Within the bound; NaN is not."""
        return self.figure <= self.bound

    @property
    def badness(self) -> tuple[bool, float]:
        """Orders differences, NaN last."""
        return math.isnan(self.figure), self.figure / self.bound if self.bound else math.inf


@dataclass(slots=True)
class Judge:
    """Collects what the comparisons find, and refuses wrong graphs.

    accept: keep a sentence on a graph that is off in `accepted` instead of refusing it. suffix: of the
    graphs' names. parity: by graph, the greatest difference from eager float32. Where float64 decided, also
    `NAME_float64` and `NAME_eager_float64`: what the graph and what eager float32 are off by from it.
    """

    accept: bool = False
    suffix: str = ""
    parity: dict[str, float] = field(default_factory=dict)
    accepted: list[str] = field(default_factory=list)

    def record(self, graph: str, figure: float, kind: str = "") -> None:
        """Keep the greatest figure of a kind."""
        name = f"{graph}{self.suffix}{kind}"
        self.parity[name] = max(figure, self.parity.get(name, 0.0))

    def settle(self, graph: str, found: Sequence[Difference]) -> None:
        """Pass if every difference is within its bound; else refuse the graph by the worst one, or note it.

        Raises:
            ParityError: a difference is too great and not accepted, or not a number.
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


@dataclass(frozen=True, slots=True)
class Sides:
    """The same numbers by the graph, by eager float32 and by the module in float64.

    of: what one of them is. axes: what an index counts, by axis; the last one counts codes.
    chosen: the graph's codes, each an index of the last axis.
    """

    of: str
    axes: tuple[str, ...]
    graph: Array
    eager: Array
    truth: Array
    chosen: Array

    @property
    def rounding(self) -> float:
        """What eager float32 is off by at most."""
        return gap(self.eager, self.truth)

    def worst(self, bound: float, rounding: float) -> Difference:
        """The number of the graph that is off most. rounding: what eager float32 is off by at most."""
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
        """The chosen code that float64 likes least, beside the one that it would choose.

        Two codes that float64 holds closer together than the bound are a tie, which rounding decides.
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
    """Logits against float64, and the codes that are chosen as the likeliest."""
    off, rounding = max(gap(part.graph, part.truth) for part in parts), max(part.rounding for part in parts)
    judge.record(graph, off, "_float64")
    judge.record(graph, rounding, "_eager_float64")
    bound = max(LOGITS_TOLERANCE, MULTIPLE * rounding)
    return [part.worst(bound, rounding) for part in parts] + [part.choice(bound) for part in parts]


def judge_choices(parts: Sequence[Sides]) -> list[Difference]:
    """Codes that are chosen by other scores than logits, against float64."""
    bound = MULTIPLE * max(part.rounding for part in parts)
    return [part.choice(bound) for part in parts]


def greatest(values: Array) -> tuple[int, ...]:
    """Index of the greatest magnitude, or of the first NaN."""
    return tuple(int(part) for part in np.unravel_index(np.abs(values).argmax(), values.shape))


def gap(found: Array, expected: Array) -> float:
    """The greatest difference; NaN where there is one."""
    return float(np.abs(found - expected).max(initial=0.0))
