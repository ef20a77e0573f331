"""`bench quality --sweep`: measure the conditions of every axis and keep the results in a file.

An interrupted sweep continues from its file.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from valle2.benchmarks.quality.conditions import AXES, Condition, Plan
from valle2.benchmarks.quality.evaluate import NEEDED, evaluate
from valle2.benchmarks.quality.judges import Judges, need
from valle2.benchmarks.quality.scores import COLUMNS, read_scores, summarise
from valle2.benchmarks.quality.speakers import Speaker, own_speakers, recorded_speakers, recordings
from valle2.benchmarks.report.provenance import measured_on
from valle2.benchmarks.stages import load_model
from valle2.engine.bundle.files import sha256, write_file
from valle2.engine.errors import Valle2Error
from valle2.runtime import Settings, Valle2

Result = dict[str, Any]
LEAST_COLUMNS = COLUMNS.index("beside_known") + 1
"""Of a row of a stream or a stranger. A row of an earlier version has fewer, and is measured again."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a sweep measures. Results of other inputs are not mixed into its file.

    Args:
        models: path or name by label, the base condition's model first. plain: sentences.
        hard: (category, text). recordings, held_out: folders with recordings of voices.
    """

    models: Mapping[str, str]
    plain: Sequence[str]
    hard: Sequence[tuple[str, str]]
    seeds: Sequence[int]
    axes: Sequence[str]
    precisions: Sequence[str] = ("fp32",)
    recordings: Path | None = None
    held_out: Path | None = None
    threads: int = 1


@dataclass(slots=True)
class Bench:
    """Models, judges and speakers, loaded on first use. One model is loaded at a time."""

    inputs: Inputs
    judges: Judges
    loaded: dict[tuple[str, str], Valle2] = field(default_factory=dict)

    def tts(self, label: str, precision: str) -> Valle2:
        if (label, precision) not in self.loaded:
            self.loaded.clear()
            model = load_model(self.inputs.models[label], precision=precision, threads=self.inputs.threads)
            self.loaded[label, precision] = model
        return self.loaded[label, precision]

    def texts(self, condition: Condition) -> Sequence[str]:
        return [text for _, text in self.inputs.hard] if condition.texts == "hard" else self.inputs.plain

    def speakers(self, condition: Condition) -> tuple[list[Speaker], list[Speaker]]:
        """The speakers of a condition, and the model's own voices if the speakers are unseen voices."""
        tts = self.tts(condition.model, condition.precision)
        folders = {"recorded": self.inputs.recordings, "held-out": self.inputs.held_out}
        folder, others = folders.get(condition.voices), list[Speaker]()
        if folder:
            found = recorded_speakers(
                tts,
                self.judges,
                folder,
                condition.prompt_seconds,
                prepared=condition.prepared,
                form=condition.form,
            )
            others = own_speakers(tts, self.judges)
        else:
            found = own_speakers(tts, self.judges, condition.prompt_seconds)
        if not found:
            raise Valle2Error(
                f"no voice has a prompt of {condition.prompt_seconds:g} s; pass --prompts FOLDER"
            )
        return found, others

    def measure(self, condition: Condition) -> Result:
        """The scores of one condition and their summary."""
        began, tts = time.perf_counter(), self.tts(condition.model, condition.precision)
        speakers, others = self.speakers(condition)
        samples = condition.samples
        seeds = [seed * samples + sample for seed in self.inputs.seeds for sample in range(samples)]
        settings = Settings(
            condition.top_p,
            threshold=condition.threshold,
            candidates=condition.candidates,
            codebooks=condition.codebooks,
            nar_prompt_seconds=condition.nar_prompt_seconds,
            first_chunk_codebooks=condition.first_chunk_codebooks,
        )
        scores = evaluate(
            tts,
            self.judges,
            self.texts(condition),
            speakers,
            settings,
            seeds,
            streamed=condition.streamed,
            others=others,
        )
        return {
            "condition": asdict(condition),
            "summary": summarise(scores),
            "speakers": len(speakers),
            "took_s": round(time.perf_counter() - began, 1),
            "rows": [score.row() for score in scores],
        }


