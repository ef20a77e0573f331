"""The conditions of a quality sweep, listed by axis. This module measures nothing.

RAS is repetition-aware sampling; threshold 1 switches it off. With n earlier occurrences of a code among the
last K, the paper's rule counts the code itself: (1 + n) / K > t. The strict reading is n / K > t. The strict
rule at t is the paper's rule at t + 1 / K, so no second rule is needed (for t below 1 - 1 / K).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from valle2.benchmarks.quality.forms import FORMS
from valle2.runtime import Settings

TOP_P = (0.0, 0.2, 0.5, 0.8, 1.0)
PAPER = Settings()
OFF = 1.0
LARGE_TOP_P = 0.8
SAMPLES = 5
PROMPT_SECONDS = (1.0, 3.0, 5.0, 10.0)
FEWER_CODEBOOKS = (6, 4, 3, 2)
FIRST_CHUNK_CODEBOOKS = (8, 4, 3, 2)
NAR_PROMPT_SECONDS = (3.0, 2.0, 1.0)


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition.

    Args:
        model: its label. candidates: utterances among which the runtime chooses one.
        samples: seeds for each seed of the sweep, for rules that choose among them.
        prompt_seconds: length of the prompts; 0 takes them as they are.
        voices: "own", "recorded" or "held-out". texts: "plain" or "hard".
        codebooks: of the speech, 0 for all. prepared: recordings are prepared as the runtime does.
        form: what is done to the recordings first, one of `forms.FORMS`.
        nar_prompt_seconds: how much of the prompt the NAR hears, 0 for all.
        first_chunk_codebooks: of a stream's first chunk, 0 for the runtime's own number.
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
    codebooks: int = 0
    prepared: bool = True
    form: str = ""
    nar_prompt_seconds: float = 0.0
    first_chunk_codebooks: int = 0

    @property
    def name(self) -> str:
        """The condition in words. Two conditions of one name are the same condition."""
        ras = "RAS off" if self.threshold == OFF else f"RAS {self.threshold:g}"
        parts = [self.model, self.precision, f"top-p {self.top_p:g}", ras]
        parts += [f"best of {self.candidates}"] * (self.candidates > 1)
        parts += [f"{self.samples} samples"] * (self.samples > 1)
        parts += [f"{self.codebooks} codebooks"] * bool(self.codebooks)
        parts += [f"NAR hears {self.nar_prompt_seconds:g} s"] * bool(self.nar_prompt_seconds)
        parts += ["streamed"] * self.streamed
        parts += [f"{self.first_chunk_codebooks} codebooks at first"] * bool(self.first_chunk_codebooks)
        parts += [f"{self.prompt_seconds:g} s prompt"] * bool(self.prompt_seconds)
        parts += [f"{self.voices} voices"] * (self.voices != "own")
        parts += [self.form] * bool(self.form)
        parts += ["not prepared"] * (not self.prepared)
        parts += ["hard texts"] * (self.texts == "hard")
        return ", ".join(parts)


@dataclass(frozen=True, slots=True)
class Plan:
    """What the axes range over.

    The base condition has the first model, the first precision and `settings`. recorded, held_out: whether
    there are recordings of such voices.
    """

    models: Sequence[str]
    settings: Settings
    precisions: Sequence[str] = ("fp32",)
    recorded: bool = False
    held_out: bool = False

    @property
    def unseen_voices(self) -> list[str]:
        """The kinds of voices that the models have not seen in training."""
        return ["recorded"] * self.recorded + ["held-out"] * self.held_out

    def base(self, **changes: object) -> Condition:
        """The base condition with changes."""
        base = Condition(self.models[0], self.settings.top_p, self.settings.threshold, self.precisions[0])
        return replace(base, **changes)  # type: ignore[arg-type]


def strict(threshold: float, window: int = PAPER.window) -> float:
    """The threshold at which the paper's rule equals the strict rule at `threshold`."""
    return round(threshold + 1 / window, 9)


