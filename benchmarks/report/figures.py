"""The figures of the README, drawn from the results in docs/data.

    python -m valle2.benchmarks.report.figures docs/figures

Each result is what `valle2 bench ... --json` printed. The files:

- `compare-demo.json`: `bench compare` of the embedded model.
- `compare-full*.json`: `bench compare --size full`, one file per machine.
- `h200.json`: results on a GPU, by command.
- `quality.json`: what `bench quality --sweep` wrote.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from valle2.benchmarks.report.plots import new_figure, save, styled
from valle2.engine.errors import Valle2Error

Result = dict[str, Any]
LONG_MS = 3000
"""Times above are shown in seconds."""
WIDTH = 8.3
"""Inches: 800 px at the resolution of an SVG."""
STAGES = {"prefill": "prefill", "ar": "AR decode", "nar": "NAR", "codec": "codec"}
STAGE_COLOURS = ("#9bb7d4", "#2f6db3", "#e08b3c", "#8c8c8c")
PRECISION_COLOURS = {
    "eager": "#8c8c8c",
    "fp32": "#2f6db3",
    "fp16": "#3d9a73",
    "int8": "#e08b3c",
    "int4": "#b5485d",
}
MODELS = {"demo": "Embedded model", "full": "Paper's size"}
COMMAND = "valle2 bench compare demo/checkpoint --model DIR --precision fp32,int8 --json"


def read_results(data: Path) -> list[Result]:
    """Every result of `bench compare` in a folder."""
    files = sorted(data.glob("*.json"))
    found = [json.loads(path.read_text(encoding="utf-8")) for path in files]
    flat = [entry for one in found for entry in (one, *one.values()) if isinstance(entry, dict)]
    return [entry for entry in flat if "eager_rtf" in entry]


def machine(result: Result) -> str:
    """Where a result was measured: the GPU, else threads and processor."""
    if result["device"] != "cpu":
        return str(result["device"])
    name = result.get("processor") or result["machine"]
    for mark in ("(R)", "(TM)", "Processor", " CPU"):
        name = name.replace(mark, "")
    return f"{' '.join(name.partition('@')[0].split())}, {result['threads']} threads"


def by_place(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Results by model and machine, those on a CPU first."""
    found: dict[str, list[Result]] = {}
    for result in sorted(results, key=lambda result: result["device"] != "cpu"):
        model = MODELS.get(result["model"], result["model"])
        found.setdefault(f"{model}\n{machine(result)}", []).append(result)
    return found


def stage_bars(results: Sequence[Result]) -> dict[str, dict[str, float]]:
    """Milliseconds of every stage and in total, by bar: eager PyTorch, then the runtime at each precision."""
    eager, ours = {}, {}
    for result in results:
        for name, side in result["precisions"].items():
            row = side["stages"]
            eager[f"eager PyTorch {result['eager_precision']}"] = {
                s: row[s]["eager_ms"] for s in (*STAGES, "total")
            }
            ours[f"valle2 {name}"] = {s: row[s]["ours_ms"] for s in (*STAGES, "total")}
    return eager | ours


def times(results: Sequence[Result], made: Any) -> None:
    """Time per stage of one request, one panel per model and machine."""
    places = by_place(results)
    bars = [stage_bars(found) for found in places.values()]
    sizes = {"height_ratios": [len(one) + 1.2 for one in bars]}
    panels = made.subplots(len(bars), 1, squeeze=False, gridspec_kw=sizes)[:, 0]
    for axes, one, (place, found) in zip(panels, bars, places.items(), strict=True):
        long = max(bar["total"] for bar in one.values()) > LONG_MS
        stacked_bars(axes, one, *((1000, "s") if long else (1, "ms")))
        model, _, where = place.partition("\n")
        axes.set_title(f"{model}: {found[0]['audio_seconds']:.1f} s of speech, {where}")
    panels[-1].set_xlabel("time of one request")
    handles, labels = panels[0].get_legend_handles_labels()
    made.legend(handles, labels, loc="outside lower center", ncols=len(STAGES))


def stacked_bars(axes: Any, bars: dict[str, dict[str, float]], unit: float, name: str) -> None:
    """Horizontal bars of stages in milliseconds, with the total and the ratio to the first bar."""
    totals = [bar["total"] for bar in bars.values()]
    left = [0.0] * len(bars)
    for (stage, label), colour in zip(STAGES.items(), STAGE_COLOURS, strict=True):
        values = [bar[stage] / unit for bar in bars.values()]
        axes.barh(list(bars), values, left=left, label=label, color=colour, height=0.68)
        left = [a + b for a, b in zip(left, values, strict=True)]
    for row, total in enumerate(totals):
        text = f"{total / unit:.{0 if unit == 1 else 1}f} {name}"
        text += f" ({totals[0] / total:.1f}× as fast)" if row else ""
        axes.text(total / unit + 0.01 * max(totals) / unit, row, text, va="center")
    axes.set_xlim(0, 1.12 * max(totals) / unit)
    axes.xaxis.set_major_formatter(f"{{x:g}} {name}")
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", alpha=0.3)


