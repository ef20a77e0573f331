"""Every bound of the server, in one frozen value."""

from __future__ import annotations

from dataclasses import dataclass, fields

from valle2.runtime.errors import SettingsError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""Names of this machine; without a key nobody else is served."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request may ask for, and how many may ask.

    Args:
        slots: requests decoded side by side. queue: requests that may wait beside them.
        text: characters of one request. audio_seconds: speech made for one request.
        request_seconds: time for one request, waiting included. wait_seconds: of it, until the first audio.
        stall_seconds: a reader that takes nothing for so long is cut off; also for a body that does not come.
        unread_seconds: audio kept for a reader that is behind.
        body_bytes: of a request; upload_bytes: of a voice's recording with its form.
        drain_seconds: for running streams after SIGTERM.
        step_seconds: a decode step that takes longer means that the worker hangs.

    Raises:
        SettingsError: a limit is not more than 0.
    """

    slots: int = 4
    queue: int = 16
    text: int = 4096
    audio_seconds: float = 600.0
    request_seconds: float = 300.0
    wait_seconds: float = 60.0
    stall_seconds: float = 30.0
    unread_seconds: float = 300.0
    body_bytes: int = 65_536
    upload_bytes: int = 20_000_000
    drain_seconds: float = 30.0
    step_seconds: float = 60.0

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            if not 0 < value < float("inf"):
                raise SettingsError(f"{entry.name} is {value!r}; expected a finite number above 0")
