"""`bench quality` under one condition: word errors, voice and faults over the sentences of a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from valle2.benchmarks.quality.evaluate import NEEDED, evaluate
from valle2.benchmarks.quality.judges import Judges, need
from valle2.benchmarks.quality.scores import summarise
from valle2.benchmarks.quality.speakers import own_speakers
from valle2.benchmarks.quality.tables import figure_text, plain_text, titles
from valle2.benchmarks.report.provenance import measured_on
from valle2.benchmarks.report.tables import markdown
from valle2.benchmarks.stages import load_model
from valle2.engine.errors import Valle2Error


def judge_sentences(
    model: str,
    sentences: Path,
    count: int,
    seeds: Sequence[int],
    settings: dict[str, float],
    threads: int,
    precision: str = "fp32",
) -> dict[str, Any]:
    """Speak the first `count` sentences of a file with every seed, the voices in turn, and judge them.

    Args:
        settings: sampling settings that differ from the model's own.

    Raises:
        Valle2Error: a judge is not installed, the file cannot be used, or the model has no voices.
    """
    need(*NEEDED)
    texts = read_sentences(sentences, count)
    tts = load_model(model, threads=threads, precision=precision)
    tts.default_voice()  # refuses a bundle without voices before the judges load
    judges = Judges(threads)
    chosen = replace(tts.settings(), **settings)  # type: ignore[arg-type]
    scores = evaluate(tts, judges, texts, own_speakers(tts, judges), chosen, seeds)
    rows = {
        str(seed): {
            name: figure["value"] for name, figure in summarise([s for s in scores if s.seed == seed]).items()
        }
        for seed in seeds
    }
    return {
        "sentences": len(texts),
        "voices": tts.voices(),
        "seeds": rows,
        "median": {name: round(median(row[name] for row in rows.values()), 4) for name in titles(rows)},
        "all": summarise(scores),
        "precision": precision,
        "settings": {"top_p": chosen.top_p, "window": chosen.window, "threshold": chosen.threshold},
    } | measured_on(tts.manifest, seeds[0], threads)


def read_sentences(path: Path, count: int) -> list[str]:
    """The first `count` lines of a file."""
    try:
        found = path.read_text(encoding="utf-8").splitlines()[:count]
    except (OSError, UnicodeDecodeError) as error:
        raise Valle2Error(f"{path} cannot be read as lines of UTF-8 text: {error}") from None
    if not found:
        raise Valle2Error(f"{path} is empty; expected one sentence per line")
    return found


def read_categories(path: Path, count: int) -> list[tuple[str, str]]:
    """(category, text) of the lines `category<TAB>text`, the first `count` of every category."""
    found = [tuple(line.split("\t")) for line in read_sentences(path, 10**9)]
    if any(len(pair) != 2 for pair in found):
        raise Valle2Error(f"{path} has a line without exactly one tab; expected: category, tab, text")
    kept: list[tuple[str, str]] = []
    for category, text in found:
        if sum(category == other for other, _ in kept) < count:
            kept.append((category, text))
    return kept


def table(result: dict[str, Any]) -> str:
    """A Markdown table: every seed, their median, and all utterances with the interval."""
    lines, shown = [*result["seeds"].items(), ("median", result["median"])], titles(result["seeds"])
    rows = [[seed, *(plain_text(name, row[name]) for name in shown)] for seed, row in lines]
    rows.append(["all, with 95 % interval", *(figure_text(m, result["all"][m]) for m in shown)])
    return markdown(["seed", *shown.values()], rows)
