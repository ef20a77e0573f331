"""uvicorn's HTTP/1.1 protocol with a time limit for the arrival of a request."""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


class DeadlineProtocol(H11Protocol):
    """Closes a connection that keeps the server waiting for `seconds`.

    The limit holds for the headers of a request, the first and each further one. It also holds for the rest
    of a body that was answered early. Bodies that are still being read are `Guard`'s business.
    """

    seconds: float
    deadline: asyncio.TimerHandle | None = None

    @property
    def waiting(self) -> bool:
        """Does the connection handle no request, and has no WebSocket protocol taken it over?"""
        idle = self.cycle is None or self.cycle.response_complete
        return idle and self.transport.get_protocol() is self

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.update_deadline()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.update_deadline()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY:  # an answer such as 408, before the whole body came
            self.update_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        self.clear_deadline()
        super().connection_lost(exc)

    def update_deadline(self) -> None:
        """Start the clock when the wait for a request begins; stop it when its headers are complete."""
        if not self.waiting:
            self.clear_deadline()
        elif self.deadline is None:
            self.deadline = self.loop.call_later(self.seconds, self.close_if_waiting)

    def clear_deadline(self) -> None:
        """Stop the clock."""
        if self.deadline:
            self.deadline.cancel()
        self.deadline = None

    def close_if_waiting(self) -> None:
        """Close the connection if the request has still not come."""
        self.deadline = None
        if self.waiting:
            self.transport.close()


def deadline_protocol(seconds: float) -> type[H11Protocol]:
    """The protocol class for this limit; uvicorn makes one object of it per connection."""
    return type("DeadlineProtocol", (DeadlineProtocol,), {"seconds": seconds})
