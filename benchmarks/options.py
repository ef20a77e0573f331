"""The options of `valle2 bench`: one row per option, with the benchmarks that take it."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from valle2.engine.errors import Valle2Error

TEXT = "The quick brown fox jumps over the lazy dog."
SPEAKING = ("batch", "compare", "groups", "latency", "lengths", "memory", "precision", "throughput")
SIZED = (*SPEAKING, "prefill", "steps")
"""Benchmarks that can run a model of the paper's size."""
TIMED = (*SIZED, "serve")
MANY_PRECISIONS = ("compare", "endings", "precision", "quality")
"""Benchmarks that take several precisions."""
PANELS = ("batch", "compare", "groups", "latency", "lengths", "memory", "steps", "throughput")
"""Benchmarks with plots and an HTML page."""
MANY_REQUESTS = ("memory", "serve", "throughput")
ON_A_DEVICE = ("batch", "latency", "prefill", "throughput")
"""Benchmarks of one model, on a chosen device and engine."""
QUALITY = ("quality",)
SWEEP_FILE = Path("quality.json")
"""Where a sweep's results go without --out."""
ENDINGS = ("endings",)


def precision_list(text: str) -> list[str]:
    """Comma-separated precisions."""
    return [part for part in text.split(",") if part] or ["fp32"]


def one_precision(text: str) -> list[str]:
    """One precision, as a list."""
    if len(precision_list(text)) > 1:
        raise argparse.ArgumentTypeError(f"expected one precision, got {text}")
    return precision_list(text)


def positive_numbers(text: str) -> list[float]:
    """Comma-separated numbers above 0."""
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers such as 1,2,4, got {text}") from None
    if min(found) <= 0:
        raise argparse.ArgumentTypeError(f"expected numbers above 0, got {text}")
    return found


def positive_integers(text: str) -> list[int]:
    """Comma-separated whole numbers above 0."""
    found = positive_numbers(text)
    if any(number != int(number) for number in found):
        raise argparse.ArgumentTypeError(f"expected whole numbers, got {text}")
    return [int(number) for number in found]


def rival_list(text: str) -> list[str]:
    """Comma-separated names of what `bench compare` may time as well."""
    found = text.split(",")
    if not set(found) <= set(RIVALS):
        raise argparse.ArgumentTypeError(f"expected of {', '.join(RIVALS)}, got {text}")
    return found


@dataclass(frozen=True, slots=True)
class Option:
    """One option. kinds: the benchmarks that take it; empty for all. how: arguments of `add_argument`."""

    flag: str
    kinds: Sequence[str]
    how: dict[str, Any]


def option(flag: str, kinds: Sequence[str], text: str = "", **how: Any) -> Option:
    return Option(flag, kinds, {"help": text} | how)


