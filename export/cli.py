"""`valle2 export`: checkpoint to bundle. torch is imported only when the command runs."""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from valle2.engine.errors import Valle2Error

HELP = "turn a trained checkpoint into a bundle"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("checkpoint", type=Path, help="folder or .safetensors file in valle2's format")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder of the bundle")
    parser.add_argument("--lowering", default="ort", choices=["ort", "portable", "primitive"])
    parser.add_argument(
        "--cache-length", type=int, default=0, help="cache slots where the lowering fixes them (0: all)"
    )


def run(args: argparse.Namespace, progress: Any) -> dict[str, Any]:
    """Export; returns what `--json` prints."""
    missing = [name for name in ("torch", "onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise Valle2Error(f"export needs {', '.join(missing)}; install with: pip install 'valle2[export]'")
    from valle2.engine import read_manifest
    from valle2.export.bundle import export_checkpoint

    folder = export_checkpoint(
        args.checkpoint,
        args.out,
        lowering=args.lowering,
        cache_length=args.cache_length,
        progress=progress,
    )
    manifest = read_manifest(folder)
    return {"bundle": str(folder), "lowering": manifest.lowering, "parity": manifest.parity}