def sweep(inputs: Inputs, out: Path, progress: Callable[[str], None]) -> Result:
    """Measure every condition that the file `out` does not have yet. Returns the content of the file.

    Raises:
        Valle2Error: the file was made from other inputs, or a judge is not installed.
    """
    need(*NEEDED)
    bench = Bench(inputs, Judges(inputs.threads))
    first = bench.tts(next(iter(inputs.models)), inputs.precisions[0])
    given = (inputs.recordings is not None, inputs.held_out is not None)
    plan = Plan(list(inputs.models), first.settings(), inputs.precisions, *given)
    axes = {axis: AXES[axis](plan) for axis in inputs.axes}
    about = measured_on(first.manifest, inputs.seeds[0], inputs.threads)
    result = resumed(out, {"inputs": identity(inputs)} | about)
    result["axes"] |= {axis: [one.name for one in listed] for axis, listed in axes.items()}
    todo = {one.name: one for listed in axes.values() for one in listed if not measured(one, result)}
    for number, condition in enumerate(sorted(todo.values(), key=lambda c: (c.model, c.precision)), 1):
        progress(f"{number} of {len(todo)}: {condition.name}")
        try:
            result["conditions"][condition.name] = bench.measure(condition)
            result["unmeasured"].pop(condition.name, None)
        except Valle2Error as error:
            result["unmeasured"][condition.name] = str(error)
        save(out, result)
    save(out, result)
    return result


def measured(condition: Condition, result: Result) -> bool:
    """Is the condition in the file with every field? Earlier versions lack those of streams and strangers."""
    rows = result["conditions"].get(condition.name, {"rows": None})["rows"]
    more = condition.streamed or condition.voices != "own"
    return rows is not None and not (more and any(len(row) < LEAST_COLUMNS for row in rows))


def identity(inputs: Inputs) -> Result:
    """What must be equal for results to be in one file."""
    return {
        "models": {name: model_hash(path) for name, path in inputs.models.items()},
        "plain": list(inputs.plain),
        "hard": [list(pair) for pair in inputs.hard],
        "seeds": list(inputs.seeds),
        "recordings": hashes(inputs.recordings),
        "held_out": hashes(inputs.held_out),
    }


def hashes(folder: Path | None) -> list[str]:
    """Hashes of a folder's recordings."""
    return sorted(sha256(path)[:16] for path in recordings(folder)) if folder else []


def model_hash(model: str) -> str:
    from valle2.runtime.tts import find_model

    return sha256(find_model(model) / "manifest.json")[:16]


def resumed(out: Path, fresh: Result) -> Result:
    """The result of an earlier run, or an empty one.

    Raises:
        Valle2Error: the file is not a sweep's, or was made from other inputs.
    """
    empty: Result = {"axes": {}, "conditions": {}, "unmeasured": {}, "columns": COLUMNS}
    if not out.exists():
        return fresh | empty
    try:
        kept = upgraded(json.loads(out.read_text(encoding="utf-8")))
        same = agree(kept["inputs"], fresh["inputs"]) and kept["columns"] == COLUMNS[: len(kept["columns"])]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise Valle2Error(f"{out} is not a quality sweep's file; pass another --out") from None
    if not same:
        raise Valle2Error(f"{out} has results of other models, texts, seeds or prompts; pass another --out")
    kept["inputs"]["models"] |= fresh["inputs"]["models"]
    kept["inputs"]["held_out"] = kept["inputs"].get("held_out") or fresh["inputs"].get("held_out", [])
    return kept | {"columns": COLUMNS}


def upgraded(kept: Result) -> Result:
    """A file's content with the names of this version; earlier ones called a condition a cell."""
    if "cells" in kept:
        kept["conditions"] = kept.pop("cells")
        for one in kept["conditions"].values():
            one["condition"] = one.pop("cell")
    return kept


def agree(kept: Result, fresh: Result) -> bool:
    """Do two `identity` agree? Either may have models or held-out voices that the other lacks."""
    either: Result = {"models": kept["models"] | fresh["models"]}
    if not (kept.get("held_out") and fresh.get("held_out")):
        either["held_out"] = []
    return kept | either == fresh | either | {"models": fresh["models"] | kept["models"]}


def save(out: Path, result: Result) -> None:
    """Replace the file in one step, so that an interruption leaves the earlier file."""
    try:
        write_file(out, json.dumps(result, indent=None, separators=(",", ":")).encode())
    except OSError as error:
        raise Valle2Error(f"{out} cannot be written: {error}; pass another --out") from None


def scores_of(result: Result, name: str) -> list[Any]:
    """The scores of one condition."""
    return read_scores(result["conditions"][name]["rows"], result["columns"])
