"""The server's defaults, its bounds on requests, and the errors of those that exceed one.

Every default is written here once.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TypeVar

from valle2.engine.errors import QueueFullError, Valle2Error
from valle2.runtime.errors import SettingsError

HOST, PORT = "127.0.0.1", 8000
LOOPBACK = (HOST, "localhost", "::1")
"""Names of this machine. Without an API key the server listens on and answers to these only."""
VOICES_DIR = Path("~/.local/share/valle2/voices")
"""Folder of uploaded voices, before `~` is expanded."""
RETRY_AFTER_SECONDS = 1
"""The wait that the server suggests to a client whose request it refuses for now."""
HIGHEST = 1e9
"""The highest value of a bound; the system's timers take no more."""
T = TypeVar("T")


class RefusedError(QueueFullError):
    """The server cannot take the request now.

    Args:
        code: for clients. retry_after: seconds after which the request would be taken, as estimated.
    """

    def __init__(
        self, message: str, code: str = "queue_full", retry_after: float = RETRY_AFTER_SECONDS
    ) -> None:
        super().__init__(message)
        self.code, self.retry_after = code, retry_after


class TooLongError(Valle2Error):
    """The speech of this request alone exceeds a limit; no other time helps."""

    code = "text_too_long"


def expand_home(folder: Path) -> Path:
    """The folder with `~` expanded.

    Raises:
        SettingsError: this user has no home folder.
    """
    try:
        return folder.expanduser()
    except RuntimeError:
        raise SettingsError(
            f"{folder}: the home folder is unknown, because HOME is not set; name another folder for "
            "uploaded voices (--voices-dir)"
        ) from None


def bound(default: T, meaning: str) -> T:
    """A field of `Limits` that carries its meaning for messages and for `--help`."""
    return field(default=default, metadata={"meaning": meaning})


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on a request and on the number of requests.

    Raises:
        SettingsError: a bound is not a finite number above 0.
    """

    slots: int = bound(4, "requests decoded side by side")
    queue: int = bound(16, "requests that may wait beside those")
    queue_per_client: int = bound(16, "requests of one client that may wait, of the queue")
    text: int = bound(4096, "characters of one request")
    audio_seconds: float = bound(600.0, "seconds of speech made for one request")
    request_seconds: float = bound(300.0, "seconds for one request from its start; it may wait before")
    wait_seconds: float = bound(60.0, "seconds from the arrival of a request to its first audio")
    stall_seconds: float = bound(30.0, "seconds without progress before a client is disconnected")
    unread_seconds: float = bound(300.0, "seconds of audio kept for a client that reads slowly")
    connections: int = bound(256, "open connections, WebSockets included")
    connections_per_address: int = bound(64, "open connections of one client address")
    body_bytes: int = bound(65_536, "bytes of a request's body and of a WebSocket message")
    upload_bytes: int = bound(20_000_000, "bytes of an uploaded recording with its form")
    drain_seconds: float = bound(30.0, "seconds for running streams after SIGTERM")
    step_seconds: float = bound(60.0, "seconds of one engine step after which the engine counts as stuck")

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            if not 0 < value <= HIGHEST:
                raise SettingsError(
                    f"{entry.name} is {value!r}; expected a finite number above 0 and at most {HIGHEST:g} "
                    f"({entry.metadata['meaning']})"
                )
