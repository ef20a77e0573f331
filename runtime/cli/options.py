"""Arguments that several commands take, and their values."""

from __future__ import annotations

import argparse
import codecs
import sys
from pathlib import Path

from valle2.engine.bundle.precisions import AUTO
from valle2.engine.bundle.untrusted import read_bounded
from valle2.engine.errors import Valle2Error
from valle2.runtime.types import Phones

STDIN = "-"
MAX_TEXT_BYTES = 2**20
"""Bytes of a text; no more than 100,000 characters are spoken."""
PIPE_IT = "pipe the text into the command: echo Hello. | valle2 say -"
MODEL = "bundle folder, embedded model or owner/name[@revision] on the hub (default: demo)"


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Which model runs, and where."""
    parser.add_argument("--model", default="demo", help=MODEL)
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument(
        "--precision",
        default=AUTO,
        help="fp32, int8 of the demo, or what was built (default: int8 on a CPU if there is one, else fp32)",
    )
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: all cores)")


def add_text_arguments(parser: argparse.ArgumentParser) -> None:
    """What is said."""
    parser.add_argument("text", nargs="?", help="what to say; - reads it from standard input")
    parser.add_argument("--text-file", type=Path, help="read the text from a UTF-8 file; - is standard input")
    parser.add_argument(
        "--lexicon",
        type=Path,
        metavar="FILE",
        help="pronunciations: lines of a word, a tab and its phonemes in the IPA; or a JSON object",
    )
    parser.add_argument(
        "--phones",
        action="store_true",
        help="the text is phones of the model: symbols with spaces between them, one utterance a line",
    )


def text_of(args: argparse.Namespace) -> str:
    """The text of the arguments of `add_text_arguments`, as `Phones` if they say so.

    Raises:
        Valle2Error: text and file were given or neither, or it is not UTF-8 text that can be read.
    """
    return Phones(given_text(args)) if args.phones else given_text(args)


def given_text(args: argparse.Namespace) -> str:
    """The text as it was given."""
    if (args.text is None) == (args.text_file is None):
        raise Valle2Error("expected a text: as an argument, with --text-file, or - for standard input")
    if STDIN in (args.text, str(args.text_file)):
        return decoded_text(standard_input(), "standard input")
    if args.text_file is None:
        return str(args.text)
    try:
        return decoded_text(read_bounded(args.text_file, MAX_TEXT_BYTES), str(args.text_file))
    except OSError as error:
        raise Valle2Error(f"{args.text_file} cannot be read: {error.strerror}") from None


def standard_input() -> bytes:
    """All of standard input.

    Raises:
        Valle2Error: it is empty, closed, a terminal, too long, or cannot be read.
    """
    try:
        if sys.stdin.isatty():
            raise Valle2Error(f"standard input is a terminal; {PIPE_IT}")
        data = sys.stdin.buffer.read(MAX_TEXT_BYTES + 1)
    except OSError as error:
        raise Valle2Error(f"standard input cannot be read: {error.strerror}") from None
    if not data:
        raise Valle2Error(f"standard input is empty or closed; {PIPE_IT}")
    if len(data) > MAX_TEXT_BYTES:
        raise Valle2Error(f"standard input has more than {MAX_TEXT_BYTES} bytes; split the text")
    return data


def decoded_text(data: bytes, name: str) -> str:
    """UTF-8 text with `\n` at its line ends. A byte order mark is left out.

    Args:
        name: of what was read, for messages.

    Raises:
        Valle2Error: it is text of another encoding, or no text.
    """
    problem = ""
    if data.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        problem = "UTF-32 text"
    elif data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        problem = "UTF-16 text"
    elif b"\0" in data:
        problem = binary_kind(data)
    if not problem:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            problem = f"not UTF-8 text (byte {error.start + 1} is 0x{data[error.start]:02x})"
    if problem:
        source = problem.split()[0] if problem.startswith("UTF-") else "ENCODING"
        raise Valle2Error(
            f"{name} is {problem}; expected UTF-8: convert it first, iconv -f {source} -t UTF-8"
        )
    return text.replace("\r\n", "\n").replace("\r", "\n")


def binary_kind(data: bytes) -> str:
    """What data with zero bytes is: UTF-16 or UTF-32 without a mark, or no text."""
    sample = data[:4096]
    for encoding in ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be"):
        width = 4 if "32" in encoding else 2
        try:
            text = sample[: len(sample) // width * width].decode(encoding)
        except UnicodeDecodeError:
            continue
        likely = 4 * sum(c.isascii() for c in text) >= len(text) > 0
        if likely and len(data) % width == 0 and all(c.isprintable() or c in "\r\n\t\f" for c in text):
            return f"{encoding[:6].upper()}{encoding[6:].upper().replace('-', '')} text"
    return "binary data and no text"


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
