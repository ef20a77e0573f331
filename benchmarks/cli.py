"""`valle2 bench`: runs one benchmark and prints its result. Heavy imports happen when a benchmark runs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from valle2.benchmarks.options import PANELS, SWEEP_FILE, options_of
from valle2.benchmarks.report.plots import need_matplotlib
from valle2.engine.errors import Valle2Error
from valle2.runtime.server.cli import WEB_LIBRARIES

HELP = "measure speed and quality"
GROUPS = (1, 2, 4, 8)
Result = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add one subcommand per benchmark, with its own options."""
    kinds = parser.add_subparsers(dest="what", required=True, metavar="BENCHMARK")
    for kind, (text, _) in KINDS.items():
        about = f"{text[0].upper()}{text[1:]}."
        command = kinds.add_parser(kind, help=text, description=about, allow_abbrev=False)
        for row in options_of(kind):
            command.add_argument(row.flag, **row.how)


def run(args: argparse.Namespace, progress: Any) -> Result:
    """Run the benchmark. Returns what `--json` prints.

    Raises:
        Valle2Error: options contradict each other, or the benchmark fails.
    """
    check_options(args)
    result, table = KINDS[args.what][1](args, progress)
    if args.what in PANELS:
        draw(args, result, table(result))
    if args.table and not args.json:
        print(table(result))
    if "chaos" in result:
        check_criteria(result, args.json)
    return result if args.json else {"result": json.dumps(result)}


def check_criteria(result: Result, as_json: bool) -> None:
    """Print the result and fail if a server under attack did not do what it promises.

    Raises:
        Valle2Error: names the criteria.
    """
    from valle2.benchmarks.serving.chaos import failed

    if wrong := failed(result["chaos"]):
        print(f"{'' if as_json else 'result: '}{json.dumps(result)}")
        raise Valle2Error(f"the server failed under attack: {'; '.join(wrong)}")


def draw(args: argparse.Namespace, result: Result, table: str) -> None:
    """Write the plot and the page, if they were asked for."""
    if not (args.plot or args.html):
        return
    from valle2.benchmarks.report import html, plots

    panels = import_module(f"valle2.benchmarks.speed.{args.what}").panels(result)
    if args.plot:
        plots.draw(panels, args.plot)
    if args.html:
        html.write(args.html, f"valle2 bench {args.what}", result, table, panels)


def check_options(args: argparse.Namespace) -> None:
    """Refuse options that contradict each other."""
    size, checkpoint, plot = (getattr(args, name, None) for name in ("size", "checkpoint", "plot"))
    if size and (args.model or checkpoint is not None):
        raise Valle2Error("--size already names the model; leave --model and the checkpoint out")
    if getattr(args, "load", None) and (args.rate or args.chaos or args.soak):
        raise Valle2Error("--load is a measurement of its own; leave --rate, --chaos and --soak out")
    if getattr(args, "seconds", None) is not None and size != "full":
        raise Valle2Error("--seconds is for --size full; other models end with <eos>")
    if args.what == "quality":
        check_quality_options(args)
    if plot or getattr(args, "html", None):
        need_matplotlib()


def check_quality_options(args: argparse.Namespace) -> None:
    """Refuse options that only a sweep has, or only one condition."""
    if args.sweep is not None:
        if args.top_p is not None or args.threshold is not None:
            raise Valle2Error("a sweep chooses its own sampling; leave --top-p and --threshold out")
        return
    if args.plot:
        raise Valle2Error("--plot draws a sweep; add --sweep")
    for name in ("hard", "prompts", "held_out", "out"):
        if getattr(args, name) is not None:
            raise Valle2Error(f"--{name.replace('_', '-')} is for a sweep; add --sweep")
    if len(args.precision) > 1:
        given = len(args.precision)
        raise Valle2Error(f"{given} precisions were given, expected one; compare them with --sweep precision")


Table = Callable[[Result], str]
Progress = Callable[[str], None]


def compare(args: argparse.Namespace, progress: Progress) -> tuple[Result, Table]:
    """The runtime against eager PyTorch."""
    if args.checkpoint is None and args.size != "full":
        raise Valle2Error(
            "bench compare needs the checkpoint that the model was exported from, or --size full"
        )
    if find_spec("torch") is None:
        raise Valle2Error("the baseline needs torch; install with: pip install 'valle2[export]'")
    from valle2.benchmarks.fullsize import FRAMES, full_size
    from valle2.benchmarks.speed import compare

    compare.check_device(args.device)  # before the full-size model is made
    precisions = tuple(args.precision)
    made = full_size(None, precisions, args.device) if args.size == "full" else None
    checkpoint = made.checkpoint if made else args.checkpoint
    model = str(made.bundle) if made else one_model(args)
    frames = FRAMES if made else 0
    where = (args.device, args.eager_precision)
    measure = (args.text, args.repeats, args.seed, args.threads, precisions, frames)
    found = compare.compare(checkpoint, model, *measure, *where, args.against, args.codebooks)
    return found, compare.table


