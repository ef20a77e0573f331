"""What a quality sweep is made of: cells, one condition each, listed by axis. It measures nothing.

RAS is repetition-aware sampling; threshold 1 switches it off. The paper's rule counts the code itself,
r = (1 + n) / K > t for n earlier ones among the last K; the strict reading is n / K > t. Adding 1 / K to both
sides, the strict rule at t is the paper's at t + 1 / K (for t below 1 - 1 / K), so no second rule is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from valle2.runtime import Settings

TOP_P = (0.0, 0.2, 0.5, 0.8, 1.0)
PAPER = Settings()
OFF = 1.0
SAMPLES = 5
PROMPT_SECONDS = (1.0, 3.0, 5.0, 10.0)


@dataclass(frozen=True, slots=True)
class Cell:
    """One condition.

    model: its label. samples: seeds for each one of the sweep's, for rules that choose among them.
    prompt_seconds: 0 takes prompts as they are. voices: "own", "recorded" or "held-out". texts: "plain" or
    "hard".
    """

    model: str
    top_p: float
    threshold: float
    precision: str = "fp32"
    candidates: int = 1
    samples: int = 1
    streamed: bool = False
    prompt_seconds: float = 0.0
    voices: str = "own"
    texts: str = "plain"

    @property
    def name(self) -> str:
        """What differs from the usual, in words; two cells of one name are one cell."""
        ras = "RAS off" if self.threshold == OFF else f"RAS {self.threshold:g}"
        parts = [self.model, self.precision, f"top-p {self.top_p:g}", ras]
        parts += [f"best of {self.candidates}"] * (self.candidates > 1)
        parts += [f"{self.samples} samples"] * (self.samples > 1)
        parts += ["streamed"] * self.streamed
        parts += [f"{self.prompt_seconds:g} s prompt"] * bool(self.prompt_seconds)
        parts += [f"{self.voices} voices"] * (self.voices != "own")
        parts += ["hard texts"] * (self.texts == "hard")
        return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class Plan:
    """What the axes range over. The first model and precision are the usual ones, with `settings`."""

    models: Sequence[str]
    settings: Settings
    precisions: Sequence[str] = ("fp32",)
    recorded: bool = False
    held_out: bool = False

    @property
    def strangers(self) -> list[str]:
        """The kinds of voices that the models never heard."""
        return ["recorded"] * self.recorded + ["held-out"] * self.held_out

    def usual(self, **changes: object) -> Cell:
        cell = Cell(self.models[0], self.settings.top_p, self.settings.threshold, self.precisions[0])
        return replace(cell, **changes)  # type: ignore[arg-type]


def strict(threshold: float, window: int = PAPER.window) -> float:
    """The threshold at which the paper's rule is the strict one at `threshold`."""
    return round(threshold + 1 / window, 9)


def sampling(plan: Plan) -> list[Cell]:
    """RAS off and on, every top-p, every model."""
    thresholds = (OFF, PAPER.threshold)
    return [
        Cell(model, top_p, threshold, plan.precisions[0])
        for model in plan.models
        for threshold in thresholds
        for top_p in TOP_P
    ]


def candidates(plan: Plan) -> list[Cell]:
    """One sample, five of which the runtime's own rule keeps one, five for the rules that need a judge."""
    return [plan.usual(), plan.usual(candidates=SAMPLES), plan.usual(samples=SAMPLES)]


def precisions(plan: Plan) -> list[Cell]:
    return [plan.usual(precision=precision) for precision in plan.precisions]


def streaming(plan: Plan) -> list[Cell]:
    return [plan.usual(), plan.usual(streamed=True)]


def readings(plan: Plan) -> list[Cell]:
    """The paper's rule, the strict one, and none."""
    thresholds = (PAPER.threshold, strict(PAPER.threshold), OFF)
    return [plan.usual(top_p=top_p, threshold=t) for top_p in (0.0, PAPER.top_p) for t in thresholds]


def prompts(plan: Plan) -> list[Cell]:
    return [
        plan.usual(prompt_seconds=seconds, voices=voices)
        for voices in plan.strangers or ["own"]
        for seconds in PROMPT_SECONDS
    ]


def unseen(plan: Plan) -> list[Cell]:
    return [plan.usual(voices=voices) for voices in plan.strangers]


def robustness(plan: Plan) -> list[Cell]:
    return [plan.usual(texts="hard", threshold=threshold) for threshold in (OFF, PAPER.threshold)]


AXES: dict[str, Callable[[Plan], list[Cell]]] = {
    "sampling": sampling,
    "candidates": candidates,
    "precision": precisions,
    "streaming": streaming,
    "readings": readings,
    "prompts": prompts,
    "unseen": unseen,
    "robustness": robustness,
}
