"""docs/quality.md and docs/notes/quality.md show the sweep in docs/quality.json, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from valle2.benchmarks.quality.page import PLACE, filled
from valle2.benchmarks.quality.paper_claims import beside_paper
from valle2.benchmarks.quality.tables import tables
from valle2.engine.errors import Valle2Error

DOCS = Path(__file__).parents[3] / "docs"
PAGES = (DOCS / "quality.md", DOCS / "notes" / "quality.md")


def test_the_pages_show_what_was_measured() -> None:
    result, other = (json.loads((DOCS / "quality.json").read_text("utf-8")) for _ in range(2))
    pages = [path.read_text("utf-8") for path in PAGES]
    for page in pages:
        assert len(PLACE.findall(page)) >= 5 and filled(page, result) == page
    cell = other["cells"][other["axes"]["sampling"][0]]
    cell["summary"]["wer"]["value"] += 50
    assert [filled(page, other) != page for page in pages] == [False, True], "its table of all conditions"


def test_each_table_stands_on_one_page() -> None:
    result = json.loads((DOCS / "quality.json").read_text("utf-8"))
    names = [name for path in PAGES for _, name, _ in PLACE.findall(path.read_text("utf-8"))]
    assert sorted(names) == sorted({"claims", *tables(result)})


def cells_of(table: str) -> dict[str, list[str]]:
    """The rows of a Markdown table: first cell -> the others."""
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")]
    return {row[0]: row[1:] for row in rows}


def test_the_summary_on_the_page_is_of_the_sweep() -> None:
    """The rows that are written by hand: unseen and recorded voices, and the kinds of hard texts."""
    result = json.loads((DOCS / "quality.json").read_text("utf-8"))
    made = {name: cells_of(table) for name, table in tables(result).items()}
    written = cells_of(PLACE.sub("", PAGES[0].read_text("utf-8")))
    off, on = "G2, fp32, top-p 0.2, RAS off", "G2, fp32, top-p 0.2, RAS 0.1"
    for row, voices in (("four unseen synthetic voices", "held-out"), ("recorded people", "recorded")):
        wer, *_, mos, _, _, _, _, beside_known = made["unseen"][f"{off}, {voices} voices"]
        assert written[row][:3] == [wer, beside_known, mos.partition(" ")[0]]
    for kind in {category for category, _ in result["inputs"]["hard"]} | {"all"}:
        words = [made["robustness"][f"{settings}: {kind}"][0] for settings in (off, on)]
        shown = words if kind == "all" else [figure.partition(" ")[0] for figure in words]
        assert written[kind] == shown, kind


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