def speeds(results: Sequence[Result], made: Any) -> None:
    """Seconds of speech per second by machine and precision, one row per machine and model."""
    rows: dict[str, dict[str, float]] = {}
    for place, found in by_place(results).items():
        row = rows.setdefault(place, {})
        for result in found:
            row[f"eager {result['eager_precision']}"] = 1 / result["eager_rtf"]["own_group"]
            row |= {name: 1 / side["rtf"] for name, side in result["precisions"].items()}
    axes = made.subplots()
    seen = set()
    for height, row in enumerate(rows.values()):
        axes.plot([min(row.values()), max(row.values())], [height, height], color="#d5d9dd", lw=3, zorder=1)
        for index, (name, speed) in enumerate(sorted(row.items(), key=lambda pair: pair[1])):
            kind = name.split()[0]
            hollow = name == "eager fp16"
            colour = PRECISION_COLOURS[kind]
            label = f"eager PyTorch {name.split()[1]}" if kind == "eager" else f"valle2 {name}"
            axes.scatter(
                speed,
                height,
                s=70,
                facecolor="white" if hollow else colour,
                edgecolor=colour,
                linewidth=1.8,
                zorder=2,
                label=None if label in seen else label,
            )
            seen.add(label)
            axes.annotate(
                f"{speed:.2g}",
                (speed, height),
                (0, -10 if index % 2 == 0 else 10),
                textcoords="offset points",
                ha="center",
                va="top" if index % 2 == 0 else "bottom",
            )
    axes.axvline(1, color="#444444", lw=1, ls=":")
    axes.annotate(
        "real time", (1, 1), (4, -2), xycoords=("data", "axes fraction"), textcoords="offset points", va="top"
    )
    axes.set_xscale("log")
    axes.set_xlim(right=1.3 * max(max(row.values()) for row in rows.values()))
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel("seconds of speech per second, one request (logarithmic)")
    handles, labels = axes.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda i: [name in labels[i] for name in PRECISION_COLOURS][::-1])
    made.legend([handles[i] for i in order], [labels[i] for i in order], loc="outside lower center", ncols=3)


def quality(sweep: Result, made: Any) -> None:
    """Word error rate and speaker similarity with 95 % intervals, one row per condition."""
    rows = quality_rows(sweep)
    panels = made.subplots(1, 2, sharey=True)
    for axes, measure, title in zip(
        panels, ("wer", "similarity"), ("Word error rate, %", "Speaker similarity"), strict=True
    ):
        for place, summary in enumerate(rows.values()):
            value, low, high = (summary[measure][key] for key in ("value", "low", "high"))
            colour = "#2f6db3" if place < len(rows) - 2 else "#e08b3c"
            axes.plot([low, high], [place, place], color=colour, lw=2.5, alpha=0.45, solid_capstyle="round")
            axes.plot(value, place, "o", color=colour, ms=7)
            text = f"{value:.1f}" if measure == "wer" else f"{value:.2f}"
            axes.annotate(text, (value, place), (0, 6), textcoords="offset points", ha="center")
        axes.set_title(title)
        axes.set_xlabel("95 % interval over sentences")
        axes.grid(axis="x", alpha=0.3)
    panels[0].set_xlim(left=-1.5)
    panels[0].set_yticks(range(len(rows)), list(rows))
    panels[0].set_ylim(len(rows) - 0.5, -0.7)
    for axes in panels:
        axes.tick_params(axis="y", length=0)


def quality_rows(sweep: Result) -> dict[str, dict[str, Any]]:
    """Summaries of the base condition by precision, streamed, and with unseen voices."""
    conditions, rows = sweep["conditions"], {}
    for name in sweep["axes"]["precision"]:
        rows[f"own voices, {conditions[name]['condition']['precision']}"] = conditions[name]["summary"]
    for name in sweep["axes"]["streaming"]:
        if conditions[name]["condition"]["streamed"]:
            rows["own voices, streamed"] = conditions[name]["summary"]
    labels = {"held-out": "unseen synthetic voices", "recorded": "recorded people"}
    for name in sorted(sweep["axes"]["unseen"]):
        rows[labels[conditions[name]["condition"]["voices"]]] = conditions[name]["summary"]
    return rows


def draw_all(data: Path, figures: Path) -> list[Path]:
    """Draw every figure. Returns the files.

    Raises:
        Valle2Error: a result is missing or cannot be read, or a figure cannot be written.
    """
    try:
        results = read_results(data)
        sweep = json.loads((data / "quality.json").read_text(encoding="utf-8"))
        figures.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise Valle2Error(f"{data} cannot be read as results: {error}") from None
    if not results:
        raise Valle2Error(
            f"{data} has no comparison with eager PyTorch; write there the output of: {COMMAND}"
        )
    places = by_place(results)
    bars = sum(len(stage_bars(found)) for found in places.values())
    drawings: dict[str, tuple[float, Callable[[Any], None]]] = {
        "time": (0.6 + 0.33 * bars + 0.55 * len(places), lambda made: times(results, made)),
        "speed": (1.3 + 0.62 * len(places), lambda made: speeds(results, made)),
        "quality": (0.9 + 0.44 * len(quality_rows(sweep)), lambda made: quality(sweep, made)),
    }
    files = []
    with styled():
        for name, (height, drawing) in drawings.items():
            made = new_figure(WIDTH, height)
            drawing(made)
            files.append(save(made, figures / f"{name}.svg"))
    return files


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the figures of the README from results.")
    parser.add_argument("figures", type=Path, help="folder of the figures")
    parser.add_argument("--data", type=Path, default=Path("docs/data"), help="folder of the results")
    args = parser.parse_args()
    try:
        for path in draw_all(args.data, args.figures):
            print(path)
    except Valle2Error as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
