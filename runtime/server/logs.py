"""Keeps the log small when many events of one kind come, as during an attack."""

from __future__ import annotations

import logging
import time

LOGGERS = ("valle2.server", "uvicorn.error", "asyncio")
BURST = 5
"""Lines of one kind that are logged at once."""
SECONDS = 10.0
"""The time after which a line of that kind is logged again, with the number of those left out."""
MAX_KINDS = 1000


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
