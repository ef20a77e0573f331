"""Checks every request before the app sees it: API key, host, origin, size of the body. Plain ASGI."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from valle2.runtime.errors import SettingsError
from valle2.runtime.server.http.errors import HttpError, error_response
from valle2.runtime.server.limits import LOOPBACK, Limits

PAGE_FILES = {"/": "index.html"} | {
    f"/{name}": name for name in ("page.css", "page.js", "player.js", "recorder.js")
}
"""Files of the page by path."""
PUBLIC_PATHS = (*PAGE_FILES, "/health", "/ready")
"""Paths that need no API key."""
MIN_KEY = 16
LENGTH_DIGITS = 18
"""Digits of a Content-Length that are read."""


def read_key(path: Path) -> str:
    """The API key in a file.

    Raises:
        SettingsError: the file cannot be read, or the key is too short or not ASCII.
    """
    try:
        key = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} cannot be read: {error}; expected a file with the API key") from None
    if len(key) < MIN_KEY or not key.isascii():
        raise SettingsError(
            f"{path} holds a key of {len(key)} characters; expected {MIN_KEY} or more ASCII characters: "
            "make one with openssl rand -hex 24"
        )
    return key


class Guard:
    """Wraps an app and refuses requests that it should not see.

    - A request from another site's page gets 403.
    - With a key, a request without it gets 401, except for `PUBLIC_PATHS`.
    - Without a key, a request to a host name other than this machine's own gets 403. This keeps out pages of
      other sites whose names resolve to this machine (DNS rebinding).
    - A body that is too large gets 413. A body that stops coming gets 408.

    Args:
        key: the API key, or an empty string. limits: of the body's size and of the wait for its parts.
    """

    def __init__(self, app: ASGIApp, key: str, limits: Limits) -> None:
        self.app, self.key, self.limits = app, key, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            self.check_origin(headers)
            self.check_key(scope["path"], headers)
            limit = self.body_limit(scope["path"], headers)
        except HttpError as error:
            if scope["type"] == "websocket":
                return await send({"type": "websocket.close", "code": 1008})
            return await error_response(error)(scope, receive, send)
        if scope["type"] == "websocket":
            return await self.app(scope, receive, send)
        await self.app(scope, self.limited(receive, limit), send)

    def check_origin(self, headers: Mapping[bytes, str]) -> None:
        """Check the host that the client names, and the site of the page that it comes from.

        Raises:
            HttpError: 403.
        """
        host, origin = headers.get(b"host", ""), headers.get(b"origin", "")
        if origin and origin_host(origin) != host:
            raise HttpError(403, f"origin {origin!r} is another site; use the page of this server")
        if not self.key and (urlsplit(f"//{host}").hostname or "") not in LOOPBACK:
            raise HttpError(
                403,
                f"host {host!r} is not this machine; expected one of {', '.join(LOOPBACK)}, or start the "
                "server with --api-key-file",
            )

    def check_key(self, path: str, headers: Mapping[bytes, str]) -> None:
        """Check the API key, if the server has one and the path needs it.

        Raises:
            HttpError: 401.
        """
        if not self.key or path in PUBLIC_PATHS:
            return
        header = headers.get(b"authorization", "").strip()
        scheme, _, rest = header.partition(" ")
        given = rest.strip() if scheme.lower() == "bearer" else header
        if not hmac.compare_digest(given.encode("utf-8"), self.key.encode("utf-8")):
            raise HttpError(
                401, "no valid API key; send the header Authorization: Bearer KEY", code="invalid_api_key"
            )

    def body_limit(self, path: str, headers: Mapping[bytes, str]) -> int:
        """The most bytes that a body may have on this path.

        Raises:
            HttpError: 413, the header announces more.
        """
        limit = self.limits.upload_bytes if path == "/v1/voices" else self.limits.body_bytes
        length = headers.get(b"content-length", "0")
        if not length.isdecimal() or int(length[:LENGTH_DIGITS]) > limit:
            raise HttpError(413, f"the body has {length[:LENGTH_DIGITS]} bytes; expected at most {limit}")
        return limit

    def limited(self, receive: Receive, limit: int) -> Receive:
        """A `receive` that fails when the body grows too large or stops coming.

        It raises HTTPException, because the framework turns any other error of reading a body into a 400.
        """
        received, complete = 0, False

        async def limited_receive() -> Message:
            nonlocal received, complete
            if complete:
                return await receive()  # the next message is the disconnect, which may be long in coming
            try:
                message = await asyncio.wait_for(receive(), self.limits.stall_seconds)
            except TimeoutError:
                raise HTTPException(
                    408,
                    f"no part of the body came for {self.limits.stall_seconds:g} s; send the request again",
                ) from None
            received += len(message.get("body", b""))
            if received > limit:
                raise HTTPException(413, f"the body has more than {limit} bytes; send a smaller one")
            complete = not message.get("more_body")
            return message

        return limited_receive


def origin_host(origin: str) -> str:
    """host:port of an origin, or nothing if it has none."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""
