"""Errors as OpenAI's API shapes them, and the HTTP status of each."""

from __future__ import annotations

import errno
import math
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi.responses import JSONResponse

from valle2.engine.bundle.untrusted import shown
from valle2.engine.errors import QueueFullError, Valle2Error
from valle2.runtime.errors import LexiconError, PromptError, SettingsError, SynthesisError, TextError
from valle2.runtime.server.limits import RETRY_AFTER_SECONDS, TooLongError
from valle2.runtime.server.store import (
    DiskFullError,
    ModelVoiceError,
    StorageError,
    StoreFullError,
    UnknownVoiceError,
    VoiceFileError,
    VoiceTakenError,
)
from valle2.runtime.server.worker import NotReadyError, SlowReaderError, TimeLimitError, WorkerError

STATUSES: tuple[tuple[type[Exception], int], ...] = (
    (QueueFullError, 429),
    (TooLongError, 413),
    (NotReadyError, 503),
    (TimeLimitError, 503),
    (WorkerError, 503),
    (SlowReaderError, 408),
    (SynthesisError, 500),
    (UnknownVoiceError, 404),
    (VoiceTakenError, 409),
    (StoreFullError, 409),
    (ModelVoiceError, 403),
    (VoiceFileError, 500),
    (DiskFullError, 507),
    (StorageError, 500),
    (TextError, 400),
    (PromptError, 400),
    (SettingsError, 400),
)
"""The status of an error before the first byte of a response; the first match counts. A client may read the
message of these errors. Of all others it reads `UNEXPECTED`, because they may name files."""
HIDDEN: tuple[tuple[type[Exception], int], ...] = (
    (MemoryError, 503),
    (RuntimeError, 503),  # of ONNX Runtime; often memory as well
)
"""The status of other errors that another try may heal. All that are left are 500."""
PARAMETERS: dict[type[Exception], str] = {
    UnknownVoiceError: "voice",
    VoiceTakenError: "name",
    LexiconError: "lexicon",
}
"""The parameter of the request that an error is about."""
TYPES = {429: "rate_limit_error", 401: "authentication_error"}
MAX_PARAM = 64
"""Characters of an unknown field's name that an error repeats as its parameter."""
UNEXPECTED = "the engine failed on this request; send it again"


class HttpError(Valle2Error):
    """An error of the HTTP layer, with its own status.

    Args:
        param: the parameter of the request that it is about. code: OpenAI's code for it.
    """

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code


def invalid_value(problem: Mapping[str, Any], fields: Sequence[str] = ()) -> HttpError:
    """The error for what pydantic refuses.

    Args:
        problem: one of pydantic's errors; the last name of its `loc` is the field's.
        fields: all names of fields, for the message about an unknown one.
    """
    names = [part for part in problem["loc"] if isinstance(part, str) and part != "body"]
    field = names[-1] if names else None
    if field is None:
        return HttpError(400, "the body cannot be read; expected the fields of this endpoint")
    if problem["type"] == "missing":
        message = f"{field} is missing; it must be given"
    elif problem["type"] == "extra_forbidden":
        message = f"unknown field {shown(field)}; expected only {', '.join(fields)}"
    else:
        expected = problem["msg"].removeprefix("Value error, ")
        expected = expected.replace("Input should be", "expected").replace("String should", "it should")
        message = f"{field} is {shown(problem['input'])}; {expected}"
    return HttpError(400, message, field[:MAX_PARAM])


def status_of(error: Exception) -> int:
    """The HTTP status of an error."""
    if isinstance(error, HttpError):
        return error.status
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return 507
    known = (*STATUSES, *HIDDEN)
    return next((status for kind, status in known if isinstance(error, kind)), 500)


def may_be_shown(error: Exception) -> bool:
    """Is the error's message written for clients?"""
    return isinstance(error, (HttpError, *(kind for kind, _ in STATUSES)))


def message_of(error: Exception) -> str:
    """The text for the client, one line. It hides errors that may name files."""
    return str(error) if may_be_shown(error) else UNEXPECTED


def error_body(error: Exception) -> dict[str, Any]:
    """An error as OpenAI's API describes it."""
    status = status_of(error)
    return {
        "message": message_of(error),
        "type": "server_error" if status >= 500 else TYPES.get(status, "invalid_request_error"),
        "param": getattr(error, "param", PARAMETERS.get(type(error))),
        "code": getattr(error, "code", None),
    }


def retry_after(error: Exception) -> int:
    """Whole seconds after which a client may send a refused request again."""
    return max(1, math.ceil(getattr(error, "retry_after", RETRY_AFTER_SECONDS)))


def error_response(error: Exception, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """An error as JSON: `{"error": {"message", "type", "param", "code"}}`. headers: further ones."""
    status = status_of(error)
    more = {"Retry-After": str(retry_after(error))} if status in (429, 503) else {}
    if status == 401:
        more["WWW-Authenticate"] = "Bearer"
    return JSONResponse({"error": error_body(error)}, status, headers={**more, **(headers or {})})
