"""`valle2 bench`: times, with what they were measured on. Heavy imports happen when it runs."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from valle2.benchmarks.plots import need_matplotlib
from valle2.engine.errors import Valle2Error
from valle2.runtime.server.cli import NEEDED

HELP = "measure speed and quality"
TEXT = "The quick brown fox jumps over the lazy dog."
MODEL_HELP = "bundle folder or embedded model (default: demo); several LABEL=PATH (groups, quality --sweep)"
SIZED = ("compare", "groups", "latency", "prefill", "steps", "throughput")
PANELS = ("groups", "latency", "steps")
GROUPS = (1, 2, 4, 8)
Result = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "what", choices=sorted(KINDS), help="; ".join(f"{k}: {v[0]}" for k, v in KINDS.items())
    )
    parser.add_argument("checkpoint", type=Path, nargs="?", help="what the model was exported from (compare)")
    parser.add_argument("--model", action="append", help=MODEL_HELP)
    parser.add_argument("--size", choices=["full", "demo"], help="full: the paper's sizes, random weights")
    parser.add_argument("--text", default=TEXT, help="what is said (default: the quick brown fox)")
    parser.add_argument("--repeats", type=int, default=7, help="timed repeats after a warm-up")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--device", default="cpu", help="cpu or cuda (latency; default: cpu)")
    parser.add_argument("--engine", default="ort", help="ort, tensorrt, tensorrt-rtx ... (latency)")
    parser.add_argument("--slots", type=int, default=8, help="decoded side by side (throughput, serve)")
    parser.add_argument("--requests", type=int, default=40, help="in the open loop (throughput, serve)")
    parser.add_argument("--rate", type=float, default=0.0, help="their number a second (default: 70 %% load)")
    parser.add_argument("--chaos", type=float, default=0.0, metavar="SECONDS", help="bad clients (serve)")
    parser.add_argument("--soak", type=int, default=0, metavar="N", help="short requests, memory (serve)")
    parser.add_argument("--sentences", type=Path, help="a sentence a line (quality)")
    parser.add_argument("--count", type=int, default=50, help="how many of them (quality)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="(quality)")
    parser.add_argument("--top-p", type=float, help="(quality; default: the model's)")
    parser.add_argument("--threshold", type=float, help="(quality; default: the model's)")
    parser.add_argument(
        "--sweep", nargs="*", metavar="AXIS", help="many conditions, all axes by default (quality)"
    )
    parser.add_argument("--out", type=Path, default=Path("quality.json"), help="keeps a sweep's results")
    parser.add_argument("--hard", type=Path, help="category, tab, text a line (quality --sweep)")
    parser.add_argument("--prompts", type=Path, help="WAVs with .txt: unseen voices (quality --sweep)")
    parser.add_argument(
        "--precision", type=listed, default=["fp32"], help="such as fp32,int8 (default: fp32)"
    )
    parser.add_argument("--plot", type=Path, help="draw into a .png or .svg (extra `bench`)")
    parser.add_argument("--html", type=Path, help="a page with tables, plots and JSON (extra `bench`)")
    parser.add_argument("--table", action="store_true", help="print a Markdown table")


def listed(text: str) -> list[str]:
    """Comma-separated names."""
    return [part for part in text.split(",") if part] or ["fp32"]


def run(args: argparse.Namespace, progress: Any) -> Result:
    """Measure; returns what `--json` prints."""
    check_options(args)
    result, table = KINDS[args.what][1](args, progress)
    if args.what in PANELS:
        draw(args, result, table(result))
    if args.table and not args.json:
        print(table(result))
    return result if args.json else {"result": json.dumps(result)}


def draw(args: argparse.Namespace, result: Result, table: str) -> None:
    """The plot and the page that were asked for."""
    if not (args.plot or args.html):
        return
    from valle2.benchmarks import html, plots

    panels = import_module(f"valle2.benchmarks.{args.what}").panels(result)
    if args.plot:
        plots.draw(panels, args.plot)
    if args.html:
        html.write(args.html, f"valle2 bench {args.what}", result, table, panels)


def check_options(args: argparse.Namespace) -> None:
    """Refuse what would be ignored."""
    if args.size and (args.model or args.checkpoint is not None):
        raise Valle2Error("--size names the model; leave --model and the checkpoint out")
    if args.size == "full" and args.what not in SIZED:
        raise Valle2Error(f"--size full is for bench {', '.join(SIZED)}; bench {args.what} takes --model")
    if args.checkpoint is not None and args.what != "compare":
        raise Valle2Error(f"{args.checkpoint} is for bench compare; bench {args.what} takes --model")
    if args.what != "latency" and (args.device, args.engine) != ("cpu", "ort"):
        raise Valle2Error(f"--device and --engine are for bench latency; leave them out of bench {args.what}")
    if args.what == "serve" and args.precision != ["fp32"]:
        raise Valle2Error(f"--precision {','.join(args.precision)} is not for bench serve")
    if args.what not in ("compare", "quality") and len(args.precision) > 1:
        raise Valle2Error(f"{len(args.precision)} precisions were given; bench {args.what} takes one")
    if (args.chaos or args.soak) and args.what != "serve":
        raise Valle2Error(f"--chaos and --soak are for bench serve, not bench {args.what}")
    if args.sweep is None and args.plot and args.what not in PANELS:
        raise Valle2Error(f"--plot draws bench {', '.join(PANELS)} and a sweep of quality; add --sweep")
    if args.html and args.what not in PANELS:
        raise Valle2Error(f"--html is for bench {', '.join(PANELS)}")
    if (args.html or args.plot) and args.what in PANELS:
        need_matplotlib()
    if args.what == "quality" and args.sweep is None and len(args.precision) > 1:
        raise Valle2Error(f"{len(args.precision)} precisions were given; compare them with --sweep precision")


Table = Callable[[Result], str]
Progress = Callable[[str], None]


def compare(args: argparse.Namespace, progress: Progress) -> tuple[Result, Table]:
    """Our runtime against eager PyTorch."""
    if args.checkpoint is None and args.size != "full":
        raise Valle2Error(
            "bench compare needs the checkpoint that the model was exported from, or --size full"
        )
    if find_spec("torch") is None:
        raise Valle2Error("the baseline needs torch; install with: pip install 'valle2[export]'")
    from valle2.benchmarks import compare
    from valle2.benchmarks.fullsize import FRAMES, full_size

    precisions = tuple(args.precision)
    made = full_size(None, precisions) if args.size == "full" else None
    checkpoint = made.checkpoint if made else args.checkpoint
    model = str(made.bundle) if made else one_model(args)
    frames = FRAMES if made else 0
    found = compare.compare(
        checkpoint, model, args.text, args.repeats, args.seed, args.threads, precisions, frames
    )
    return found, compare.table


def latency(args: argparse.Namespace, progress: Progress) -> tuple[Result, Table]:
    """One request at a time."""
    from valle2.benchmarks import latency

    where = {"device": args.device, "engine": args.engine, "precision": args.precision[0]}
    model, frames = sized(args)
    found = latency.latency(model, args.text, args.repeats, args.seed, args.threads, frames=frames, **where)
    return found, latency.table


def sized(args: argparse.Namespace, **changes: int) -> tuple[str, int]:
    """The one model, and the frames that it is to speak (0: until it ends)."""
    if args.size != "full":
        return one_model(args), 0
    from valle2.benchmarks.fullsize import FRAMES, full_size

    return str(full_size(None, args.precision, **changes).bundle), FRAMES


def steps(args: argparse.Namespace, progress: Progress) -> tuple[Result, Table]:
    """The AR step alone."""
    from valle2.benchmarks import steps

    found = steps.steps(sized(args)[0], args.repeats, args.seed, args.threads, args.precision[0])
    return found, steps.table


def prefill(args: argparse.Namespace, progress: Progress) -> tuple[Result, Table]:
    """A prefill in chunks."""
    from valle2.benchmarks import prefill

    found = prefill.prefill(sized(args)[0], args.repeats, args.seed, args.threads, args.precision[0])
    return found, prefill.table


def groups(args: argparse.Namespace, progress: Progress) -> tuple[Result, Table]:
    """Models of several group sizes."""
    from valle2.benchmarks import groups
    from valle2.benchmarks.fullsize import FRAMES

    if args.size == "full":
        models = {f"G{size}": sized(args, group_size=size)[0] for size in GROUPS}
    else:
        models = labelled(args.model or ["demo"])
    frames = FRAMES if args.size == "full" else 0
    measure = args.repeats, args.seed, args.threads, args.precision[0], frames
    return groups.groups(models, args.text, *measure), groups.table


def throughput(args: argparse.Namespace, progress: Progress) -> tuple[Result, Table]:
    """Many requests at once."""
    from valle2.benchmarks import throughput

    model, frames = sized(args)
    found = throughput.throughput(model, *many(args), args.precision[0], frames)
    return found, throughput.table


def many(args: argparse.Namespace) -> tuple[str, int, int, float, int, int, int]:
    """What a benchmark of many requests is told beside its model."""
    load = args.requests, args.slots, args.rate
    return args.text, *load, args.seed, args.threads, args.repeats


def serve(args: argparse.Namespace, progress: Progress) -> tuple[Result, Table]:
    """A server under load, over real sockets."""
    if any(find_spec(name) is None for name in NEEDED):
        raise Valle2Error("bench serve starts a server; install it with: pip install 'valle2[serve]'")
    from valle2.benchmarks import serve

    found = serve.serve(one_model(args), *many(args), args.chaos, args.soak, progress)
    return found, serve.table


def quality(args: argparse.Namespace, progress: Progress) -> tuple[Result, Table]:
    """Is it understood, and whose voice is it."""
    from valle2.benchmarks import quality

    if args.sentences is None:
        raise Valle2Error("bench quality needs --sentences FILE, a sentence a line")
    if args.sweep is not None:
        return swept(args, progress)
    settings = {name: getattr(args, name) for name in ("top_p", "threshold")}
    given = {name: value for name, value in settings.items() if value is not None}
    found = quality.quality(
        one_model(args), args.sentences, args.count, args.seeds, given, args.threads, args.precision[0]
    )
    return found, quality.table


def swept(args: argparse.Namespace, progress: Progress) -> tuple[Result, Table]:
    """Many conditions, kept in a file."""
    from valle2.benchmarks import quality, sweep, tables
    from valle2.benchmarks.cells import AXES

    wrong = set(args.sweep) - set(AXES)
    if wrong:
        raise Valle2Error(f"unknown axis {', '.join(sorted(wrong))}; expected some of {', '.join(AXES)}")
    axes = args.sweep or [axis for axis in AXES if axis != "robustness" or args.hard]
    if args.plot:
        if "sampling" not in axes:
            raise Valle2Error("--plot draws the axis sampling; add it to --sweep")
        need_matplotlib()
    if "robustness" in axes and not args.hard:
        raise Valle2Error("the axis robustness needs --hard FILE of lines with a category, a tab and a text")
    inputs = sweep.Inputs(
        labelled(args.model or ["demo"]),
        quality.read_sentences(args.sentences, args.count),
        quality.read_categories(args.hard, args.count) if args.hard else [],
        args.seeds,
        axes,
        args.precision,
        args.prompts,
        args.threads,
    )
    result = sweep.sweep(inputs, args.out, progress)
    if args.plot:
        tables.plot(result, args.plot)
    return result, tables.text


def labelled(models: list[str]) -> dict[str, str]:
    """`LABEL=PATH` or a path, which is its own label."""
    pairs = [model.split("=", 1) if "=" in model else [model, model] for model in models]
    return {label: path for label, path in pairs}


def one_model(args: argparse.Namespace) -> str:
    """The model of a benchmark that takes one."""
    models = args.model or ["demo"]
    if len(models) > 1:
        raise Valle2Error(
            f"{len(models)} models were given; only bench groups and bench quality --sweep take several"
        )
    return str(models[0])


KINDS: dict[str, tuple[str, Callable[[argparse.Namespace, Progress], tuple[Result, Table]]]] = {
    "compare": ("our runtime against eager PyTorch", compare),
    "groups": ("models of several group sizes, stage by stage", groups),
    "latency": ("one request at a time, whole and streamed", latency),
    "prefill": ("a prefill in chunks of several sizes, and how long it holds up a running row", prefill),
    "quality": ("words and voice as judged by whisper and resemblyzer", quality),
    "serve": ("speech over HTTP: load, bad clients, memory", serve),
    "steps": ("the AR step against positions in the cache and rows", steps),
    "throughput": ("many requests at once, and Poisson arrivals", throughput),
}
