"""`valle2 bench`: times, with what they were measured on. Heavy imports happen when it runs."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from valle2.engine.errors import Valle2Error

HELP = "measure speed and quality"
TEXT = "The quick brown fox jumps over the lazy dog."
Result = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "what", choices=sorted(KINDS), help="; ".join(f"{k}: {v[0]}" for k, v in KINDS.items())
    )
    parser.add_argument("checkpoint", type=Path, nargs="?", help="what the model was exported from (compare)")
    parser.add_argument("--model", default="demo", help="bundle folder or embedded model (default: demo)")
    parser.add_argument("--size", choices=["full", "demo"], help="full: the paper's sizes, random weights")
    parser.add_argument("--precision", default="fp32", help="of ours, with commas between (compare)")
    parser.add_argument("--text", default=TEXT, help="what is said (default: the quick brown fox)")
    parser.add_argument("--repeats", type=int, default=7, help="timed repeats after a warm-up")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--slots", type=int, default=8, help="requests decoded side by side (throughput)")
    parser.add_argument("--requests", type=int, default=40, help="requests of the open loop (throughput)")
    parser.add_argument("--rate", type=float, default=0.0, help="their number a second (default: 70 %% load)")
    parser.add_argument("--sentences", type=Path, help="a sentence a line (quality)")
    parser.add_argument("--count", type=int, default=50, help="how many of them (quality)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(quality)")
    parser.add_argument("--top-p", type=float, help="(quality; default: the model's)")
    parser.add_argument("--threshold", type=float, help="(quality; default: the model's)")
    parser.add_argument("--table", action="store_true", help="print a Markdown table")


def run(args: argparse.Namespace, progress: Any) -> Result:
    """Measure; returns what `--json` prints."""
    if args.size and (args.model != "demo" or args.checkpoint is not None):
        raise Valle2Error("--size names the model; leave --model and the checkpoint out")
    if args.size == "full" and args.what != "compare":
        raise Valle2Error(f"--size full is for bench compare; bench {args.what} takes --model")
    if args.checkpoint is not None and args.what != "compare":
        raise Valle2Error(f"{args.checkpoint} is for bench compare; bench {args.what} takes --model")
    result, table = KINDS[args.what][1](args)
    if args.table and not args.json:
        print(table(result))
    return result if args.json else {"result": json.dumps(result)}


Table = Callable[[Result], str]


def compare(args: argparse.Namespace) -> tuple[Result, Table]:
    """Our runtime against eager PyTorch."""
    if args.checkpoint is None and args.size != "full":
        raise Valle2Error(
            "bench compare needs the checkpoint that the model was exported from, or --size full"
        )
    if find_spec("torch") is None:
        raise Valle2Error("the baseline needs torch; install with: pip install 'valle2[export]'")
    from valle2.benchmarks import compare
    from valle2.benchmarks.fullsize import FRAMES, full_size

    checkpoint, model, frames = args.checkpoint, args.model, 0
    if args.size == "full":
        made = full_size()
        checkpoint, model, frames = made.checkpoint, made.bundle, FRAMES
    precisions = tuple(args.precision.split(","))
    found = compare.compare(
        checkpoint, model, args.text, args.repeats, args.seed, args.threads, precisions, frames
    )
    return found, compare.table


def latency(args: argparse.Namespace) -> tuple[Result, Table]:
    """One request at a time."""
    from valle2.benchmarks import latency

    found = latency.latency(args.model, args.text, args.repeats, args.seed, args.threads)
    return found, latency.table


def throughput(args: argparse.Namespace) -> tuple[Result, Table]:
    """Many requests at once."""
    from valle2.benchmarks import throughput

    found = throughput.throughput(
        args.model,
        args.text,
        args.requests,
        args.slots,
        args.rate,
        args.seed,
        args.threads,
        args.repeats,
    )
    return found, throughput.table


def quality(args: argparse.Namespace) -> tuple[Result, Table]:
    """Is it understood, and whose voice is it."""
    from valle2.benchmarks import quality

    if args.sentences is None:
        raise Valle2Error("bench quality needs --sentences FILE, a sentence a line")
    settings = {name: getattr(args, name) for name in ("top_p", "threshold")}
    given = {name: value for name, value in settings.items() if value is not None}
    found = quality.quality(args.model, args.sentences, args.count, args.seeds, given, args.threads)
    return found, quality.table


KINDS: dict[str, tuple[str, Callable[[argparse.Namespace], tuple[Result, Table]]]] = {
    "compare": ("our runtime against eager PyTorch", compare),
    "latency": ("one request at a time, whole and streamed", latency),
    "quality": ("words and voice as judged by whisper and resemblyzer", quality),
    "throughput": ("many requests at once, and Poisson arrivals", throughput),
}
