"""uvicorn's HTTP/1.1 with a bound on the time that a request may take to come."""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


class PatientProtocol(H11Protocol):
    """Closes a connection whose headers, or the rest of an answered body, do not come in `header_seconds`."""

    header_seconds = 30.0
    deadline: asyncio.TimerHandle | None = None

    @property
    def waiting(self) -> bool:
        """Is there no request under way, and has no other protocol taken over?"""
        idle = self.cycle is None or self.cycle.response_complete
        return idle and self.transport.get_protocol() is self

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.set_deadline()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.set_deadline()

    def on_response_complete(self) -> None:
        """An answer such as 408 came before the whole body did."""
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY:
            self.set_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        self.clear_deadline()
        super().connection_lost(exc)

    def set_deadline(self) -> None:
        """Start the clock with the first byte; stop it once the headers are there."""
        if not self.waiting:
            self.clear_deadline()
        elif self.deadline is None:
            self.deadline = self.loop.call_later(self.header_seconds, self.give_up)

    def clear_deadline(self) -> None:
        if self.deadline:
            self.deadline.cancel()
        self.deadline = None

    def give_up(self) -> None:
        """What was waited for did not come."""
        self.deadline = None
        if self.waiting:
            self.transport.close()


def patient(seconds: float) -> type[H11Protocol]:
    """The protocol with this bound."""
    return type("Patient", (PatientProtocol,), {"header_seconds": seconds})
