"""docs/quality.md shows the sweep that lies beside it, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from valle2.benchmarks.page import PLACE, filled
from valle2.benchmarks.tables import tables
from valle2.engine.errors import Valle2Error

DOCS = Path(__file__).parents[2] / "docs"


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