def latency(args: argparse.Namespace, progress: Progress) -> tuple[Result, Table]:
    """One request at a time."""
    from valle2.benchmarks.speed import latency

    model, frames = model_and_frames(args)
    measure = args.repeats, args.seed, args.threads
    options = load_options(args)
    found = latency.latency(
        model, args.text, *measure, frames=frames, first_codebooks=args.codebooks, **options
    )
    return found, latency.table


def load_options(args: argparse.Namespace) -> dict[str, Any]:
    """Options of `Valle2.load` that say where and how the model runs."""
    return {"device": args.device, "engine": args.engine, "precision": args.precision[0]}


def model_and_frames(args: argparse.Namespace, **changes: int) -> tuple[str, int]:
    """The model of a benchmark, and the frames that it must speak (0: until `<eos>`)."""
    if args.size != "full":
        return one_model(args), 0
    from valle2.benchmarks.fullsize import FRAME_RATE, FRAMES, full_size

    seconds = getattr(args, "seconds", None)
    frames = FRAMES if seconds is None else round(seconds * FRAME_RATE)
    device = getattr(args, "device", "cpu")
    return str(full_size(None, args.precision, device, **changes).bundle), frames


def steps(args: argparse.Namespace, progress: Progress) -> tuple[Result, Table]:
    """The AR step alone."""
    from valle2.benchmarks.speed import steps

    found = steps.steps(model_and_frames(args)[0], args.repeats, args.seed, args.threads, args.precision[0])
    return found, steps.table


def products(args: argparse.Namespace, progress: Progress) -> tuple[Result, Table]:
    """One matrix product in several ways."""
    if find_spec("onnx") is None:
        raise Valle2Error("bench products makes graphs and needs onnx; install it with: pip install onnx")
    from valle2.benchmarks.speed import products

    return products.products(args.repeats, args.seed, args.threads), products.table


def prefill(args: argparse.Namespace, progress: Progress) -> tuple[Result, Table]:
    """A prefill in chunks."""
    from valle2.benchmarks.speed import prefill

    found = prefill.prefill(
        model_and_frames(args)[0], args.repeats, args.seed, args.threads, **load_options(args)
    )
    return found, prefill.table


def groups(args: argparse.Namespace, progress: Progress) -> tuple[Result, Table]:
    """Models of several group sizes."""
    from valle2.benchmarks.fullsize import FRAMES
    from valle2.benchmarks.speed import groups

    if args.size == "full":
        models = {f"G{size}": model_and_frames(args, group_size=size)[0] for size in GROUPS}
    else:
        models = labelled(args.model or ["demo"])
    frames = FRAMES if args.size == "full" else 0
    measure = args.repeats, args.seed, args.threads, args.precision[0], frames
    return groups.groups(models, args.text, *measure), groups.table


def throughput(args: argparse.Namespace, progress: Progress) -> tuple[Result, Table]:
    """Many requests at once."""
    from valle2.benchmarks.speed import throughput

    model, frames = model_and_frames(args)
    found = throughput.throughput(model, *load_arguments(args), frames, **load_options(args))
    return found, throughput.table


def lengths(args: argparse.Namespace, progress: Progress) -> tuple[Result, Table]:
    """Requests of several lengths."""
    from valle2.benchmarks.speed import lengths

    measure = args.repeats, args.seed, args.threads, args.precision[0], args.lengths or lengths.SECONDS
    return lengths.lengths(model_and_frames(args)[0], args.text, *measure), lengths.table


def batch(args: argparse.Namespace, progress: Progress) -> tuple[Result, Table]:
    """Several requests at once, against one at a time."""
    from valle2.benchmarks.speed import batch

    model, frames = model_and_frames(args)
    measure = args.repeats, args.seed, args.threads, frames, args.counts or batch.COUNTS
    return batch.batch(model, args.text, *measure, **load_options(args)), batch.table


def precision(args: argparse.Namespace, progress: Progress) -> tuple[Result, Table]:
    """The effect of each precision on logits and codes."""
    from valle2.benchmarks.quality import precision

    model, frames = model_and_frames(args)
    found = precision.precision(model, args.text, args.seed, args.threads, args.precision, frames)
    return found, precision.table


def load_arguments(args: argparse.Namespace) -> tuple[str, int, int, float, int, int, int]:
    """Arguments of a benchmark of many requests, without its model."""
    loop = args.requests, args.slots, args.rate
    return args.text, *loop, args.seed, args.threads, args.repeats


def memory(args: argparse.Namespace, progress: Progress) -> tuple[Result, Table]:
    """Memory and cold start of a fresh process."""
    from valle2.benchmarks.speed import memory
    from valle2.benchmarks.speed.memory_child import Plan

    model, frames = model_and_frames(args)
    size = args.precision[0], args.slots, args.threads
    plan = Plan(model, *size, args.text, args.seed, frames, requests=args.requests)
    return memory.memory(plan, args.repeats, progress), memory.table


