"""A quality sweep as Markdown tables, one per axis, and as plots."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from valle2.benchmarks.quality.conditions import OFF, PAPER, SAMPLES, TOP_P
from valle2.benchmarks.quality.scores import SELECTION_RULES, Figure, Score, difference, select, summarise
from valle2.benchmarks.quality.sweep import scores_of
from valle2.benchmarks.report.plots import Line, Panel, draw
from valle2.benchmarks.report.tables import markdown

Result = dict[str, Any]
TITLES = {
    "wer": "WER %",
    "cer": "CER %",
    "similarity": "similarity",
    "voice": "own voice %",
    "mos": "DNSMOS",
    "capped": "runaway %",
    "truncated": "truncated %",
    "repeated": "repeated %",
    "redraws": "redraws %",
}
SOMETIMES = {
    "echoed": "prompt heard %",
    "unbegun": "first word missing %",
    "beside_known": "beside known %",
    "seam": "seam rank %",
    "click": "clicks %",
}
"""Measures of prompts, unseen voices and streams, shown where they were measured."""
SHARES = ("voice", "capped", "truncated", "repeated", "redraws", *SOMETIMES)


def plain_text(name: str, value: float) -> str:
    """A number as the tables show it; shares are in percent."""
    return f"{value * (100 if name in SHARES else 1):.{2 if name in ('similarity', 'mos') else 1}f}"


def figure_text(name: str, figure: Figure | None) -> str:
    """A figure and its interval; a dash if it was not measured."""
    if figure is None:
        return "–"
    value, low, high = (plain_text(name, figure[key]) for key in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def titles(rows: Mapping[str, Mapping[str, object]]) -> dict[str, str]:
    """The titles of the measures that a table of these rows shows."""
    return TITLES | {m: title for m, title in SOMETIMES.items() if any(m in row for row in rows.values())}


def rows_table(rows: dict[str, dict[str, Figure]]) -> str:
    """One row per condition, one column per measure."""
    shown = titles(rows)
    lines = [[name, *(figure_text(m, row.get(m)) for m in shown)] for name, row in rows.items()]
    return markdown(["condition", *shown.values()], lines)


def summaries(result: Result, axis: str) -> dict[str, dict[str, Figure]]:
    """Summaries of the measured conditions of one axis."""
    names = [name for name in result["axes"][axis] if name in result["conditions"]]
    return {name: result["conditions"][name]["summary"] for name in names}


def candidate_rows(result: Result, axis: str) -> dict[str, dict[str, Figure]]:
    """The axis `candidates`, and the rules that need a judge."""
    rows = {}
    for name, summary in summaries(result, axis).items():
        if result["conditions"][name]["condition"]["samples"] == 1:
            rows[name] = summary
        else:
            scores = scores_of(result, name)
            rows |= {rule: summarise(select(scores, rule, SAMPLES)) for rule in SELECTION_RULES}
    return rows


def by_category(result: Result, axis: str) -> dict[str, dict[str, Figure]]:
    """The hard texts, one row per category and condition."""
    categories = [category for category, _ in result["inputs"]["hard"]]
    rows = {}
    for name in summaries(result, axis):
        scores = scores_of(result, name)
        label = name.removesuffix(", hard texts")
        rows[f"{label}: all"] = summarise(scores)
        for category in dict.fromkeys(categories):
            inside = [score for score in scores if categories[score.sentence] == category]
            rows[f"{label}: {category}"] = summarise(inside)
    return rows


def beside_whole(result: Result, axis: str) -> dict[str, dict[str, Figure]]:
    """Whole (with its figures at the stream's joints), streamed, and the difference in pairs."""
    rows = summaries(result, axis)
    if len(rows) != 2:
        return rows
    whole, streamed = (scores_of(result, name) for name in rows)
    control = [
        replace(one, joints=other.joints, seam=other.seam_whole, click=other.click_whole)
        for one, other in zip(whole, streamed, strict=True)
    ]
    name = next(iter(rows))
    return rows | {name: summarise(control), "streamed - whole": difference(control, streamed)}


def beside_first(result: Result, axis: str, field: str) -> dict[str, dict[str, Figure]]:
    """Every condition, and its difference from the first in pairs. field: what differs between them."""
    rows, conditions = summaries(result, axis), result["conditions"]
    found = [(conditions[name]["condition"][field], scores_of(result, name)) for name in rows]
    if not found:
        return rows
    first, base = found[0]
    return rows | {f"{other} - {first}": difference(base, scores) for other, scores in found[1:]}


def by_voice(result: Result) -> str:
    """The base condition, which most axes share, with one row per voice if there are several."""
    ranked = Counter(name for names in result["axes"].values() for name in names).most_common(1)
    if not ranked or ranked[0][0] not in result["conditions"]:
        return ""
    base, rows = ranked[0][0], {}
    scores = scores_of(result, base)
    for voice in sorted({score.voice for score in scores}):
        rows[f"{base}, {voice}"] = summarise([score for score in scores if score.voice == voice])
    return rows_table(rows) if len(rows) > 1 else ""


ROWS: dict[str, Callable[[Result, str], dict[str, dict[str, Figure]]]] = {
    "candidates": candidate_rows,
    "precision": partial(beside_first, field="precision"),
    "first-chunks": partial(beside_first, field="first_chunk_codebooks"),
    "streaming": beside_whole,
    "robustness": by_category,
}


def sampling_scores(result: Result, model: str, top_p: float, threshold: float) -> list[Score]:
    """Scores of one condition of the axis `sampling`; empty if it was not measured."""
    for name in result["axes"].get("sampling", ()):
        one = result["conditions"].get(name, {}).get("condition", {})
        if one and (one["model"], one["top_p"], one["threshold"]) == (model, top_p, threshold):
            return scores_of(result, name)
    return []


def ras_pairs(result: Result) -> dict[tuple[str, float], tuple[list[Score], list[Score]]]:
    """(model, top-p) -> scores without and with RAS, where both were measured."""
    found = {}
    for model in result["inputs"]["models"]:
        for top_p in TOP_P:
            off, on = (
                sampling_scores(result, model, top_p, threshold) for threshold in (OFF, PAPER.threshold)
            )
            if off and on:
                found[model, top_p] = off, on
    return found


def ras_effect(result: Result) -> str:
    """RAS on minus RAS off, in pairs, for every model and top-p."""
    rows = {
        f"{model}, top-p {top_p:g}, RAS on - off": difference(off, on)
        for (model, top_p), (off, on) in ras_pairs(result).items()
    }
    return rows_table(rows) if rows else ""


def tables(result: Result) -> dict[str, str]:
    """Markdown tables by axis, and `ras` (differences by RAS in pairs) and `voices`."""
    found = {axis: rows_table(ROWS.get(axis, summaries)(result, axis)) for axis in result["axes"]}
    more = {"ras": ras_effect(result), "voices": by_voice(result)}
    return found | {name: table for name, table in more.items() if table}


def text(result: Result) -> str:
    """All tables under their names, and the conditions that could not be measured."""
    parts = [f"## {axis}\n\n{table}" for axis, table in tables(result).items()]
    parts += [f"Not measured: {name}: {why}" for name, why in result["unmeasured"].items()]
    return "\n\n".join(parts)


def panels(result: Result) -> list[Panel]:
    """Measures against top-p, one line per model with RAS on and one with it off.

    A measure that is 0 everywhere has no panel.
    """
    wanted = ("wer", "similarity", "capped", "repeated", "truncated", "redraws")
    found = [Panel(TITLES[m], "top-p", lines_of(result, m)) for m in wanted]
    return [panel for panel in found if any(value[0] for line in panel.lines for value in line.values)]


def lines_of(result: Result, measure: str) -> list[Line]:
    unit, lines = 100 if measure in SHARES else 1, []
    for colour, model in enumerate(result["inputs"]["models"]):
        for threshold, label in ((OFF, "RAS off"), (PAPER.threshold, "RAS on")):
            points = {top_p: sampling_scores(result, model, top_p, threshold) for top_p in TOP_P}
            found = {top_p: summarise(scores)[measure] for top_p, scores in points.items() if scores}
            values = [tuple(unit * f[key] for key in ("value", "low", "high")) for f in found.values()]
            lines.append(Line(f"{model}, {label}", list(found), values, threshold == OFF, colour))
    return [line for line in lines if line.x]


def plot(result: Result, path: Path) -> Path:
    return draw(panels(result), path)
