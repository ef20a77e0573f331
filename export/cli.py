"""`valle2 export`: checkpoint to bundle. PyTorch is imported only when the command runs."""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from valle2.engine.bundle.schema import LOWERINGS
from valle2.engine.errors import Valle2Error
from valle2.export.options import AUTO, DEFAULT_LOWERING, FORMATS

HELP = "turn a trained checkpoint into a bundle"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "checkpoint",
        type=Path,
        help="folder, .safetensors or PyTorch file, or owner/name[/file][@revision] on the hub",
    )
    parser.add_argument("second", type=Path, nargs="?", help="the other file of a model in two files")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder of the bundle")
    parser.add_argument("--format", default=AUTO, choices=FORMATS, help="code base of the checkpoint")
    parser.add_argument("--heads", type=int, default=0, help="attention heads, if the file does not say")
    parser.add_argument("--prefix-mode", type=int, help="how lifeiteng's NAR sees the prompt: 0, 1, 2 or 4")
    codec = parser.add_mutually_exclusive_group()
    codec.add_argument(
        "--codec", type=Path, help="EnCodec 24 kHz (model.safetensors, .th) or SpeechTokenizer's folder"
    )
    codec.add_argument("--no-codec", action="store_true", help="a bundle of only AR and NAR")
    parser.add_argument("--vocoder", type=Path, help="Vocos for EnCodec's codes, replaces EnCodec's decoder")
    parser.add_argument(
        "--text",
        type=Path,
        help="symbols or tokenizer of an imported model: unique_text_tokens.k2symbols of lifeiteng, "
        "tokenizer_text.model of supervoice",
    )
    parser.add_argument(
        "--lowering",
        nargs="+",
        default=[DEFAULT_LOWERING],
        choices=LOWERINGS,
        help="how attention is written: ort for CPUs (default), portable for CUDA and TensorRT, primitive "
        "for TensorRT 10.3; several lowerings share one set of weights",
    )
    parser.add_argument(
        "--cache-length", type=int, default=0, help="cache positions, if the lowering fixes them (0: all)"
    )
    parser.add_argument(
        "--accept-difference",
        action="store_true",
        help="write the bundle even if a graph differs from PyTorch by more than rounding",
    )


def run(args: argparse.Namespace, progress: Any) -> dict[str, Any]:
    """Export a bundle. Returns the values that `--json` prints."""
    missing = [name for name in ("torch", "onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise Valle2Error(f"export needs {', '.join(missing)}; install with: pip install 'valle2[export]'")
    from valle2.engine import read_manifest
    from valle2.export.bundle import ACCEPTED, WARNING, export_checkpoint

    def report(message: str) -> None:
        """Print warnings even if progress is hidden."""
        print(message, file=sys.stderr) if message.startswith(WARNING) else progress(message)

    folder = export_checkpoint(
        args.checkpoint,
        args.out,
        second=args.second,
        form=args.format,
        heads=args.heads,
        prefix_mode=args.prefix_mode,
        codec=args.codec or not args.no_codec,
        vocoder=args.vocoder,
        text=args.text,
        lowering=args.lowering,
        cache_length=args.cache_length,
        accept_difference=args.accept_difference,
        progress=report,
    )
    manifest = read_manifest(folder, check_hashes=False)  # they were just written
    lowerings = [manifest.lowering, *manifest.others]
    found = {"bundle": str(folder), "lowering": " ".join(lowerings), "parity": manifest.parity}
    return found | {name: text for name, text in manifest.provenance.items() if name == ACCEPTED}
