"""Keeps the log small when many events of one kind come, as during an attack."""

from __future__ import annotations

import logging
import time

LOGGERS = ("valle2.server", "uvicorn.error", "asyncio")
BURST = 5
"""Lines of one kind that are logged at once."""
SECONDS = 10.0
"""The time after which a line of that kind is logged again, with the number of those left out."""


class RateLimit(logging.Filter):
    """Lets through `BURST` records of one message format in `SECONDS`, and counts the others."""

    def __init__(self) -> None:
        super().__init__()
        self.began: dict[str, float] = {}
        self.counts: dict[str, int] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        kind, now = str(record.msg), time.monotonic()
        left_out = 0
        if now - self.began.get(kind, -SECONDS) >= SECONDS:
            if len(self.began) > 1000:  # formats are few; messages made by others may not be
                self.began.clear()
                self.counts.clear()
            left_out = max(0, self.counts.get(kind, 0) - BURST)
            self.began[kind], self.counts[kind] = now, 0
        self.counts[kind] += 1
        if left_out:
            record.msg = f"{kind} ({left_out} more of these were left out)"
        return self.counts[kind] <= BURST


def limit_logs() -> None:
    """Limit what the server's loggers write."""
    limit = RateLimit()
    for name in LOGGERS:
        logging.getLogger(name).addFilter(limit)
