"""Gives each request an id, logs it at its end, and answers errors that no handler took. Plain ASGI."""

from __future__ import annotations

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from valle2.runtime.server.http.errors import error_response
from valle2.runtime.server.request_log import (
    MAX_PATH,
    RequestLog,
    RequestRecord,
    current,
    log_failure,
    request_id,
)

HEADER = b"x-request-id"
STARTS = ("http.response.start", "websocket.accept", "websocket.http.response.start")
"""Messages that begin an answer and carry its headers."""


class RequestIds:
    """Wraps the whole app. Every answer has the header X-Request-Id.

    An error before the first byte becomes an answer. After it, the answer stays incomplete and the server
    cuts the connection. Both are logged once.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app, self.lines = app, RequestLog()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        given = next((value for name, value in scope["headers"] if name.lower() == HEADER), b"")
        record = RequestRecord(
            request_id(given.decode("latin-1")), scope.get("method", "WS"), scope["path"][:MAX_PATH]
        )
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            if message["type"] in STARTS:
                started = True
                record.status = message.get("status", 101)
                headers = [*message.get("headers", []), (HEADER, record.id.encode())]
                message = {**message, "headers": headers}
            elif message["type"] == "websocket.close" and not started:
                record.status = 403
            await send(message)

        token = current.set(record)
        try:
            await self.app(scope, receive, send_with_id)
        except ClientDisconnect:
            pass
        except Exception as error:
            log_failure(error)
            if not started and scope["type"] == "http":
                await error_response(error)(scope, receive, send_with_id)
        finally:
            current.reset(token)
            route = scope.get("route")
            if record.status == 404 and route is None:
                record.route = "unknown"
            record.route = getattr(route, "path", record.route)
            self.lines.write(record)
