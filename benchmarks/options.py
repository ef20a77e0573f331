"""The options of `valle2 bench`: one row each, with the benchmarks that take it."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TEXT = "The quick brown fox jumps over the lazy dog."
SPOKEN = ("batch", "compare", "groups", "latency", "lengths", "memory", "precision", "throughput")
SIZED = (*SPOKEN, "prefill", "steps")
"""Benchmarks that have a model of the paper's size."""
TIMED = (*SIZED, "serve")
SEVERAL = ("compare", "precision", "quality")
"""Benchmarks that take several precisions."""
PANELS = ("batch", "compare", "groups", "latency", "lengths", "memory", "steps", "throughput")
"""Benchmarks that draw."""
LOADED = ("memory", "serve", "throughput")
PLACED = ("batch", "latency", "prefill", "throughput")
"""Benchmarks of one runtime, on a device and engine of choice."""
QUALITY = ("quality",)


def listed(text: str) -> list[str]:
    """Comma-separated names."""
    return [part for part in text.split(",") if part] or ["fp32"]


def single(text: str) -> list[str]:
    """One name."""
    if len(listed(text)) > 1:
        raise argparse.ArgumentTypeError(f"expected one precision, got {text}")
    return listed(text)


def numbers(text: str) -> list[float]:
    """Comma-separated numbers above 0."""
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers such as 1,2,4, got {text}") from None
    if min(found) <= 0:
        raise argparse.ArgumentTypeError(f"expected numbers above 0, got {text}")
    return found


def wholes(text: str) -> list[int]:
    """Comma-separated whole numbers above 0."""
    found = numbers(text)
    if any(number != int(number) for number in found):
        raise argparse.ArgumentTypeError(f"expected whole numbers, got {text}")
    return [int(number) for number in found]


@dataclass(frozen=True, slots=True)
class Option:
    """kinds: the benchmarks that take it, none for all of them. how: what argparse is told."""

    flag: str
    kinds: Sequence[str]
    how: dict[str, Any]


def option(flag: str, kinds: Sequence[str], text: str = "", **how: Any) -> Option:
    return Option(flag, kinds, {"help": text} | how)


MODEL = "bundle folder or embedded model (default: demo)"
MODELS = "LABEL=PATH, given once for every model (default: demo)"
OPTIONS = (
    option("checkpoint", ("compare",), "what the model was exported from", nargs="?", type=Path),
    option("--model", ("groups", "quality"), MODELS, action="append"),
    option("--model", sorted({*TIMED} - {"groups"}), MODEL, action="append"),
    option("--size", SIZED, "full: the paper's sizes, random weights", choices=["full", "demo"]),
    option("--text", (*SPOKEN, "serve"), "what is said (default: the quick brown fox)", default=TEXT),
    option("--seconds", ("batch", "memory", "throughput"), "of speech with --size full", type=float),
    option("--lengths", ("lengths",), "seconds of speech, such as 2.5,5,10,20", type=numbers),
    option("--counts", ("batch",), "requests at once, such as 1,2,4,8", type=wholes),
    option(
        "--repeats",
        sorted({*TIMED} - {"precision"}),
        "timed repeats after a warm-up (default: 7)",
        type=int,
        default=7,
    ),
    option("--seed", TIMED, "of the random numbers (default: 0)", type=int, default=0),
    option("--threads", (), "CPU threads (default: all cores)", type=int, default=os.cpu_count() or 1),
    option("--device", ("compare", *PLACED), "cpu or cuda (default: cpu)", default="cpu"),
    option(
        "--eager-precision",
        ("compare",),
        "of the baseline (default: fp32)",
        choices=["fp32", "fp16"],
        default="fp32",
    ),
    option("--engine", PLACED, "ort, tensorrt, tensorrt-rtx ... (default: ort)", default="ort"),
    option("--slots", LOADED, "rows decoded side by side (default: 8)", type=int, default=8),
    option("--requests", LOADED, "how many in the loop (default: 40)", type=int, default=40),
    option("--rate", ("serve", "throughput"), "a second (default: 70 %% load)", type=float, default=0.0),
    option("--chaos", ("serve",), "so long beside bad clients", type=float, default=0.0, metavar="SECONDS"),
    option("--soak", ("serve",), "so many short requests, for memory", type=int, default=0, metavar="N"),
    option("--sentences", QUALITY, "a sentence a line", type=Path),
    option("--count", QUALITY, "how many of them (default: 50)", type=int, default=50),
    option("--seeds", QUALITY, "draws of each (default: 0 1 2)", type=int, nargs="+", default=[0, 1, 2]),
    option("--top-p", QUALITY, "nucleus mass (default: the model's)", type=float),
    option("--threshold", QUALITY, "repetition share, 1 is off (default: the model's)", type=float),
    option("--sweep", QUALITY, "many conditions, all axes by default", nargs="*", metavar="AXIS"),
    option("--out", QUALITY, "keeps a sweep's results", type=Path, default=Path("quality.json")),
    option("--hard", QUALITY, "category, tab, text a line (--sweep)", type=Path),
    option("--prompts", QUALITY, "WAVs with .txt: people's voices (--sweep)", type=Path),
    option("--held-out", QUALITY, "the same, of voices kept out of training (--sweep)", type=Path),
    option("--precision", SEVERAL, "such as fp32,int8 (default: fp32)", type=listed, default=["fp32"]),
    option(
        "--precision",
        sorted({*SIZED} - {*SEVERAL}),
        "fp32, or what was built (default: fp32)",
        type=single,
        default=["fp32"],
    ),
    option("--plot", (*PANELS, "quality"), "draw into a .png or .svg (extra `bench`)", type=Path),
    option("--html", PANELS, "a page with tables, plots and JSON (extra `bench`)", type=Path),
    option("--table", (), "print a Markdown table", action="store_true"),
    option(
        "--json", (), "print one line of JSON", action="store_true", default=argparse.SUPPRESS
    ),  # left to the command's own where it stands before the benchmark's name
)


def options_of(kind: str) -> Iterator[Option]:
    """What a benchmark takes."""
    return (row for row in OPTIONS if not row.kinds or kind in row.kinds)
