"""Standard output and error that are closed, full, or cannot take a character: one line, and no traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TextIO

from valle2.engine.errors import Valle2Error, one_line


def open_missing_streams() -> bool:
    """Open the null device for each standard stream that is closed, as by `>&-`.

    Otherwise the next file that is opened would take the stream's number, and output would go into it.

    Returns:
        Whether standard output is closed.
    """
    closed = sys.stdout is None
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115
    return closed


@contextmanager
def writing_output() -> Iterator[None]:
    """Name standard output in the errors of the block, which writes to it.

    Raises:
        Valle2Error: it is full, or its encoding lacks a character.
        BrokenPipeError: its reader has gone.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise Valle2Error(f"standard output cannot be written: {error.strerror}") from None
    except UnicodeEncodeError as error:
        character = ascii(error.object[error.start])
        raise Valle2Error(
            f"the result cannot be printed: the character {character} is not in the encoding of standard "
            f"output, {error.encoding}; add --json, or set PYTHONIOENCODING=utf-8"
        ) from None


def end_output(status: int, closed: bool) -> int:
    """Write what standard output still holds. closed: it was closed from the start.

    Returns:
        The exit status: `status`, or 1 if the output cannot be written.
    """
    try:
        with writing_output():
            sys.stdout.flush()
    except (Valle2Error, BrokenPipeError) as error:
        discard(sys.stdout)
        if not status and isinstance(error, Valle2Error):
            complain(str(error))
        return status or 1
    if closed and not status:
        complain("standard output is closed; the result cannot be printed")
        return 1
    return status


def complain(message: str) -> None:
    """Print one line on standard error, if that can be written."""
    try:
        print(f"valle2: {message}", file=sys.stderr, flush=True)
    except OSError:
        discard(sys.stderr)


def warn(warnings: Iterable[str]) -> None:
    """Print warnings on standard error, one a line."""
    for warning in warnings:
        complain(f"warning: {one_line(warning)}")


def discard(stream: TextIO) -> None:
    """Send what a stream still holds to the null device, so that Python does not fail on it at its end."""
    try:
        with open(os.devnull, "w") as null:
            os.dup2(null.fileno(), stream.fileno())
    except OSError:  # a stream without a number
        pass
