"""One line in the log for each request, at its end. It holds numbers and names, never the text or the key."""

from __future__ import annotations

import json
import logging
import re
import secrets
import time
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from valle2.engine.errors import one_line
from valle2.runtime.server.logs import Bursts, LogQueue, standard_error
from valle2.runtime.server.reply import Reply

log, failures = logging.getLogger("valle2.requests"), logging.getLogger("valle2.server")
FORMATS = ("text", "json")
LOGGERS = ("valle2", "uvicorn")
PLAIN = re.compile(r"[!#-~]*")
SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
POLLED = ("/health", "/ready", "/metrics")
"""Paths that are asked every few seconds. A success there is not logged."""
BURST, BURST_SECONDS = 20, 10.0
"""Lines of one status above 399 that are logged in so many seconds."""
MAX_PATH = 120
WRAPPED = "Caught handled exception"
"""The beginning of the framework's error for one that came after the start of an answer."""
current: ContextVar[RequestRecord | None] = ContextVar("valle2_request", default=None)


@dataclass(slots=True)
class RequestRecord:
    """What the log says about one request.

    Args:
        id: from the header X-Request-Id, or made. route: the path as the server declares it.
    """

    id: str
    method: str
    route: str
    status: int = 0
    arrived: float = field(default_factory=time.perf_counter)
    replies: list[tuple[Reply, int]] = field(default_factory=list)
    error: str = ""

    def fields(self) -> dict[str, Any]:
        """The line's fields; times in seconds."""
        found: dict[str, Any] = {"id": self.id, "method": self.method, "route": self.route}
        found |= {"status": self.status, "total": round(time.perf_counter() - self.arrived, 4)}
        replies = [reply for reply, _ in self.replies]
        if replies:
            first = next((reply for reply in replies if reply.first_at), None)
            last = replies[-1]
            found |= {
                "characters": sum(len(reply.request.text) for reply in replies),
                "audio": round(sum(reply.samples / rate for reply, rate in self.replies), 3),
                "finish_reason": last.finish_reason or ("cancelled" if last.cancelled else "error"),
            }
            if first:
                wait = first.first_at - first.arrived
                found |= {
                    "first_audio": round(first.first_at - self.arrived, 4),
                    "queue": round(max(0.0, wait - first.timings.first_audio), 4),
                }
        return found | ({"error": self.error} if self.error else {})


def request_id(given: str) -> str:
    """The client's id if it is a plain token, else a new one."""
    return given if SANE_ID.fullmatch(given) else secrets.token_hex(8)


def note_reply(reply: Reply, rate: int) -> None:
    """Count a reply to the request of the current context, if there is one. rate: Hz."""
    record = current.get()
    if record:
        record.replies.append((reply, rate))


def log_failure(error: Exception) -> None:
    """Log an error whose message no client reads, once for the request of the current context."""
    cause = error.__cause__
    if str(error).startswith(WRAPPED) and isinstance(cause, Exception):
        error = cause
    record, kind = current.get(), type(error).__name__
    if record is None or not record.error:
        failures.error("request %s failed: %s: %s", record.id if record else "-", kind, error)
    if record:
        record.error = kind


class RequestLog:
    """Writes the lines. Those of refused requests are bounded, because anybody can cause them."""

    def __init__(self) -> None:
        self.bursts = Bursts(BURST, BURST_SECONDS)

    def write(self, record: RequestRecord) -> None:
        """Write the line of a request that has ended."""
        if record.route in POLLED and record.status < 400:
            return
        left_out = 0
        if not 100 <= record.status < 400:
            let_through, left_out = self.bursts.note(record.status)
            if not let_through:
                return
        fields = record.fields() | ({"left_out": left_out} if left_out else {})
        log.info("request", extra={"fields": fields})


class LineFormatter(logging.Formatter):
    """One line for each record: text, or a JSON object. A traceback is part of its line's record."""

    def __init__(self, form: str) -> None:
        super().__init__("%(message)s")
        self.form = form

    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "fields", {})
        if self.form == "text":
            more = "".join(f" {name}={quoted(value)}" for name, value in fields.items())
            traceback = f"\n{self.formatException(record.exc_info)}" if record.exc_info else ""
            return f"{record.levelname.lower()}: {one_line(record.getMessage())}{more}{traceback}"
        found = {"time": round(record.created, 3), "level": record.levelname.lower()}
        found |= {"message": one_line(record.getMessage()), **fields}
        if record.exc_info:
            found["traceback"] = self.formatException(record.exc_info)
        return json.dumps(found)


def quoted(value: object) -> str:
    """A field's value in a line of text. A path may hold spaces and line feeds."""
    text = str(value)
    return text if PLAIN.fullmatch(text) else json.dumps(text)


class AlreadyLogged(logging.Filter):
    """Drops uvicorn's second line about an answer that the app has cut, and logged, itself."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith("ASGI callable returned without completing response")


def set_up_logging(form: str) -> None:
    """Send the server's log to standard error in one of `FORMATS`."""
    handler = LogQueue(LineFormatter(form), standard_error())
    for name in LOGGERS:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(logging.WARNING)
    log.setLevel(logging.INFO)
    logging.getLogger("uvicorn.error").addFilter(AlreadyLogged())
