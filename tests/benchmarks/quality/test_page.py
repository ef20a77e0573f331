"""docs/quality.md shows the sweep that lies beside it, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from valle2.benchmarks.quality.page import PLACE, filled
from valle2.benchmarks.quality.paper_claims import beside_paper
from valle2.benchmarks.quality.tables import tables
from valle2.engine.errors import Valle2Error

DOCS = Path(__file__).parents[3] / "docs"


def test_the_page_shows_what_was_measured() -> None:
    page, result = (
        (DOCS / "quality.md").read_text("utf-8"),
        json.loads((DOCS / "quality.json").read_text("utf-8")),
    )
    assert len(PLACE.findall(page)) >= 5 and filled(page, result) == page
    other = json.loads((DOCS / "quality.json").read_text("utf-8"))
    cell = other["cells"][other["axes"]["sampling"][0]]
    cell["summary"]["wer"]["value"] += 50
    assert filled(page, other) != page


def test_precisions_are_compared_in_pairs_and_voices_told_apart() -> None:
    result = json.loads((DOCS / "quality.json").read_text("utf-8"))
    found = tables(result)
    assert [row.split(" | ")[0] for row in found["precision"].splitlines()[-2:]] == [
        "| int8 - fp32",
        "| int4 - fp32",
    ]
    usual = result["axes"]["precision"][0]
    voices = {row[2] for row in result["cells"][usual]["rows"]}
    rows = found["voices"].splitlines()[2:]
    assert len(rows) == len(voices) > 1
    assert all(row.startswith(f"| {usual}, ") for row in rows)
    result["axes"] = {"precision": [usual]}
    result["cells"] = {}
    assert "voices" not in tables(result)


def test_a_table_that_was_not_measured() -> None:
    with pytest.raises(Valle2Error, match="wants the table nothing; the sweep has sampling"):
        filled(
            "<!-- table nothing -->\n<!-- end -->",
            {"axes": {"sampling": []}, "cells": {}, "inputs": {"models": {}}},
        )


def test_claims_are_told_by_what_was_measured() -> None:
    """Each figure is counted again here, from the file's rows; what was not measured has no row."""
    result = json.loads((DOCS / "quality.json").read_text("utf-8"))
    rows = dict(line.strip("| ").split(" | ") for line in beside_paper(result).splitlines()[2:])
    assert len(rows) == 5

    def value(name: str) -> float:
        return float(result["cells"][name]["summary"]["wer"]["value"])

    def wer(name: str) -> str:
        return f"{value(name):.1f}"

    top_p = [f"G2, fp32, top-p {p}, RAS off" for p in ("0", "0.2", "0.5", "0.8", "1")]
    assert f"G2 {', '.join(map(wer, top_p))}" in rows["a large top-p costs words without RAS"]
    capped = result["columns"].index("capped")
    sampled = [result["cells"][name] for name in result["axes"]["sampling"]]
    off = [row for cell in sampled if cell["cell"]["threshold"] == 1 for row in cell["rows"]]
    on = [row for cell in sampled if cell["cell"]["threshold"] != 1 for row in cell["rows"]]
    said = rows["RAS makes small top-p, even 0, usable and ends loops"]
    assert f"Of {len(off)} utterances {sum(row[capped] for row in off)} run to the cap" in said
    assert f"{sum(row[capped] for row in on)} and " in said
    grouped = rows[next(row for row in rows if "group 2" in row)]
    assert f"G2 {sum(map(value, top_p[:3])) / 3:.1f}" in grouped
    for voices in ("recorded", "held-out"):
        names = [n for n in result["axes"]["prompts"] if result["cells"][n]["cell"]["voices"] == voices]
        assert f"{', '.join(map(wer, names))} % of words" in rows["a longer prompt is a nearer voice"]
    first = wer(result["axes"]["candidates"][0])
    assert f"{first} % of the first" in rows[next(row for row in rows if "five samples" in row)]

    for axis in ("prompts", "candidates"):
        del result["axes"][axis]
    assert len(beside_paper(result).splitlines()) == 2 + 3
    result["axes"], result["cells"] = {"sampling": []}, {}
    assert beside_paper(result) == ""