def serve(args: argparse.Namespace, progress: Progress) -> tuple[Result, Table]:
    """A server under load, over real sockets."""
    if any(find_spec(name) is None for name in WEB_LIBRARIES):
        raise Valle2Error("bench serve starts a server; install it with: pip install 'valle2[serve]'")
    if args.load:
        from valle2.benchmarks.serving import open_load

        found = open_load.load_at_shares(
            one_model(args),
            args.text,
            args.load,
            *(args.requests, args.slots, args.seed, args.threads, args.repeats, progress),
        )
        return found, open_load.table
    from valle2.benchmarks.serving import load as serve

    found = serve.serve(one_model(args), *load_arguments(args), args.chaos, args.soak, progress)
    return found, serve.table


def quality(args: argparse.Namespace, progress: Progress) -> tuple[Result, Table]:
    """Word errors and voice under one condition."""
    from valle2.benchmarks.quality import sentences

    if args.sentences is None:
        raise Valle2Error("bench quality needs --sentences FILE with one sentence per line")
    if args.sweep is not None:
        return sweep(args, progress)
    settings = {name: getattr(args, name) for name in ("top_p", "threshold")}
    given = {name: value for name, value in settings.items() if value is not None}
    found = sentences.judge_sentences(
        one_model(args), args.sentences, args.count, args.seeds, given, args.threads, args.precision[0]
    )
    return found, sentences.table


def sweep(args: argparse.Namespace, progress: Progress) -> tuple[Result, Table]:
    """Many conditions, with the results in a file."""
    from valle2.benchmarks.quality import sweep, tables
    from valle2.benchmarks.quality.conditions import AXES
    from valle2.benchmarks.quality.sentences import read_categories, read_sentences

    wrong = set(args.sweep) - set(AXES)
    if wrong:
        raise Valle2Error(
            f"unknown axis {', '.join(sorted(wrong))}; expected one or more of {', '.join(AXES)}"
        )
    axes = args.sweep or [axis for axis in AXES if axis != "robustness" or args.hard]
    if args.plot:
        if "sampling" not in axes:
            raise Valle2Error("--plot draws the axis sampling; add it to --sweep")
        need_matplotlib()
    if "robustness" in axes and not args.hard:
        raise Valle2Error("the axis robustness needs --hard FILE, per line: category, tab, text")
    inputs = sweep.Inputs(
        labelled(args.model or ["demo"]),
        read_sentences(args.sentences, args.count),
        read_categories(args.hard, args.count) if args.hard else [],
        args.seeds,
        axes,
        args.precision,
        args.prompts,
        args.held_out,
        args.threads,
    )
    result = sweep.sweep(inputs, args.out or SWEEP_FILE, progress)
    if args.plot:
        tables.plot(result, args.plot)
    return result, tables.text


def endings(args: argparse.Namespace, progress: Progress) -> tuple[Result, Table]:
    """How many requests end in each way."""
    from valle2.benchmarks import endings
    from valle2.runtime.types import RETRIES

    if args.sentences is None:
        raise Valle2Error("bench endings needs --sentences FILE with one sentence per line")
    found = endings.endings(
        one_model(args),
        args.sentences,
        args.prompts,
        args.requests,
        RETRIES if args.retries is None else args.retries,
        args.codebooks,
        args.seed,
        args.threads,
        args.precision,
        args.out,
        progress,
    )
    return found, endings.table


def labelled(models: list[str]) -> dict[str, str]:
    """Paths by label, from `LABEL=PATH` or a path that is its own label."""
    pairs = [model.split("=", 1) if "=" in model else [model, model] for model in models]
    return {label: path for label, path in pairs}


def one_model(args: argparse.Namespace) -> str:
    """The model of a benchmark that takes a single one."""
    models = args.model or ["demo"]
    if len(models) > 1:
        raise Valle2Error(f"{len(models)} models were given; expected one --model")
    return str(models[0])


KINDS: dict[str, tuple[str, Callable[[argparse.Namespace, Progress], tuple[Result, Table]]]] = {
    "batch": ("several requests at once, against one at a time", batch),
    "compare": ("the runtime against eager PyTorch, stage by stage", compare),
    "endings": ("how many requests of random text and voice end in each way", endings),
    "groups": ("models of several group sizes, stage by stage", groups),
    "latency": ("one request at a time, whole and streamed", latency),
    "lengths": ("one request at a time, at several lengths", lengths),
    "memory": ("resident and peak memory, cold start, growth over requests", memory),
    "precision": ("the effect of each precision on logits and codes", precision),
    "prefill": ("prefills in chunks of several sizes, and how long a running row waits for them", prefill),
    "products": ("one matrix product in every way that a precision could write it", products),
    "quality": ("word errors and voice, judged by whisper and resemblyzer", quality),
    "serve": ("speech over HTTP: load, misbehaving clients, memory", serve),
    "steps": ("the AR step, against positions in the cache and rows of the batch", steps),
    "throughput": ("many requests at once, and Poisson arrivals", throughput),
}
