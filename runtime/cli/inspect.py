"""`valle2 inspect`: what a bundle holds, how large it is, and what memory it needs on a device."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from valle2.engine.bundle.contract import BUILDS_FOLDER
from valle2.engine.bundle.precisions import STORED
from valle2.engine.errors import Valle2Error

if TYPE_CHECKING:
    from valle2.engine import Manifest

HELP = "show what a bundle holds"
Result = dict[str, Any]
HALF = "fp16"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("bundle", help="bundle folder, embedded model or owner/name on the hub")
    parser.add_argument("--budget", action="store_true", help="device memory and bytes a step (needs onnx)")
    parser.add_argument("--nodes", action="store_true", help="nodes that launch work on CUDA (needs onnx)")
    parser.add_argument("--batch", type=int, default=1, help="rows decoded side by side (--budget)")
    parser.add_argument("--frames", type=int, default=0, help="prompt and speech (--budget; 0: the model's)")
    parser.add_argument("--precision", help="of AR and NAR (--budget: default fp16; --nodes: as built)")
    parser.add_argument("--lowering", help="of the graphs (--budget; default: the bundle's first)")
    parser.add_argument("--device-memory", type=float, default=0.0, metavar="GB", help="how many slots fit")
    parser.add_argument("--bandwidth", type=float, default=0.0, metavar="GB/S", help="least ms of a step")


def run(args: argparse.Namespace, progress: Callable[[str], None]) -> Result:
    """What a bundle holds and how large it is; returns what `--json` prints."""
    from valle2.engine import read_manifest
    from valle2.runtime.tts import find_model
    from valle2.runtime.voices import voice_names

    folder = find_model(args.bundle)
    manifest = read_manifest(folder)
    if args.budget:
        return {"path": str(folder), **budget_of(folder, manifest, args)}
    if args.nodes:
        return {"path": str(folder), **nodes_of(folder, manifest, args.precision)}
    sizes = {name: (folder / name).stat().st_size for name in sorted(manifest.files)}
    return {
        **json.loads(manifest.to_json()),
        "path": str(folder),
        "voices": voice_names(manifest),
        "bytes": {**sizes, "total": sum(sizes.values())},
        "built": built(folder),
    }


def built(folder: Path) -> dict[str, int]:
    """Bytes of what `valle2 build` made of a bundle, by target and precision."""
    made = sorted(path for path in (folder / BUILDS_FOLDER).glob("*") if path.is_dir())
    return {at.name: sum(f.stat().st_size for f in at.rglob("*") if f.is_file()) for at in made}


def nodes_of(folder: Path, manifest: Manifest, precision: str | None) -> Result:
    """`inspect --nodes`: the graphs that `--device cuda` runs, in half precision if that is built."""
    if find_spec("onnx") is None:
        raise Valle2Error("--nodes reads the graphs and needs onnx; install it with: pip install onnx")
    from valle2.engine import BackendError, Placement
    from valle2.engine.build.cuda.nodes import count_bundle

    for chosen in [precision] if precision else [HALF, STORED]:
        placement, found = Placement("cuda", "ort", chosen).resolve(folder, manifest)
        try:
            graphs = placement.locate_graphs(folder, found)
        except BackendError:
            if precision:
                raise
            continue
        return {"precision": chosen, "lowering": found.lowering, "nodes": count_bundle(graphs)}
    raise AssertionError("a bundle has its stored graphs")


def budget_of(folder: Path, manifest: Manifest, args: argparse.Namespace) -> Result:
    """`inspect --budget`."""
    if find_spec("onnx") is None:
        raise Valle2Error("--budget reads the graphs and needs onnx; install it with: pip install onnx")
    from valle2.engine.build.budget import GB, BudgetQuery, budget
    from valle2.engine.bundle.profiles import Limits

    if args.lowering:
        manifest = manifest.in_lowering([args.lowering], "--budget")
    limits = Limits(args.batch, args.frames)
    memory, bandwidth = args.device_memory * GB, args.bandwidth * GB
    return budget(folder, manifest, BudgetQuery(limits, args.precision or HALF, memory, bandwidth))
