"""A sweep's figures beside the paper's claims: one row per claim that was measured, without a verdict."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from valle2.benchmarks.quality.conditions import OFF, TOP_P
from valle2.benchmarks.quality.scores import Score, difference, summarise
from valle2.benchmarks.quality.tables import (
    Result,
    candidate_rows,
    plain_text,
    ras_pairs,
    sampling_scores,
    summaries,
)
from valle2.benchmarks.report.tables import markdown

USABLE_TOP_P = 0.5
"""Group sizes are compared by their mean over all top-p up to this one."""
WHOSE = {"own": "of its own voices", "recorded": "of recorded people", "held-out": "of held-out voices"}


def wer_by_top_p(result: Result, model: str) -> dict[float, float]:
    """WER in percent by top-p, without RAS."""
    found = {top_p: sampling_scores(result, model, top_p, OFF) for top_p in TOP_P}
    return {top_p: summarise(scores)["wer"]["value"] for top_p, scores in found.items() if scores}


def by_model(result: Result) -> dict[str, dict[float, float]]:
    """`wer_by_top_p` of every model that was measured."""
    return {model: found for model in result["inputs"]["models"] if (found := wer_by_top_p(result, model))}


def loops(result: Result) -> str:
    """Whether decoding without RAS loops, and whether RAS helps: all models and top-p, in pairs."""
    sides = list(ras_pairs(result).values())
    if not sides:
        return ""
    changes = [difference(off, on)["wer"] for off, on in sides]
    more, fewer = (sum(sign * change["value"] > 0 for change in changes) for sign in (1, -1))
    clearly_more = sum(change["low"] > 0 for change in changes)
    clearly_fewer = sum(change["high"] < 0 for change in changes)
    greedy = ", ".join(f"{name} {found[0.0]:.1f}" for name, found in by_model(result).items())
    without, with_it = (faults([score for side in sides for score in side[place]]) for place in (0, 1))
    return (
        f"words wrong at top-p 0 without RAS: {greedy} %. Of {without[0]} utterances {without[1]} run to "
        f"the cap and {without[2]} repeat without RAS, {with_it[1]} and {with_it[2]} with it. With it more "
        f"words are wrong in {more} of {len(sides)} pairs (in {clearly_more} by more than the interval), "
        f"fewer in {fewer} (in {clearly_fewer})"
    )


def faults(scores: list[Score]) -> tuple[int, int, int]:
    """Number of utterances, of those that ran to the length limit, and of those with repeats."""
    return len(scores), sum(s.capped for s in scores), sum(s.repeated for s in scores)


def large_top_p(result: Result) -> str:
    rows = [
        f"{name} {', '.join(f'{found[top_p]:.1f}' for top_p in found)}"
        for name, found in by_model(result).items()
    ]
    return f"words wrong at top-p {', '.join(f'{p:g}' for p in TOP_P)}: {'; '.join(rows)} %" if rows else ""


def groups(result: Result) -> str:
    means = {
        name: [value for top_p, value in found.items() if top_p <= USABLE_TOP_P]
        for name, found in by_model(result).items()
    }
    shown = ", ".join(f"{name} {sum(values) / len(values):.1f}" for name, values in means.items() if values)
    return (
        f"words wrong, mean over top-p up to {USABLE_TOP_P:g} without RAS: {shown} %"
        if len(means) > 1
        else ""
    )


def five_samples(result: Result) -> str:
    rows = candidate_rows(result, "candidates")
    one, sorted_, own = (
        next((row["wer"]["value"] for name, row in rows.items() if name.endswith(end)), None)
        for end in ("first of five", "five, sort", "best of 5")
    )
    if one is None or sorted_ is None or own is None:
        return ""
    return (
        f"words wrong: {one:.1f} % of the first, {sorted_:.1f} % of the one chosen with the text, "
        f"{own:.1f} % of the one that the runtime chooses without it"
    )


def longer_prompts(result: Result) -> str:
    by_kind: dict[str, dict[float, Any]] = {}
    for name, row in summaries(result, "prompts").items():
        condition = result["conditions"][name]["condition"]
        by_kind.setdefault(WHOSE[condition["voices"]], {})[condition["prompt_seconds"]] = row
    return "; ".join(
        f"with prompts {whose} of {', '.join(f'{seconds:g}' for seconds in rows)} s, "
        f"{in_turn(rows, 'voice')} % are recognised and {in_turn(rows, 'wer')} % of words wrong"
        for whose, rows in by_kind.items()
    )


def in_turn(rows: dict[float, Any], measure: str) -> str:
    """One measure of several rows, in order."""
    return ", ".join(plain_text(measure, row[measure]["value"]) for row in rows.values())


CLAIMS: dict[str, tuple[str, Callable[[Result], str]]] = {
    "RAS makes small top-p, even 0, usable and ends loops": ("sampling", loops),
    "a large top-p costs words without RAS": ("sampling", large_top_p),
    "group 2 helps or ties, group 4 is about as good as no groups": ("sampling", groups),
    "five samples, the best chosen with the text, halve WER and more": ("candidates", five_samples),
    "a longer prompt is a nearer voice": ("prompts", longer_prompts),
}
"""The paper's claim (its section 4): the axis that it needs, and the text of what was measured."""


def beside_paper(*results: Result) -> str:
    """The claims as a Markdown table, empty if none was measured.

    Of several results with a claim's axis the first one counts.
    """
    rows = [
        [claim, next((say(result) for result in results if axis in result["axes"]), "")]
        for claim, (axis, say) in CLAIMS.items()
    ]
    rows = [row for row in rows if row[1]]
    return markdown(["the paper", "here"], rows) if rows else ""
