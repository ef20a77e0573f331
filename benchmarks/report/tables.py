"""Markdown tables, and the rows that several benchmarks share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def markdown(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def joined(values: Mapping[str, float]) -> str:
    """The values of a mapping in one cell."""
    return " / ".join(str(value) for value in values.values())


def open_loop_rows(loop: Mapping[str, Any]) -> list[list[object]]:
    """Rows of an open loop, in process or over HTTP."""
    return [
        [f"open loop of {loop['requests_per_s']} requests/s: audio s/s", loop["audio_s_per_s"]],
        ["first audio p50 / p95 / p99, ms", joined(loop.get("first_audio_ms", {}))],
        ["RTF p50 / p95 / p99", joined(loop.get("rtf", {}))],
        ["underruns over 100 ms", f"{loop['underruns']} of {loop['requests']}"],
    ]
