"""Plots of results: panels of lines or stacked bars, drawn with matplotlib (extra `bench`).

Text in an SVG stays text, so files are small and can be searched. Equal data gives equal files.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from valle2.engine.errors import Valle2Error

COLUMNS = 3
PANEL_INCHES = 3.1, 2.9
COLOURS = ("#2f6db3", "#e08b3c", "#3d9a73", "#b5485d", "#7a5fa8", "#6b7680")
SHORTER = (
    (r' transform="rotate\(-0 [^"]*"', ""),
    (r"(\d\.\d\d)\d+", r"\1"),
    (r" id=\"[a-zA-Z.]*(2d|\.axis|text|tick|patch|axes|legend|Collection)_\d+\"", ""),
    (r" font-family: 'DejaVu Sans';", ""),
    (r"<svg ", "<svg font-family=\"'DejaVu Sans', Verdana, sans-serif\" "),
    (r"<g>\s*(<[^g][^>]*/>|<text[^>]*>[^<]*</text>)\s*</g>", r"\1"),
)
"""Patterns of matplotlib's SVG, and what says the same in fewer bytes."""
STYLE = {
    "axes.axisbelow": True,
    "axes.prop_cycle": None,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "figure.facecolor": "white",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "path.simplify_threshold": 1.0,
    "svg.fonttype": "none",
    "svg.hashsalt": "valle2",
}


@dataclass(frozen=True, slots=True)
class Line:
    """One line, or one bar.

    values: at each x a number, or (number, low, high) to shade an interval. colour: index of `COLOURS`, -1
    for the next one.
    """

    label: str
    x: Sequence[float]
    values: Sequence[Any]
    dashed: bool = False
    colour: int = -1


@dataclass(frozen=True, slots=True)
class Panel:
    """One plot. x: the label of the axis.

    With names in `stacked`, each line is one bar of its values on top of each other.
    """

    title: str
    x: str
    lines: Sequence[Line]
    stacked: Sequence[str] = ()


def need_matplotlib() -> None:
    """Check that matplotlib is installed, before anything is measured."""
    if find_spec("matplotlib") is None:
        raise Valle2Error("plots need matplotlib; install with: pip install 'valle2[bench]'")


def styled() -> Any:
    """A context in which matplotlib draws in this project's style."""
    need_matplotlib()
    cycle = import_module("cycler").cycler(color=COLOURS)
    return import_module("matplotlib").rc_context(STYLE | {"axes.prop_cycle": cycle})


def new_figure(width: float, height: float) -> Any:
    """An empty matplotlib figure; sizes in inches."""
    return import_module("matplotlib.figure").Figure(figsize=(width, height), layout="constrained")


def figure(panels: Sequence[Panel]) -> Any:
    """A matplotlib figure of all panels, at most three per row. Equal legends are drawn once, below all."""
    columns = 2 if len(panels) == 4 else min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    made = new_figure(PANEL_INCHES[0] * columns, PANEL_INCHES[1] * rows)
    legends = []
    for index, panel in enumerate(panels):
        axes = made.add_subplot(rows, columns, index + 1)
        bars(axes, panel) if panel.stacked else lines(axes, panel)
        axes.set_title(panel.title)
        legends.append(axes.get_legend_handles_labels())
    if len(panels) > 1 and len({tuple(labels) for _, labels in legends}) == 1:
        made.legend(*legends[0], loc="outside lower center", ncols=3)
    else:
        for axes in made.axes:
            axes.legend()
    return made


def lines(axes: Any, panel: Panel) -> None:
    """Draw lines with their intervals. The axis starts at 0, unless all values are far above it."""
    for line in panel.lines:
        spread = bool(line.values) and isinstance(line.values[0], tuple)
        middle = [v[0] if spread else v for v in line.values]
        style = {} if line.colour < 0 else {"color": COLOURS[line.colour]}
        dash = "--" if line.dashed else "-"
        (drawn,) = axes.plot(line.x, middle, dash, marker="o", ms=3, label=line.label, **style)
        if spread:
            low, high = [v[1] for v in line.values], [v[2] for v in line.values]
            axes.fill_between(line.x, low, high, alpha=0.1, color=drawn.get_color(), linewidth=0)
    axes.set_xlabel(panel.x)
    low, high = axes.get_ylim()
    if low < high / 2:
        axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)


def bars(axes: Any, panel: Panel) -> None:
    """Draw one bar per line, with its parts on top of each other."""
    labels = [line.label for line in panel.lines]
    below = [0.0] * len(labels)
    for index, name in enumerate(panel.stacked):
        heights = [line.values[index] for line in panel.lines]
        axes.bar(labels, heights, bottom=below, label=name)
        below = [a + b for a, b in zip(below, heights, strict=True)]
    axes.set_ylabel(panel.x)


def draw(panels: Sequence[Panel], path: Path) -> Path:
    """Write panels as .png or .svg.

    Raises:
        Valle2Error: matplotlib is not installed, or the file cannot be written.
    """
    with styled():
        return save(figure(panels), path)


def save(made: Any, path: Path) -> Path:
    """Write a figure as .png or .svg.

    Raises:
        Valle2Error: the file cannot be written.
    """
    try:
        if path.suffix == ".svg":
            path.write_text(svg_text(made), encoding="utf-8")
        else:
            made.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise Valle2Error(f"{path} cannot be written: {error}; pass a .png or .svg") from None
    return path


def svg(panels: Sequence[Panel]) -> str:
    """Panels as an SVG element for a page."""
    with styled():
        text = svg_text(figure(panels))
    return text[text.index("<svg") :]


def svg_text(made: Any) -> str:
    """A figure as SVG, made small: two decimals, one font, and a class for each repeated style."""
    held = io.StringIO()
    made.savefig(held, format="svg", metadata={"Date": None})
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", held.getvalue(), flags=re.DOTALL)
    for pattern, short in SHORTER:
        text = re.sub(pattern, short, text)
    counts = Counter(re.findall(r'style="([^"]*)"', text))
    repeated = [style for style, count in counts.items() if count > 2]
    for index, style in enumerate(repeated):
        text = text.replace(f'style="{style}"', f'class="c{index}"')
    rules = "".join(f".c{index}{{{style}}}" for index, style in enumerate(repeated))
    text = text.replace("</style>", f"{rules}</style>", 1)
    return "".join(f"{line.strip()}\n" for line in text.splitlines())
