"""`bench quality --sweep`: the cells of every axis, measured one after another and kept in a file, so that an
interrupted sweep goes on where it stopped."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from valle2.benchmarks.quality.conditions import AXES, Cell, Plan
from valle2.benchmarks.quality.evaluate import NEEDED, evaluate
from valle2.benchmarks.quality.judges import Judges, need
from valle2.benchmarks.quality.scores import COLUMNS, read_scores, summarise
from valle2.benchmarks.quality.speakers import Speaker, own_speakers, recorded_speakers, recordings, shortened
from valle2.benchmarks.report.report import measured_on
from valle2.engine.bundle.files import sha256, write_file
from valle2.engine.errors import Valle2Error
from valle2.runtime import Settings, Valle2

Result = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a sweep measures with; figures of other inputs are not mixed.

    models: path or name by label, the usual one first. hard: (category, text). recordings, held_out: folders.
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
    """Models, judges and speakers, loaded when first needed; one model at a time."""

    inputs: Inputs
    judges: Judges
    loaded: dict[tuple[str, str], Valle2] = field(default_factory=dict)

    def tts(self, label: str, precision: str) -> Valle2:
        if (label, precision) not in self.loaded:
            self.loaded.clear()
            model = Valle2.load(self.inputs.models[label], precision=precision, threads=self.inputs.threads)
            self.loaded[label, precision] = model
        return self.loaded[label, precision]

    def texts(self, cell: Cell) -> Sequence[str]:
        return [text for _, text in self.inputs.hard] if cell.texts == "hard" else self.inputs.plain

    def speakers(self, cell: Cell) -> tuple[list[Speaker], list[Speaker]]:
        """Those who speak in a cell, and others whom they might be taken for."""
        tts = self.tts(cell.model, cell.precision)
        folders = {"recorded": self.inputs.recordings, "held-out": self.inputs.held_out}
        own, folder = own_speakers(tts, self.judges), folders.get(cell.voices)
        found, others = own, list[Speaker]()
        if folder:
            found, others = recorded_speakers(tts, self.judges, folder, cell.prompt_seconds), own
        if cell.prompt_seconds:
            found = shortened(tts, self.judges, found, cell.prompt_seconds)
        if not found:
            raise Valle2Error(f"no voice has a prompt of {cell.prompt_seconds:g} s; pass --prompts FOLDER")
        return found, others

    def measure(self, cell: Cell) -> Result:
        """The scores of one cell and their summary."""
        began, tts = time.perf_counter(), self.tts(cell.model, cell.precision)
        speakers, others = self.speakers(cell)
        seeds = [seed * cell.samples + sample for seed in self.inputs.seeds for sample in range(cell.samples)]
        settings = Settings(cell.top_p, threshold=cell.threshold, candidates=cell.candidates)
        scores = evaluate(
            tts,
            self.judges,
            self.texts(cell),
            speakers,
            settings,
            seeds,
            streamed=cell.streamed,
            others=others,
        )
        return {
            "cell": asdict(cell),
            "summary": summarise(scores),
            "speakers": len(speakers),
            "took_s": round(time.perf_counter() - began, 1),
            "rows": [score.row() for score in scores],
        }


def sweep(inputs: Inputs, out: Path, progress: Callable[[str], None]) -> Result:
    """Measure what the file at `out` does not hold yet; returns all of it.

    Raises:
        Valle2Error: the file was made from other inputs, or a judge is not installed.
    """
    need(*NEEDED)
    bench = Bench(inputs, Judges(inputs.threads))
    usual = bench.tts(next(iter(inputs.models)), inputs.precisions[0])
    given = (inputs.recordings is not None, inputs.held_out is not None)
    plan = Plan(list(inputs.models), usual.settings(), inputs.precisions, *given)
    axes = {axis: AXES[axis](plan) for axis in inputs.axes}
    result = resumed(out, {"inputs": identity(inputs)} | measured_on(usual, inputs.seeds[0], inputs.threads))
    result["axes"] |= {axis: [cell.name for cell in cells] for axis, cells in axes.items()}
    todo = {c.name: c for cells in axes.values() for c in cells if not measured(c, result)}
    for number, cell in enumerate(sorted(todo.values(), key=lambda c: (c.model, c.precision)), 1):
        progress(f"{number} of {len(todo)}: {cell.name}")
        try:
            result["cells"][cell.name] = bench.measure(cell)
            result["unmeasured"].pop(cell.name, None)
        except Valle2Error as error:
            result["unmeasured"][cell.name] = str(error)
        save(out, result)
    save(out, result)
    return result


def measured(cell: Cell, result: Result) -> bool:
    """Is the cell in the file, with all that streams and strangers have? Earlier versions had not."""
    rows = result["cells"].get(cell.name, {"rows": None})["rows"]
    more = cell.streamed or cell.voices != "own"
    return rows is not None and not (more and any(len(row) < len(COLUMNS) for row in rows))


def identity(inputs: Inputs) -> Result:
    """What must be the same for figures to stand side by side."""
    return {
        "models": {name: model_hash(path) for name, path in inputs.models.items()},
        "plain": list(inputs.plain),
        "hard": [list(pair) for pair in inputs.hard],
        "seeds": list(inputs.seeds),
        "recordings": hashes(inputs.recordings),
        "held_out": hashes(inputs.held_out),
    }


def hashes(folder: Path | None) -> list[str]:
    """Of a folder's recordings."""
    return sorted(sha256(path)[:16] for path in recordings(folder)) if folder else []


def model_hash(model: str) -> str:
    from valle2.runtime.tts import find_model

    return sha256(find_model(model) / "manifest.json")[:16]


def resumed(out: Path, fresh: Result) -> Result:
    """What an earlier run kept, or a fresh result."""
    empty: Result = {"axes": {}, "cells": {}, "unmeasured": {}, "columns": COLUMNS}
    if not out.exists():
        return fresh | empty
    try:
        kept: Result = json.loads(out.read_text(encoding="utf-8"))
        same = agree(kept["inputs"], fresh["inputs"]) and kept["columns"] == COLUMNS[: len(kept["columns"])]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise Valle2Error(f"{out} is not a quality sweep's file; pass another --out") from None
    if not same:
        raise Valle2Error(f"{out} holds figures of other models, texts, seeds or prompts; pass another --out")
    kept["inputs"]["models"] |= fresh["inputs"]["models"]
    kept["inputs"]["held_out"] = kept["inputs"].get("held_out") or fresh["inputs"].get("held_out", [])
    return kept | {"columns": COLUMNS}


def agree(kept: Result, fresh: Result) -> bool:
    """Are two `identity` of one kind? Either may have models or held-out voices that the other has not."""
    either: Result = {"models": kept["models"] | fresh["models"]}
    if not (kept.get("held_out") and fresh.get("held_out")):
        either["held_out"] = []
    return kept | either == fresh | either | {"models": fresh["models"] | kept["models"]}


def save(out: Path, result: Result) -> None:
    """Replace the file at once, so that an interruption leaves the earlier one."""
    try:
        write_file(out, json.dumps(result, indent=None, separators=(",", ":")).encode())
    except OSError as error:
        raise Valle2Error(f"{out} cannot be written: {error}; pass another --out") from None


def scores_of(result: Result, name: str) -> list[Any]:
    """The scores of one cell."""
    return read_scores(result["cells"][name]["rows"], result["columns"])
