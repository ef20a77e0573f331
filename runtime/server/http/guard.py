"""The door: API key, host and origin, size of bodies and the time they may take. Plain ASGI."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException

from valle2.runtime.errors import SettingsError
from valle2.runtime.server.http.errors import HttpError, error_response
from valle2.runtime.server.limits import LOOPBACK, Limits

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]
PAGE_FILES = {"/": "index.html"} | {
    f"/{name}": name for name in ("page.css", "page.js", "player.js", "recorder.js")
}
OPEN = (*PAGE_FILES, "/health", "/ready")
MIN_KEY = 16


def read_key(path: Path) -> str:
    """The key in a file.

    Raises:
        SettingsError: no such file, or too short a key.
    """
    try:
        key = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} cannot be read: {error}; expected a file with the API key") from None
    if len(key) < MIN_KEY or not key.isascii():
        raise SettingsError(f"{path} holds {len(key)} characters; expected an ASCII key of {MIN_KEY} or more")
    return key


class Guard:
    """Wraps an app. key: empty lets everybody in, from this machine's own names only."""

    def __init__(self, app: App, key: str, limits: Limits) -> None:
        self.app, self.key, self.limits = app, key, limits

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            self.check(scope["path"], headers)
            limit = self.body_limit(scope, headers)
        except HttpError as error:
            if scope["type"] == "websocket":
                return await send({"type": "websocket.close", "code": 1008})
            return await error_response(error)(scope, receive, send)
        if scope["type"] == "websocket":
            return await self.app(scope, receive, send)
        await self.app(scope, self.bounded(receive, limit), send)

    def check(self, path: str, headers: MutableMapping[bytes, str]) -> None:
        """Refuse strangers.

        Raises:
            HttpError: 401 without the key, 403 from another site's page.
        """
        host, origin = headers.get(b"host", ""), headers.get(b"origin", "")
        if origin and urlsplit_host(origin) != host:
            raise HttpError(403, f"origin {origin!r} is another site; use the page that this server gives")
        if not self.key and (urlsplit(f"//{host}").hostname or "") not in LOOPBACK:
            raise HttpError(403, f"host {host!r} is not this machine; a public server needs --api-key-file")
        if not self.key or path in OPEN:
            return
        given = headers.get(b"authorization", "").removeprefix("Bearer ").strip()
        if not hmac.compare_digest(given.encode("utf-8"), self.key.encode("utf-8")):
            raise HttpError(
                401, "no valid API key; send the header Authorization: Bearer KEY", code="invalid_api_key"
            )

    def body_limit(self, scope: Message, headers: MutableMapping[bytes, str]) -> int:
        """Bytes of a body that this path takes."""
        upload = scope["path"] == "/v1/voices"
        limit = self.limits.upload_bytes if upload else self.limits.body_bytes
        length = headers.get(b"content-length", "0")
        if not length.isdecimal() or int(length[:18]) > limit:
            raise HttpError(413, f"the body has {length[:18]} bytes; expected at most {limit}")
        return limit

    def bounded(self, receive: Receive, limit: int) -> Receive:
        """A `receive` that ends a body which grows too large or does not come.

        It raises what the framework does not wrap while it reads a body.
        """
        seen, whole = 0, False

        async def bounded_receive() -> Message:
            nonlocal seen, whole
            if whole:
                return await receive()  # waits for the disconnect
            try:
                message = await asyncio.wait_for(receive(), self.limits.stall_seconds)
            except TimeoutError:
                raise HTTPException(408, "the rest of the body did not come in time") from None
            seen += len(message.get("body", b""))
            if seen > limit:
                raise HTTPException(413, f"the body has more than {limit} bytes")
            whole = not message.get("more_body")
            return message

        return bounded_receive


def urlsplit_host(origin: str) -> str:
    """host:port of an origin; nothing if it is none."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""
