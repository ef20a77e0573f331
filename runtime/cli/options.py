"""Arguments that several commands take, and their values."""

from __future__ import annotations

import argparse
from pathlib import Path

from valle2.engine.bundle.precisions import AUTO
from valle2.engine.errors import Valle2Error

MODEL = "bundle folder, embedded model or owner/name[@revision] on the hub (default: demo)"


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Which model runs, and where."""
    parser.add_argument("--model", default="demo", help=MODEL)
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument(
        "--precision",
        default=AUTO,
        help="fp32; fp16, int8 or int4 once built (default: int8 on a CPU if built, else fp32)",
    )
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: all cores)")


def add_text_arguments(parser: argparse.ArgumentParser) -> None:
    """What is said."""
    parser.add_argument("text", nargs="?", help="what to say")
    parser.add_argument("--text-file", type=Path, help="read the text from a UTF-8 file")
    parser.add_argument(
        "--phones",
        action="store_true",
        help="the text is phones of the model: symbols with spaces between them, one utterance a line",
    )


def text_of(args: argparse.Namespace) -> str:
    """The text of the arguments of `add_text_arguments`.

    Raises:
        Valle2Error: both or neither were given, or the file is not UTF-8 text that can be read.
    """
    if (args.text is None) == (args.text_file is None):
        raise Valle2Error("expected a text, either as an argument or with --text-file")
    if args.text_file is None:
        return str(args.text)
    try:
        return str(args.text_file.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise Valle2Error(f"{args.text_file} is not UTF-8 text; convert it first") from None
    except OSError as error:
        raise Valle2Error(f"{args.text_file} cannot be read: {error.strerror}") from None
