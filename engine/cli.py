"""The command `valle2 build`. It imports TensorRT and onnx when it runs."""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from valle2.engine.bundle.profiles import Limits
from valle2.engine.errors import Valle2Error

HELP = "compile a bundle's graphs: TensorRT engines, or fp16, int8 and int4 for ONNX Runtime"
DEFAULT_PRECISIONS = {"ort": "int8", "tensorrt": "fp16", "tensorrt-rtx": "fp16"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument("bundle", type=Path, help="bundle folder, embedded model or owner/name on the hub")
    parser.add_argument("--target", required=True, choices=list(DEFAULT_PRECISIONS))
    parser.add_argument(
        "--precision",
        help="of AR and NAR; ort: int8 (default), int4, fp16, fp32; else fp16 (default), bf16, fp32, ...",
    )
    parser.add_argument(
        "--device",
        choices=["cuda"],
        default="",
        help="ort: build the graphs of CUDA alone; int8 and int4 then store the weights of a decode step",
    )
    parser.add_argument(
        "--plain",
        action="store_true",
        help="ort: leave out the graphs of fused operators; CUDA then runs the exported ones",
    )
    parser.add_argument(
        "--recipe",
        action="store_true",
        help="ort: weights are made from the bundle's when they are first used",
    )
    parser.add_argument(
        "--gpu", nargs="+", default=[], metavar="SM", help="GPUs such as sm89 (default: the one here)"
    )
    parser.add_argument("--max-batch", type=int, default=1, help="most rows that an engine takes")
    parser.add_argument(
        "--max-frames",
        type=int,
        default=0,
        help="most frames of prompt and speech together (0: the model's limit)",
    )
    parser.add_argument(
        "--workspace", type=int, default=0, metavar="MIB", help="memory a kernel may use (0: no limit)"
    )


def run(args: argparse.Namespace, progress: Any) -> dict[str, Any]:
    """Build; returns what `--json` prints.

    Raises:
        Valle2Error: onnx is not installed, an argument is out of range, or the build fails.
    """
    if find_spec("onnx") is None:
        extra = "export" if args.target == "ort" else args.target
        raise Valle2Error(f"build needs onnx; install with: pip install 'valle2[{extra}]'")
    precision = args.precision or DEFAULT_PRECISIONS[args.target]
    if args.target == "ort":
        options = {"device": args.device, "fused": not args.plain, "recipe": args.recipe}
        return build_ort_graphs(args.bundle, precision, options, progress)
    if args.device or args.plain or args.recipe:
        raise Valle2Error("--device, --plain and --recipe are for --target ort; leave them out")
    from valle2.engine.build.tensorrt import build_engine
    from valle2.engine.bundle.artifacts import build_folder
    from valle2.engine.bundle.engine_files import summary

    if args.workspace < 0:
        raise Valle2Error(f"--workspace is {args.workspace}; expected 0 or more MiB")
    found = build_engine(
        args.bundle,
        args.target,
        precision=precision,
        gpus=args.gpu,
        limits=Limits(args.max_batch, args.max_frames),
        workspace=args.workspace,
        progress=progress,
    )
    return {"folder": str(build_folder(args.bundle, args.target)), "engines": summary(found)}


def build_ort_graphs(bundle: Path, precision: str, options: dict[str, Any], progress: Any) -> dict[str, Any]:
    """Build for the target "ort"."""
    from valle2.engine.build.ort import BuildOptions, build_graphs
    from valle2.engine.bundle.contract import BUILDS_FOLDER

    made = build_graphs(bundle, precision, BuildOptions(**options), progress=progress)
    return {"folder": str(bundle / BUILDS_FOLDER), "graphs": made}
