"""Keeps the log small when many events of one kind come, as during an attack, and writes it in a thread."""

from __future__ import annotations

import contextlib
import logging
import queue
import sys
import time
from logging.handlers import QueueHandler, QueueListener
from typing import TextIO

LOGGERS = ("valle2.server", "uvicorn.error", "asyncio")
BURST = 5
"""Lines of one kind that are logged at once."""
SECONDS = 10.0
"""The time after which a line of that kind is logged again, with the number of those left out."""
MAX_KINDS = 1000
WAITING_LINES = 1000
"""Lines that wait to be written; others are left out and counted."""
FLUSH_SECONDS = 1.0
POLL_SECONDS = 0.005


class Bursts:
    """Counts events of each kind, and lets `burst` of them through in `seconds`."""

    def __init__(self, burst: int, seconds: float) -> None:
        self.burst, self.seconds = burst, seconds
        self.kinds: dict[object, tuple[float, int]] = {}  # when the count began, and the count

    def note(self, kind: object) -> tuple[bool, int]:
        """Take note of an event; returns whether it is let through, and how many were not before it."""
        now, left_out = time.monotonic(), 0
        began, count = self.kinds.get(kind, (now, 0))
        if now - began >= self.seconds:
            left_out, began, count = max(0, count - self.burst), now, 0
        if len(self.kinds) > MAX_KINDS:  # kinds are few; those that others make up may not be
            self.kinds.clear()
        self.kinds[kind] = began, count + 1
        return count < self.burst, left_out


class RateLimit(logging.Filter):
    """Lets through `BURST` records of one message format in `SECONDS`, and counts the others."""

    def __init__(self) -> None:
        super().__init__()
        self.bursts = Bursts(BURST, SECONDS)

    def filter(self, record: logging.LogRecord) -> bool:
        format_ = str(record.msg)
        let_through, left_out = self.bursts.note(format_)
        if left_out:
            record.msg = f"{format_} ({left_out} more of these were left out)"
        return let_through


def limit_logs() -> None:
    """Limit what the server's loggers write."""
    limit = RateLimit()
    for name in LOGGERS:
        logging.getLogger(name).addFilter(limit)


class LineWriter(QueueListener):
    """Writes the lines of a queue in a daemon thread. No lock is held while it writes."""

    def __init__(self, lines: queue.Queue[logging.LogRecord], stream: TextIO) -> None:
        super().__init__(lines)
        self.stream = stream

    def handle(self, record: logging.LogRecord) -> None:
        """Write one line."""
        with contextlib.suppress(OSError, ValueError):  # nobody can read it
            self.stream.write(f"{record.getMessage()}\n")


class LogQueue(QueueHandler):
    """Hands each line to a thread that writes it: who stops reading the log stops nothing else."""

    def __init__(self, formatter: logging.Formatter, stream: TextIO) -> None:
        self.lines = queue.Queue[logging.LogRecord](WAITING_LINES)
        self.left_out = 0
        super().__init__(self.lines)
        self.setFormatter(formatter)
        LineWriter(self.lines, stream).start()

    def enqueue(self, record: logging.LogRecord) -> None:
        """Add a record whose message is its whole line."""
        if self.left_out:
            record.msg = f"{record.msg} ({self.left_out} lines before this one were not written in time)"
        try:
            self.lines.put_nowait(record)
            self.left_out = 0
        except queue.Full:
            self.left_out += 1

    def flush(self) -> None:
        """Wait until all lines are written, for at most `FLUSH_SECONDS`."""
        end = time.monotonic() + FLUSH_SECONDS
        while self.lines.unfinished_tasks and time.monotonic() < end:
            time.sleep(POLL_SECONDS)


def flush_logs() -> None:
    """Wait until the server's lines are written, for a moment at most."""
    for handler in logging.getLogger("valle2").handlers:
        handler.flush()


def standard_error() -> TextIO:
    """Standard error with a buffer of its own, which a blocked writer does not keep from others."""
    try:
        return open(sys.stderr.fileno(), "w", buffering=1, errors="backslashreplace", closefd=False)
    except (OSError, ValueError):  # it is no file
        return sys.stderr
