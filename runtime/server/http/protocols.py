"""uvicorn's protocols for HTTP/1.1 and WebSockets, with bounds on what a client may do with a connection."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from typing import Any

import h11
from h11._receivebuffer import ReceiveBuffer
from starlette.types import Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from valle2.runtime.server.http.connections import (
    NEW_SECONDS,
    RESERVE_SECONDS,
    STATE_PATHS,
    Place,
    WaitingProtocol,
    reset,
)
from valle2.runtime.server.http.errors import HttpError, error_response
from valle2.runtime.server.worker import NotReadyError

log = logging.getLogger("valle2.server")
KEPT_ALIVE, HEADERS, BODY = range(3)
"""What a connection waits for: its next request, the rest of the headers, the rest of a body."""
NOT_STRICT = re.compile(rb"(?<!\r)\n|\r(?!\n)|\n[ \t]|\x00")
"""In a head: a bare LF or CR, a folded header, a NUL. Proxies read these in different ways."""
BODY_HEADERS = {b"content-length", b"transfer-encoding"}
HEAD_BYTES = 16_384
"""Most bytes of a request's line with its headers, or of a body's trailers."""
CHUNK_HEADER = 128
"""Most bytes of a chunk's header, with its extensions."""
SMALL_CHUNK, SMALL_CHUNKS = 64, 1000
"""A body may have `SMALL_CHUNKS` chunks, and one more for each `SMALL_CHUNK` bytes."""
FRAME_BYTES = 2048
"""Most bytes that a WebSocket's connection reads in one turn of the event loop."""
FRAMES_SECONDS, FRAMES_PAUSE = 0.001, 50
"""If the frames of one turn cost more seconds than that, reading pauses for so many times as long."""
PROMOTIONS = 3
"""How often a connection of the reserve tries to leave it for a request whose body is still to come."""
CLOSE_SECONDS = 2.0
"""How long a client may take to confirm that its WebSocket is closed, and then to take what was sent."""


