"""Plots, the extra `bench`: panels of lines, drawn by matplotlib without a screen."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from valle2.engine.errors import Valle2Error

COLUMNS = 3


@dataclass(frozen=True, slots=True)
class Line:
    """values: at each x a number, or (number, low, high), which shades the interval."""

    label: str
    x: Sequence[float]
    values: Sequence[Any]
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class Panel:
    """lines over x; with `stacked` names, bars instead: one a line, its values on top of each other."""

    title: str
    x: str
    lines: Sequence[Line]
    stacked: Sequence[str] = ()


def need_matplotlib() -> None:
    """Refuse before anything is measured."""
    if find_spec("matplotlib") is None:
        raise Valle2Error("plots need matplotlib; install with: pip install 'valle2[bench]'")


def figure(panels: Sequence[Panel]) -> Any:
    """A matplotlib figure of all panels."""
    need_matplotlib()
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    made = import_module("matplotlib.figure").Figure(figsize=(5 * columns, 3.8 * rows), layout="constrained")
    for index, panel in enumerate(panels):
        axes = made.add_subplot(rows, columns, index + 1)
        bars(axes, panel) if panel.stacked else lines(axes, panel)
        axes.set_title(panel.title)
        axes.legend(fontsize=7)
    return made


def lines(axes: Any, panel: Panel) -> None:
    for line in panel.lines:
        spread = bool(line.values) and isinstance(line.values[0], tuple)
        middle = [v[0] if spread else v for v in line.values]
        (drawn,) = axes.plot(line.x, middle, "--" if line.dashed else "-", marker="o", ms=3, label=line.label)
        if spread:
            low, high = [v[1] for v in line.values], [v[2] for v in line.values]
            axes.fill_between(line.x, low, high, alpha=0.15, color=drawn.get_color())
    axes.set_xlabel(panel.x)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)


def bars(axes: Any, panel: Panel) -> None:
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
    made = figure(panels)
    try:
        made.savefig(path)
    except (OSError, ValueError) as error:
        raise Valle2Error(f"{path} cannot be written: {error}; pass a .png or .svg") from None
    return path


def svg(panels: Sequence[Panel]) -> str:
    """The same as SVG text for a page."""
    held = io.StringIO()
    figure(panels).savefig(held, format="svg")
    text = held.getvalue()
    return text[text.index("<svg") :]
