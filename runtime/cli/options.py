"""Arguments that several commands take, and their values."""

from __future__ import annotations

import argparse
from pathlib import Path

from valle2.engine.bundle.precisions import AUTO
from valle2.engine.errors import Valle2Error
from valle2.runtime.types import Phones

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
    """The text of the arguments of `add_text_arguments`, as `Phones` if they say so.

    Raises:
        Valle2Error: text and file were given or neither, or the file is not UTF-8 text that can be read.
    """
    return Phones(given_text(args)) if args.phones else given_text(args)


def given_text(args: argparse.Namespace) -> str:
    """The text as it was given."""
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


def add_prompt_arguments(parser: argparse.ArgumentParser) -> None:
    """A recording as the voice."""
    parser.add_argument("--prompt", type=Path, help="recording of the voice")
    parser.add_argument("--prompt-text", help="the words spoken in --prompt")
    parser.add_argument("--prompt-phones", help="the phones spoken in --prompt, instead of its words")


def prompt_words(args: argparse.Namespace) -> str:
    """The transcript of the arguments of `add_prompt_arguments`: text or `Phones`.

    Raises:
        Valle2Error: both or neither were given.
    """
    if bool(args.prompt_text) == bool(args.prompt_phones):
        raise Valle2Error(
            "--prompt needs --prompt-text, the words spoken in the recording, or --prompt-phones, its phones"
        )
    return str(args.prompt_text) if args.prompt_text else Phones(args.prompt_phones)
