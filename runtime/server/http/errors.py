"""Errors as OpenAI shapes them, and which status each has."""

from __future__ import annotations

from typing import Any

from fastapi.responses import JSONResponse

from valle2.engine.errors import QueueFullError, Valle2Error
from valle2.runtime.server.worker import NotReadyError, TimeLimitError

RETRY_AFTER = 1


class HttpError(Valle2Error):
    """An error with its own status."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code


def status_of(error: Exception) -> int:
    """The status of what went wrong before the first byte."""
    if isinstance(error, HttpError):
        return error.status
    table = ((QueueFullError, 429), (NotReadyError, 503), (TimeLimitError, 503), (Valle2Error, 400))
    return next((status for kind, status in table if isinstance(error, kind)), 503)


def error_response(error: Exception) -> JSONResponse:
    """An error as JSON: `{"error": {"message", "type", "param", "code"}}`."""
    status = status_of(error)
    known = isinstance(error, Valle2Error)
    kind = {429: "rate_limit_error", 401: "authentication_error"}.get(status, "invalid_request_error")
    body: dict[str, Any] = {
        "message": str(error) if known else "the engine failed on this request; send it again",
        "type": "server_error" if status >= 500 else kind,
        "param": getattr(error, "param", None),
        "code": getattr(error, "code", None),
    }
    retry = {"Retry-After": str(RETRY_AFTER)} if status in (429, 503) else {}
    return JSONResponse({"error": body}, status, headers=retry)