RIVALS = ("compile", "bf16")
"""Of `speed.rivals`, which needs torch."""
MODEL = "bundle folder or embedded model (default: demo)"
MODELS = "LABEL=PATH, once for every model (default: demo)"
OPTIONS = (
    option("checkpoint", ("compare",), "checkpoint that the model was exported from", nargs="?", type=Path),
    option("--model", ("groups", "quality"), MODELS, action="append"),
    option("--model", sorted({*TIMED, *ENDINGS} - {"groups"}), MODEL, action="append"),
    option(
        "--size", SIZED, "full: a model of the paper's sizes with random weights", choices=["full", "demo"]
    ),
    option("--text", (*SPEAKING, "serve"), "text to speak (default: the quick brown fox)", default=TEXT),
    option(
        "--seconds",
        ("batch", "latency", "memory", "throughput"),
        "length of the speech with --size full",
        type=float,
    ),
    option(
        "--lengths", ("lengths",), "lengths in seconds of speech, such as 2.5,5,10,20", type=positive_numbers
    ),
    option("--counts", ("batch",), "numbers of requests at once, such as 1,2,4,8", type=positive_integers),
    option(
        "--repeats",
        sorted({*TIMED, "products"} - {"precision"}),
        "timed repeats after one warm-up (default: 7)",
        type=int,
        default=7,
    ),
    option(
        "--seed",
        (*TIMED, *ENDINGS, "products"),
        "seed of the random numbers (default: 0)",
        type=int,
        default=0,
    ),
    option("--threads", (), "CPU threads (default: all cores)", type=int, default=os.cpu_count() or 1),
    option("--device", ("compare", *ON_A_DEVICE), "cpu or cuda (default: cpu)", default="cpu"),
    option(
        "--eager-precision",
        ("compare",),
        "precision of eager PyTorch (default: fp32)",
        choices=["fp32", "fp16"],
        default="fp32",
    ),
    option(
        "--against",
        ("compare",),
        "what else to time: compile (torch.compile, static cache), bf16 (default: neither)",
        type=rival_list,
        default=[],
        metavar="compile,bf16",
    ),
    option(
        "--codebooks",
        ("compare",),
        "numbers of codebooks to time as well, such as 2,3,4,6,8",
        type=positive_integers,
        default=[],
        metavar="2,4",
    ),
    option(
        "--codebooks",
        ("latency",),
        "numbers of codebooks of a stream's first chunk to time as well, such as 8,4,3,2",
        type=positive_integers,
        default=[],
        metavar="8,3",
    ),
    option(
        "--codebooks",
        ENDINGS,
        "codebooks of the speech, 0 for all: the NAR does not decide how a request ends (default: 0)",
        type=int,
        default=0,
    ),
    option("--engine", ON_A_DEVICE, "ort, tensorrt, tensorrt-rtx ... (default: ort)", default="ort"),
    option("--slots", MANY_REQUESTS, "rows of the batch (default: 8)", type=int, default=8),
    option("--requests", MANY_REQUESTS, "requests of the loop (default: 40)", type=int, default=40),
    option("--requests", ENDINGS, "requests in all (default: 10000)", type=int, default=10_000),
    option("--retries", ENDINGS, "times a failed sentence is made again (default: as `say`)", type=int),
    option(
        "--rate",
        ("serve", "throughput"),
        "requests per second (default: 70 %% of the capacity)",
        type=float,
        default=0.0,
    ),
    option(
        "--load",
        ("serve",),
        "measure open load at these shares of the capacity instead, such as 0.5,0.7,0.9",
        type=positive_numbers,
        metavar="SHARES",
    ),
    option(
        "--chaos",
        ("serve",),
        "also attack the server for so long; status 1 if it fails a criterion",
        type=float,
        default=0.0,
        metavar="SECONDS",
    ),
    option(
        "--soak", ("serve",), "also send N short requests and report memory", type=int, default=0, metavar="N"
    ),
    option("--sentences", (*QUALITY, *ENDINGS), "text file, one sentence per line", type=Path),
    option("--count", QUALITY, "sentences to speak (default: 50)", type=int, default=50),
    option(
        "--seeds", QUALITY, "seeds for each sentence (default: 0 1 2)", type=int, nargs="+", default=[0, 1, 2]
    ),
    option("--top-p", QUALITY, "nucleus probability (default: the model's)", type=float),
    option(
        "--threshold", QUALITY, "repetition threshold, 1 switches it off (default: the model's)", type=float
    ),
    option("--sweep", QUALITY, "measure many conditions (default: all axes)", nargs="*", metavar="AXIS"),
    option(
        "--out",
        QUALITY,
        f"file of a sweep's results (default: {SWEEP_FILE})",
        type=Path,
    ),
    option(
        "--out",
        ENDINGS,
        "file of the results, which is continued (default: endings.json)",
        type=Path,
        default=Path("endings.json"),
    ),
    option("--prompts", ENDINGS, "folder of further voices: recordings with .txt", type=Path),
    option("--hard", QUALITY, "text file for --sweep, per line: category, tab, text", type=Path),
    option("--prompts", QUALITY, "folder for --sweep: recorded voices, WAV with .txt", type=Path),
    option("--held-out", QUALITY, "folder for --sweep: voices kept out of training", type=Path),
    option(
        "--precision",
        MANY_PRECISIONS,
        "precisions, such as fp32,int8 (default: fp32)",
        type=precision_list,
        default=["fp32"],
    ),
    option(
        "--precision",
        sorted({*SIZED} - {*MANY_PRECISIONS}),
        "fp32, or a precision that was built (default: fp32)",
        type=one_precision,
        default=["fp32"],
    ),
    option("--plot", (*PANELS, "quality"), "write plots to a .png or .svg (extra `bench`)", type=Path),
    option("--html", PANELS, "write a page with tables, plots and JSON (extra `bench`)", type=Path),
    option("--table", (), "print a Markdown table", action="store_true"),
    option(
        "--json", (), "print one line of JSON", action="store_true", default=argparse.SUPPRESS
    ),  # SUPPRESS keeps a --json that stands before the benchmark's name
)


def options_of(kind: str) -> Iterator[Option]:
    """The options of one benchmark."""
    return (row for row in OPTIONS if not row.kinds or kind in row.kinds)


def need_positive(**values: float) -> None:
    """Refuse option values that are not above 0.

    Raises:
        Valle2Error: names the first one.
    """
    for name, value in values.items():
        if not value > 0:
            raise Valle2Error(f"--{name.replace('_', '-')} is {value}; expected more than 0")
