"""A result as one self-contained HTML file: tables, plots as SVG, and the JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from valle2.benchmarks.report.plots import Panel, svg
from valle2.engine.errors import Valle2Error

STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem}"
    "table{border-collapse:collapse;margin:1rem 0}td,th{padding:.2rem .8rem;border-bottom:1px solid #8884;"
    "text-align:right}td:first-child,th:first-child{text-align:left}svg{max-width:100%;height:auto;background:#fff}"
    "pre{overflow:auto;background:#8882;padding:1rem}"
)


def write(path: Path, title: str, result: dict[str, Any], tables: str, panels: Sequence[Panel]) -> None:
    """Write a page with Markdown tables, plots and the result.

    Raises:
        Valle2Error: the file cannot be written, or matplotlib is not installed.
    """
    data = escape(json.dumps(result, indent=1))
    page = (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        f"<title>{escape(title)}</title><style>{STYLE}</style><h1>{escape(title)}</h1>"
        f"{html_tables(tables)}{svg(panels)}<h2>JSON</h2><pre>{data}</pre></html>\n"
    )
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise Valle2Error(f"{path} cannot be written: {error.strerror}; pass another path") from None


def html_tables(text: str) -> str:
    """Markdown tables, separated by blank lines, as HTML."""
    return "".join(html_table(block.splitlines()) for block in text.split("\n\n"))


def html_table(lines: Sequence[str]) -> str:
    """One Markdown table as HTML. Its second line separates head and body."""
    rows = [line.strip("|").split("|") for line in (lines[0], *lines[2:])]
    kinds = ["th"] + ["td"] * (len(rows) - 1)
    cells = (
        "".join(f"<{k}>{escape(c.strip())}</{k}>" for c in row) for k, row in zip(kinds, rows, strict=True)
    )
    return "<table>" + "".join(f"<tr>{row}</tr>" for row in cells) + "</table>"
