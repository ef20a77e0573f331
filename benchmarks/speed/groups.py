"""`bench groups`: models that differ only in their group size, timed in turns on the same text."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

from valle2.benchmarks.options import need_positive
from valle2.benchmarks.report.plots import Line, Panel
from valle2.benchmarks.report.provenance import measured_on
from valle2.benchmarks.report.tables import markdown
from valle2.benchmarks.speed.latency import STAGES
from valle2.benchmarks.stages import load_model
from valle2.runtime import Settings, Timings, Valle2

Result = dict[str, Any]


def groups(
    models: Mapping[str, str], text: str, repeats: int, seed: int, threads: int, precision: str, frames: int
) -> Result:
    """Time every model per second of its own speech.

    Args:
        models: path by label; ratios are to the first. frames: length of the speech; 0 lets `<eos>` end it.
    """
    need_positive(repeats=repeats, threads=threads)
    settings = Settings(top_p=0.0, threshold=1.0, seed=seed, max_frames=frames, loop_frames=0, retries=0)
    loaded = {name: load_model(path, threads=threads, precision=precision) for name, path in models.items()}
    times: dict[str, list[Timings]] = {name: [] for name in models}
    for turn in range(repeats + 1):
        for name, tts in loaded.items():
            speech = tts.synthesize(text, tts.voice(tts.default_voice()), settings)
            times[name] += [speech.timings] if turn else []
    rows = {name: row(loaded[name], found) for name, found in times.items()}
    first, tts = next(iter(rows.values())), next(iter(loaded.values()))
    for found in rows.values():
        for stage in ("ar", "total"):
            found[f"{stage}_ratio"] = round(first["ms"][stage] / found["ms"][stage], 2)
    about = {"text": text, "precision": precision, "repeats": repeats}
    return {"groups": rows} | about | measured_on(tts.manifest, seed, threads)


def row(tts: Valle2, times: list[Timings]) -> Result:
    """Medians of one model, in milliseconds per second of speech."""
    audio = times[0].audio
    return {
        "group_size": tts.manifest.sizes["group_size"],
        "steps": times[0].steps,
        "audio_seconds": round(audio, 3),
        "ar_step_ms": round(1000 * median(t.ar for t in times) / max(1, times[0].steps - 1), 3),
        "ms": {stage: round(1000 * median(getattr(t, stage) for t in times) / audio, 2) for stage in STAGES},
        "rtf": round(median(t.total for t in times) / audio, 4),
    }


def table(result: Result) -> str:
    """One line per model."""
    head = [
        "model",
        "G",
        "AR step, ms",
        *(f"{stage}, ms/s" for stage in STAGES),
        "RTF",
        "AR gain",
        "whole gain",
    ]
    rows = [
        [name, r["group_size"], r["ar_step_ms"], *r["ms"].values(), r["rtf"], r["ar_ratio"], r["total_ratio"]]
        for name, r in result["groups"].items()
    ]
    return markdown(head, rows)


def panels(result: Result) -> list[Panel]:
    """Time per stage, one bar per model."""
    rows, parts = result["groups"], STAGES[:-1]
    bars = [Line(name, (), [r["ms"][stage] for stage in parts]) for name, r in rows.items()]
    return [Panel("a second of speech", "ms", bars, stacked=parts)]
