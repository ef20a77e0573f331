"""`valle2 bench`: times, with what they were measured on. Heavy imports happen when it runs."""

from __future__ import annotations

import argparse
import json
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from valle2.engine.errors import Valle2Error

HELP = "measure speed"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("what", choices=["compare"], help="compare: our runtime against eager PyTorch")
    parser.add_argument("checkpoint", type=Path, help="the checkpoint that the model was exported from")
    parser.add_argument("--model", default="demo", help="bundle folder or embedded model (default: demo)")
    parser.add_argument("--text", default=None, help="what is said (default: the quick brown fox)")
    parser.add_argument("--repeats", type=int, default=7, help="timed repeats after a warm-up")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--table", action="store_true", help="print the stages as a Markdown table")


def run(args: argparse.Namespace, progress: Any) -> dict[str, Any]:
    """Measure; returns what `--json` prints."""
    if find_spec("torch") is None:
        raise Valle2Error("the baseline needs torch; install with: pip install 'valle2[export]'")
    if args.repeats < 1 or args.threads < 1:
        raise Valle2Error("--repeats and --threads are too small; expected 1 or more")
    from valle2.benchmarks.compare import TEXT, compare, table

    result = compare(args.checkpoint, args.model, args.text or TEXT, args.repeats, args.seed, args.threads)
    if args.table and not args.json:
        print(table(result))
    return result if args.json else {"result": json.dumps(result)}