def sampling(plan: Plan) -> list[Condition]:
    """RAS off and on, for every top-p and model."""
    thresholds = (OFF, PAPER.threshold)
    return [
        Condition(model, top_p, threshold, plan.precisions[0])
        for model in plan.models
        for threshold in thresholds
        for top_p in TOP_P
    ]


def candidates(plan: Plan) -> list[Condition]:
    """One sample; the best of five by the runtime's rule; five samples for the rules that need a judge."""
    return [plan.base(), plan.base(candidates=SAMPLES), plan.base(samples=SAMPLES)]


def precisions(plan: Plan) -> list[Condition]:
    return [plan.base(precision=precision) for precision in plan.precisions]


def streaming(plan: Plan) -> list[Condition]:
    return [plan.base(), plan.base(streamed=True)]


def codebooks(plan: Plan) -> list[Condition]:
    return [plan.base(codebooks=number) for number in (0, *FEWER_CODEBOOKS)]


def first_chunks(plan: Plan) -> list[Condition]:
    """Streams whose first chunk has all codebooks, and fewer."""
    return [plan.base(streamed=True, first_chunk_codebooks=number) for number in FIRST_CHUNK_CODEBOOKS]


def nar_prompts(plan: Plan) -> list[Condition]:
    """Shorter prompts of the NAR, for the model's own voices and for each kind of unseen ones."""
    return [
        plan.base(nar_prompt_seconds=seconds, voices=voices)
        for voices in ("own", *plan.unseen_voices)
        for seconds in (0.0, *NAR_PROMPT_SECONDS)
    ]


def readings(plan: Plan) -> list[Condition]:
    """The paper's RAS rule, the strict rule, and none."""
    thresholds = (PAPER.threshold, strict(PAPER.threshold), OFF)
    return [plan.base(top_p=top_p, threshold=t) for top_p in (0.0, PAPER.top_p) for t in thresholds]


def prompts(plan: Plan) -> list[Condition]:
    return [
        plan.base(prompt_seconds=seconds, voices=voices)
        for voices in plan.unseen_voices or ["own"]
        for seconds in PROMPT_SECONDS
    ]


def unseen(plan: Plan) -> list[Condition]:
    return [plan.base(voices=voices) for voices in plan.unseen_voices]


def strangers(plan: Plan) -> list[Condition]:
    """RAS off and on at a small and a large top-p, with unseen voices and with the model's own."""
    return [
        plan.base(top_p=top_p, threshold=threshold, voices=voices)
        for top_p in (PAPER.top_p, LARGE_TOP_P)
        for voices in (*plan.unseen_voices, "own")
        for threshold in (OFF, PAPER.threshold)
    ]


def preparation(plan: Plan) -> list[Condition]:
    """Recordings as they are and prepared, with RAS off and on."""
    return [
        plan.base(threshold=threshold, voices=voices, prepared=prepared)
        for voices in plan.unseen_voices
        for threshold in (OFF, PAPER.threshold)
        for prepared in (False, True)
    ]


def forms(plan: Plan) -> list[Condition]:
    """Recordings in the forms in which people send them, as they are and prepared."""
    return [
        plan.base(voices=voices, form=form, prepared=prepared)
        for voices in plan.unseen_voices
        for form in FORMS
        for prepared in (False, True)
    ]


def robustness(plan: Plan) -> list[Condition]:
    return [plan.base(texts="hard", threshold=threshold) for threshold in (OFF, PAPER.threshold)]


AXES: dict[str, Callable[[Plan], list[Condition]]] = {
    "sampling": sampling,
    "candidates": candidates,
    "precision": precisions,
    "streaming": streaming,
    "codebooks": codebooks,
    "first-chunks": first_chunks,
    "nar-prompts": nar_prompts,
    "readings": readings,
    "prompts": prompts,
    "unseen": unseen,
    "robustness": robustness,
    "strangers": strangers,
    "preparation": preparation,
    "forms": forms,
}