class StrictBuffer(ReceiveBuffer):
    """h11's buffer, which refuses what h11 tolerates in heads and in the headers of chunks."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: bytes | bytearray = b""
        self.chunks = self.content = 0

    def _extract(self, count: int) -> bytearray:
        self.taken = super()._extract(count)
        return self.taken

    def maybe_extract_at_most(self, count: int) -> bytearray | None:
        found = super().maybe_extract_at_most(count)
        self.content += len(found or b"")
        return found

    def maybe_extract_next_line(self) -> bytearray | None:
        line = super().maybe_extract_next_line()
        if len(line if line is not None else self) > CHUNK_HEADER:
            raise h11.LocalProtocolError("the header of a chunk is too long")
        if line is not None:
            self.chunks += 1
            if self.chunks > SMALL_CHUNKS + self.content // SMALL_CHUNK:
                raise h11.LocalProtocolError("the body has too many small chunks")
        return line

    def maybe_extract_lines(self) -> list[bytearray] | None:
        lines = super().maybe_extract_lines()
        if lines is not None:
            self.chunks = self.content = 0
            if len(self.taken) > HEAD_BYTES:  # h11 looks at the length of incomplete heads alone
                raise h11.LocalProtocolError("the head is too long")
            if NOT_STRICT.search(self.taken):
                raise h11.LocalProtocolError("a line of the head does not end with CR LF, or is folded")
        return lines


class HttpProtocol(WaitingProtocol, H11Protocol):
    """Serves the HTTP requests of one connection.

    It closes a connection that keeps the server waiting for `seconds`. The limit holds for the headers of a
    request, the first and each further one, and for the rest of a body that was answered early. Bodies that
    are still being read are `Guard`'s business. An answer that cannot be completed never looks whole.

    Args:
        place: the connection's place. seconds: the limit. more: uvicorn's arguments.
    """

    def __init__(self, place: Place, seconds: float, **more: Any) -> None:
        super().__init__(**more)
        self.place, self.seconds = place, min(seconds, RESERVE_SECONDS) if place.reserved else seconds
        self.deadline: asyncio.TimerHandle | None = None
        self.waits_since = self.loop.time()
        self.refused_upgrade = False
        self.served_app, self.app = self.app, self.run_app
        self.conn._receive_buffer = StrictBuffer()

    def waiting(self) -> tuple[int, float] | None:
        """See `connections.WaitingProtocol`."""
        if self.cycle is None:
            return HEADERS, self.waits_since
        if self.cycle.response_complete:
            return HEADERS if len(self.conn._receive_buffer) else KEPT_ALIVE, self.waits_since
        return (BODY, self.waits_since) if self.cycle.more_body else None

    @property
    def idle(self) -> bool:
        """Does the connection handle no request, and has no WebSocket protocol taken it over?"""
        answered = self.cycle is None or self.cycle.response_complete
        return answered and self.transport.get_protocol() is self

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.place.start(transport, self.loop)
        if self.place not in self.place.connections:  # it was closed for another one meanwhile
            transport.abort()
        self.update_deadline()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.update_deadline()

    def on_response_complete(self) -> None:
        self.place.note_answer()
        self.waits_since = self.loop.time()
        super().on_response_complete()
        if self.conn.their_state is h11.SEND_BODY:  # an answer such as 408, before the whole body came
            self.update_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        self.place.release()
        self.clear_deadline()
        super().connection_lost(exc)

    def update_deadline(self) -> None:
        """Start the clock when the wait for a request begins; stop it when its headers are complete."""
        if not self.idle:
            self.clear_deadline()
        elif self.deadline is None:
            self.deadline = self.loop.call_later(self.seconds, self.close_if_idle)

    def clear_deadline(self) -> None:
        """Stop the clock."""
        if self.deadline:
            self.deadline.cancel()
        self.deadline = None

    def close_if_idle(self) -> None:
        """Close the connection if the request has still not come."""
        self.deadline = None
        if self.idle:
            self.transport.close()

    def _should_upgrade(self) -> bool:
        """Does the request begin a WebSocket?

        A request of another form keeps its connection: the app answers it as any other. So is one above the
        bounds, with 503.
        """
        names = {name for name, _ in self.headers}
        plain = self.scope["method"] == "GET" and self.scope["http_version"] == "1.1"
        if not plain or names & BODY_HEADERS or not super()._should_upgrade():
            self.refused_upgrade = False
            return False
        self.refused_upgrade = not self.place.connections.may_upgrade(self.place)
        return not self.refused_upgrade

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        self.clear_deadline()
        self.place.websocket = True
        super().handle_websocket_upgrade(event)
        protocol = self.transport.get_protocol()
        assert isinstance(protocol, WebSocketProtocol)
        protocol.place = self.place

    async def run_app(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the app for one request, or refuse the request."""
        if scope["path"] not in STATE_PATHS and not await self.promoted():
            return await refuse("the server has too many connections", scope, receive, send)
        if self.refused_upgrade:
            return await refuse("the server has too many WebSockets", scope, receive, send)
        started = ended = False

        async def noted_send(message: Message) -> None:
            nonlocal started, ended
            if message["type"] == "http.response.start":
                started = True
                if self.place.reserved:
                    message["headers"] = [*message.get("headers", []), (b"connection", b"close")]
            ended = message["type"] == "http.response.body" and not message.get("more_body")
            await send(message)

        try:
            await self.served_app(scope, receive, noted_send)
        except (Exception, asyncio.CancelledError) as error:
            if not self.cycle.disconnected:
                log.error("a request failed: %r", error.__cause__ or error)
            if not started and not self.cycle.disconnected:
                cause = error if isinstance(error, Exception) else NotReadyError("the server is stopping")
                await error_response(cause, {"Connection": "close"})(scope, receive, send)
        if started and not ended:
            self.cut(scope["http_version"])

    async def promoted(self) -> bool:
        """Has the connection a place outside of the reserve? One whose body is to come may wait for it."""
        for _ in range(PROMOTIONS):
            whole = not self.cycle.more_body
            if self.place.connections.promote(self.place, whole):
                return True
            if whole:
                break
            await asyncio.sleep(NEW_SECONDS)
        return False

    def cut(self, version: str) -> None:
        """Close the connection in the middle of an answer. Over HTTP/1.0 only a reset shows the cut."""
        self.cycle.disconnected = True  # uvicorn then says no more
        if version == "1.0":
            reset(self.transport)
        else:
            self.transport.close()


async def refuse(reason: str, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer 503 and close the connection."""
    error = HttpError(503, f"{reason}; try again later")
    await error_response(error, {"Connection": "close"})(scope, receive, send)


class WebSocketProtocol(WaitingProtocol, WebSocketsSansIOProtocol):
    """Serves one WebSocket. The session itself ends when the server stops, after it has spoken its text."""

    place: Place | None = None

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.close_timeout = CLOSE_SECONDS

    def waiting(self) -> None:
        """A WebSocket is not closed for another connection; `Session` bounds how long it may idle."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if hasattr(transport, "max_size"):
            transport.max_size = FRAME_BYTES

    def data_received(self, data: bytes) -> None:
        began = time.thread_time()
        super().data_received(data)
        took = time.thread_time() - began
        if took > FRAMES_SECONDS and not self.transport.is_closing():
            self.transport.pause_reading()
            self.loop.call_later(FRAMES_PAUSE * took, self.read_on)

    def read_on(self) -> None:
        """Read again, unless messages wait for the session."""
        if not self.read_paused and not self.transport.is_closing():
            self.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.place:
            self.place.release()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """Let the session end by itself; uvicorn would cut it here. See `websocket.Session.drain`."""
        self.stop_keepalive()
        if self.close_sent:
            super().shutdown()

    async def run_asgi(self) -> None:
        try:
            await super().run_asgi()
        finally:
            self.loop.call_later(2 * CLOSE_SECONDS, self.transport.abort)
