"""A quality sweep as Markdown tables, one an axis, and as plots."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from valle2.benchmarks.quality.conditions import OFF, PAPER, SAMPLES, TOP_P
from valle2.benchmarks.quality.scores import Figure, Score, difference, summarise
from valle2.benchmarks.quality.selection import RULES, select
from valle2.benchmarks.quality.sweep import scores_of
from valle2.benchmarks.report.plots import Line, Panel, draw
from valle2.benchmarks.report.report import markdown

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
SOMETIMES = {"beside_known": "beside known %", "seam": "seam rank %", "click": "clicks %"}
"""Shown where it was measured: of strangers, and at joints."""
SHARES = ("voice", "capped", "truncated", "repeated", "redraws", *SOMETIMES)


def plain_text(name: str, value: float) -> str:
    """A number as the tables show it: shares in percent."""
    return f"{value * (100 if name in SHARES else 1):.{2 if name in ('similarity', 'mos') else 1}f}"


def cell_text(name: str, figure: Figure | None) -> str:
    """A figure and its interval, a dash for what was not measured."""
    if figure is None:
        return "–"
    value, low, high = (plain_text(name, figure[key]) for key in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def rows_table(rows: dict[str, dict[str, Figure]]) -> str:
    """Conditions down, measures across."""
    shown = TITLES | {m: title for m, title in SOMETIMES.items() if any(m in row for row in rows.values())}
    lines = [[name, *(cell_text(m, row.get(m)) for m in shown)] for name, row in rows.items()]
    return markdown(["condition", *shown.values()], lines)


def summaries(result: Result, axis: str) -> dict[str, dict[str, Figure]]:
    """What was measured of one axis."""
    names = [name for name in result["axes"][axis] if name in result["cells"]]
    return {name: result["cells"][name]["summary"] for name in names}


def chosen(result: Result, axis: str) -> dict[str, dict[str, Figure]]:
    """The axis of candidates, with the rules that need a judge."""
    rows = {}
    for name, summary in summaries(result, axis).items():
        if result["cells"][name]["cell"]["samples"] == 1:
            rows[name] = summary
        else:
            scores = scores_of(result, name)
            rows |= {rule: summarise(select(scores, rule, SAMPLES)) for rule in RULES}
    return rows


def by_category(result: Result, axis: str) -> dict[str, dict[str, Figure]]:
    """The hard texts, one row a category and condition."""
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
    """Whole, with its figures at the stream's joints; streamed; the difference in pairs."""
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


def beside_first(result: Result, axis: str) -> dict[str, dict[str, Figure]]:
    """Every precision, and its difference from the first in pairs."""
    rows = summaries(result, axis)
    told = [(result["cells"][name]["cell"]["precision"], scores_of(result, name)) for name in rows]
    return rows | {f"{name} - {told[0][0]}": difference(told[0][1], scores) for name, scores in told[1:]}


def by_voice(result: Result) -> str:
    """The condition that most axes share, the usual one: a row a voice, where there are several."""
    ranked = Counter(name for names in result["axes"].values() for name in names).most_common(1)
    if not ranked or ranked[0][0] not in result["cells"]:
        return ""
    usual, rows = ranked[0][0], {}
    scores = scores_of(result, usual)
    for voice in sorted({score.voice for score in scores}):
        rows[f"{usual}, {voice}"] = summarise([score for score in scores if score.voice == voice])
    return rows_table(rows) if len(rows) > 1 else ""


ROWS: dict[str, Callable[[Result, str], dict[str, dict[str, Figure]]]] = {
    "candidates": chosen,
    "precision": beside_first,
    "streaming": beside_whole,
    "robustness": by_category,
}


def at(result: Result, model: str, top_p: float, threshold: float) -> list[Score]:
    """Scores of one cell of the axis `sampling`, empty if not measured."""
    for name in result["axes"].get("sampling", ()):
        cell = result["cells"].get(name, {}).get("cell", {})
        if cell and (cell["model"], cell["top_p"], cell["threshold"]) == (model, top_p, threshold):
            return scores_of(result, name)
    return []


def ras_pairs(result: Result) -> dict[tuple[str, float], tuple[list[Score], list[Score]]]:
    """(model, top-p) -> scores without and with RAS, where both were measured."""
    found = {}
    for model in result["inputs"]["models"]:
        for top_p in TOP_P:
            off, on = (at(result, model, top_p, threshold) for threshold in (OFF, PAPER.threshold))
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
    """Markdown by axis, with `ras` for its paired differences, and `voices`."""
    found = {axis: rows_table(ROWS.get(axis, summaries)(result, axis)) for axis in result["axes"]}
    more = {"ras": ras_effect(result), "voices": by_voice(result)}
    return found | {name: table for name, table in more.items() if table}


def text(result: Result) -> str:
    """All tables under their names, and what could not be measured."""
    parts = [f"## {axis}\n\n{table}" for axis, table in tables(result).items()]
    parts += [f"Not measured: {name}: {why}" for name, why in result["unmeasured"].items()]
    return "\n\n".join(parts)


def panels(result: Result) -> list[Panel]:
    """Every measure of interest against top-p, RAS on and off, a line a model."""
    wanted = ("wer", "similarity", "capped", "repeated", "truncated", "redraws")
    return [Panel(TITLES[m], "top-p", lines_of(result, m)) for m in wanted]


def lines_of(result: Result, measure: str) -> list[Line]:
    unit, lines = 100 if measure in SHARES else 1, []
    for model in result["inputs"]["models"]:
        for threshold, label in ((OFF, "RAS off"), (PAPER.threshold, "RAS on")):
            points = {top_p: at(result, model, top_p, threshold) for top_p in TOP_P}
            found = {top_p: summarise(scores)[measure] for top_p, scores in points.items() if scores}
            values = [tuple(unit * f[key] for key in ("value", "low", "high")) for f in found.values()]
            lines.append(Line(f"{model}, {label}", list(found), values, dashed=threshold == OFF))
    return [line for line in lines if line.x]


def plot(result: Result, path: Path) -> Path:
    return draw(panels(result), path)
