"""docs/quality.md and docs/notes/quality.md have the tables and figures of the sweeps in docs/data."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from tests.benchmarks.conftest import a_score
from valle2.benchmarks.quality.conditions import OFF, TOP_P, Condition
from valle2.benchmarks.quality.forms import FORMS
from valle2.benchmarks.quality.page import PLACE, fill
from valle2.benchmarks.quality.paper_claims import beside_paper
from valle2.benchmarks.quality.scores import COLUMNS, summarise
from valle2.benchmarks.quality.tables import tables
from valle2.engine.errors import Valle2Error

DOCS = Path(__file__).parents[3] / "docs"
DATA = DOCS / "data" / "quality.json"
PROMPTS, STRANGERS = DATA.with_name("prompts.json"), DATA.with_name("strangers.json")
OTHERS = [DATA.with_name(name) for name in ("recorded.json", "forms.json")]
PAGES = (DOCS / "quality.md", DOCS / "notes" / "quality.md")


def test_the_pages_show_what_was_measured() -> None:
    result, other = (json.loads(DATA.read_text("utf-8")) for _ in range(2))
    prompts, people, *more = (json.loads(path.read_text("utf-8")) for path in (PROMPTS, STRANGERS, *OTHERS))
    pages = [path.read_text("utf-8") for path in PAGES]
    for page in pages:
        assert len(PLACE.findall(page)) >= 5 and fill(page, prompts, people, result, *more) == page
    first = other["conditions"][other["axes"]["sampling"][0]]
    first["summary"]["wer"]["value"] += 50
    assert [fill(page, prompts, people, other, *more) != page for page in pages] == [False, True], (
        "its table of all conditions"
    )


def test_each_table_stands_on_one_page() -> None:
    results = [json.loads(path.read_text("utf-8")) for path in (PROMPTS, STRANGERS, DATA, *OTHERS)]
    names = [name for path in PAGES for _, name, _ in PLACE.findall(path.read_text("utf-8"))]
    assert sorted(names) == sorted({"claims"}.union(*map(tables, results)))


def cells_of(table: str) -> dict[str, list[str]]:
    """The rows of a Markdown table: first cell -> the others."""
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")]
    return {row[0]: row[1:] for row in rows}


def test_the_summary_on_the_page_is_of_the_sweep() -> None:
    """The rows that are written by hand: unseen and recorded voices, forms, and the kinds of hard texts."""
    result, forms = (json.loads(path.read_text("utf-8")) for path in (STRANGERS, OTHERS[1]))
    made = {name: cells_of(table) for name, table in tables(result).items()}
    strangers = made["strangers"]
    written = cells_of(PLACE.sub("", PAGES[0].read_text("utf-8")))
    off, on = "G2, fp32, top-p 0.2, RAS off", "G2, fp32, top-p 0.2, RAS 0.1"
    for row, voices in (("four unseen synthetic voices", "held-out"), ("recorded people", "recorded")):
        found = dict(zip(strangers["condition"], strangers[f"{on}, {voices} voices"], strict=True))
        mos = found["DNSMOS"].partition(" ")[0]
        assert written[row][:3] == [found["WER %"], found["beside known %"], mos]
    lengths = cells_of(tables(json.loads(PROMPTS.read_text("utf-8")))["prompts"])
    shown = [
        row
        for row in PAGES[0].read_text("utf-8").splitlines()
        if row.startswith(("| people | ", "| unseen s"))
    ]
    for row in shown:
        who, seconds, _, *figures, capped = row.strip("| ").split(" | ")
        voices = {"people": "recorded", "unseen synthetic": "held-out"}[who]
        cells = lengths[f"{on}, {seconds} s prompt, {voices} voices"]
        found = dict(zip(lengths["condition"], cells, strict=True))
        assert figures == [found["WER %"], found["beside known %"], found["DNSMOS"].partition(" ")[0]], row
        assert float(capped) == round(float(found["runaway %"].partition(" ")[0])), row
    assert len(shown) == len([name for name in lengths if on in name]) == 8
    by_form = cells_of(tables(forms)["forms"])
    for form in FORMS:
        pair = [by_form[f"{on}, recorded voices, {form}{how}"] for how in (", not prepared", "")]
        values = [float(row[column].partition(" ")[0]) for column in (0, 5) for row in pair]
        assert [float(cell) for cell in written[form]] == [round(value) for value in values], form
    for kind in {category for category, _ in result["inputs"]["hard"]} | {"all"}:
        words = [made["robustness"][f"{settings}: {kind}"][0] for settings in (off, on)]
        shown = words if kind == "all" else [figure.partition(" ")[0] for figure in words]
        assert written[kind] == shown, kind


def test_precisions_are_compared_in_pairs_and_voices_told_apart() -> None:
    result = json.loads(DATA.read_text("utf-8"))
    found = tables(result)
    assert [row.split(" | ")[0] for row in found["precision"].splitlines()[-2:]] == [
        "| int8 - fp32",
        "| int4 - fp32",
    ]
    base = result["axes"]["precision"][0]
    voices = {row[2] for row in result["conditions"][base]["rows"]}
    rows = found["voices"].splitlines()[2:]
    assert len(rows) == len(voices) > 1
    assert all(row.startswith(f"| {base}, ") for row in rows)
    result["axes"] = {"precision": [base]}
    result["conditions"] = {}
    assert "voices" not in tables(result)


def test_a_table_that_was_not_measured() -> None:
    with pytest.raises(Valle2Error, match="names the table nothing; expected one of sampling"):
        fill(
            "<!-- table nothing -->\n<!-- end -->",
            {"axes": {"sampling": []}, "conditions": {}, "inputs": {"models": {}}},
        )


def a_sweep() -> dict[str, Any]:
    """Four sentences of ten words each, so that an error in every sentence is 10 % of the words."""
    sampling = {
        Condition(model, top_p, threshold): [a_score(i, errors=errors) for i in range(4)]
        for model, threshold, by_top_p in (
            ("G2", OFF, (1, 2, 3, 4, 5)),
            ("G2", 0.1, (0, 3, 3, 4, 5)),
            ("G1", OFF, (1, 1, 1, 1, 2)),
        )
        for top_p, errors in zip(TOP_P, by_top_p, strict=True)
    }
    first = next(iter(sampling))
    sampling[first][0] = replace(sampling[first][0], capped=1, repeated=1)
    sampling[first][1] = replace(sampling[first][1], repeated=1)
    best, five = replace(first, candidates=5), replace(first, samples=5)
    samples = [
        a_score(seed=seed, errors=errors, similarity=0.5) for seed, errors in enumerate((3, 1, 2, 4, 2))
    ]
    candidates = {best: [a_score(errors=2)], five: samples}
    prompts = {
        replace(first, prompt_seconds=seconds): [a_score(i, errors=errors, own=own[i]) for i in range(2)]
        for seconds, errors, own in ((1.0, 2, (1, 0)), (3.0, 1, (1, 1)))
    }
    axes = {"sampling": sampling, "candidates": candidates, "prompts": prompts}
    return {
        "axes": {axis: [condition.name for condition in scores] for axis, scores in axes.items()},
        "inputs": {"models": {"G2": "a", "G1": "b"}, "hard": []},
        "columns": COLUMNS,
        "unmeasured": {},
        "conditions": {
            condition.name: {
                "condition": asdict(condition),
                "summary": summarise(scores),
                "rows": [score.row() for score in scores],
            }
            for axis in axes.values()
            for condition, scores in axis.items()
        },
    }


def test_the_papers_claims_have_the_figures_of_the_sweep() -> None:
    """The figures are worked out by hand; a claim without measurements has no row."""
    result = a_sweep()
    rows = dict(line.strip("| ").split(" | ") for line in beside_paper(result).splitlines()[2:])
    assert list(rows.values()) == [
        "words wrong at top-p 0 without RAS: G2 10.0, G1 10.0 %. Of 20 utterances 1 run to the cap and 2 "
        "repeat without RAS, 0 and 0 with it. With it more words are wrong in 1 of 5 pairs (in 1 by more "
        "than the interval), fewer in 1 (in 1)",
        "words wrong at top-p 0, 0.2, 0.5, 0.8, 1: G2 10.0, 20.0, 30.0, 40.0, 50.0; "
        "G1 10.0, 10.0, 10.0, 10.0, 20.0 %",
        "words wrong, mean over top-p up to 0.5 without RAS: G2 20.0, G1 10.0 %",
        "words wrong: 30.0 % of the first, 10.0 % of the one chosen with the text, 20.0 % of the one that "
        "the runtime chooses without it",
        "with prompts of its own voices of 1, 3 s, 50.0, 100.0 % are recognised and 20.0, 10.0 % of words "
        "wrong",
    ]
    for axis in ("prompts", "candidates"):
        del result["axes"][axis]
    assert beside_paper(result).splitlines()[2:] == [
        f"| {claim} | {rows[claim]} |" for claim in list(rows)[:3]
    ]
    result["axes"], result["conditions"] = {"sampling": []}, {}
    assert beside_paper(result) == ""
