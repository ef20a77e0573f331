"""Checks every request before the app sees it: headers, API key, host, origin, the body. Plain ASGI."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from valle2.engine.bundle.untrusted import shown
from valle2.runtime.server.http.connections import client_address
from valle2.runtime.server.http.errors import HttpError, error_response
from valle2.runtime.server.keys import Client, Keys
from valle2.runtime.server.limits import LOOPBACK, Limits

PAGE_FILES = {"/": "index.html"} | {
    f"/{name}": name for name in ("page.css", "page.js", "player.js", "recorder.js")
}
"""Files of the page by path."""
PUBLIC_PATHS = (*PAGE_FILES, "/health", "/ready")
"""Paths that need no API key."""
LENGTH_DIGITS = 18
"""Digits of a Content-Length that are read."""
BODY_RATE = 4096
"""Bytes a second that a body must bring on average, after its first `stall_seconds`."""
SILENT = 0.9
"""A wait of that share of `stall_seconds` is silence, a shorter one is slowness."""
UPLOADS = 16
"""Recordings that are received at once; each may take a descriptor."""
CLIENT = "valle2.client"
"""Where an ASGI scope says which client a request counts for."""
DENIAL = "websocket.http.response"
"""The ASGI extension by which a WebSocket is refused with a status of its own."""
UPLOAD_PATH = "/v1/voices"
SINGLE_HEADERS = (b"host", b"origin", b"authorization", b"content-length", b"content-type")
"""Headers that decide what is allowed. A request has each of them once at most."""
HOST = re.compile(r"(\[[0-9a-fA-F:.]{2,45}\]|[A-Za-z0-9_.-]{1,255})(?::([0-9]{1,5}))?")
MAX_PORT = 65_535


class Guard:
    """Wraps an app and refuses requests that it should not see.

    - A request whose headers are ambiguous gets 400.
    - A request from another site's page gets 403.
    - With a key, a request without it gets 401, except for `PUBLIC_PATHS`.
    - Without a key, a request to a host name other than this machine's own gets 403. This keeps out pages of
      other sites whose names resolve to this machine (DNS rebinding).
    - A body that is too large gets 413. A body that stops coming, or comes too slowly, gets 408.

    Args:
        keys: the API keys, if there are any. limits: of the body's size and of the wait for its parts.
    """

    def __init__(self, app: ASGIApp, keys: Keys, limits: Limits) -> None:
        self.app, self.keys, self.limits = app, keys, limits
        self.uploads = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        try:
            headers = self.check_headers(scope)
            self.check_origin(headers, scope.get("http_version", ""))
            scope[CLIENT] = self.check_key(scope, headers)
            limit = self.body_limit(scope["path"], headers)
        except HttpError as error:
            if scope["type"] == "websocket" and DENIAL not in scope.get("extensions", {}):
                return await send({"type": "websocket.close", "code": 1008})
            response = error_response(error, {"Connection": "close"} if error.status == 400 else None)
            return await response(scope, receive, send)
        if scope["type"] == "websocket":
            return await self.app(scope, receive, send)
        limited = self.limited(receive, limit)
        if scope["path"] == UPLOAD_PATH and scope["method"] == "POST":
            return await self.receive_upload(scope, limited, send)
        await self.app(scope, limited, send)

    async def receive_upload(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the app receive a recording, or answer 429 if it receives too many."""
        if self.uploads >= UPLOADS:
            error = HttpError(429, f"{self.uploads} recordings are being uploaded; try again later")
            return await error_response(error, {"Connection": "close"})(scope, receive, send)
        self.uploads += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self.uploads -= 1

    def check_headers(self, scope: Scope) -> dict[bytes, str]:
        """The headers by name. A target with a scheme and a host replaces the path and the header `Host`.

        Raises:
            HttpError: 400; a header is given twice, or both of Content-Length and Transfer-Encoding.
        """
        headers = dict[bytes, str]()
        for name, value in scope["headers"]:
            name = name.lower()
            if name in SINGLE_HEADERS and name in headers:
                raise HttpError(400, f"the header {name.decode()} is given twice; send it once")
            headers[name] = value.decode("latin-1")
        if b"transfer-encoding" in headers:
            if b"content-length" in headers:
                raise HttpError(400, "Content-Length beside Transfer-Encoding; send one of them")
            if scope.get("http_version") == "1.0":
                raise HttpError(400, "Transfer-Encoding in HTTP/1.0; send Content-Length")
        if found := re.fullmatch(r"https?://([^/?#]*)(/.*)?", scope["path"], re.I | re.S):
            headers[b"host"], scope["path"] = found[1], found[2] or "/"
            scope["raw_path"] = b"/" + scope.get("raw_path", b"").partition(b"://")[2].partition(b"/")[2]
        return headers

    def check_origin(self, headers: Mapping[bytes, str], version: str) -> None:
        """Check the host that the client names, and the site of the page that it comes from.

        Args:
            version: of HTTP; 1.0 needs no host, and no browser speaks it.

        Raises:
            HttpError: 400 for a host that is none, 403 for another one.
        """
        origin = headers.get(b"origin", "")
        if b"host" not in headers and version == "1.0" and not origin:
            return
        host = headers.get(b"host", "")
        name = host_name(host)
        if origin and origin_host(origin) != host.lower():
            raise HttpError(403, f"origin {shown(origin)} is another site; use the page of this server")
        if not self.keys and name not in LOOPBACK:
            raise HttpError(
                403,
                f"host {host!r} is not this machine; expected one of {', '.join(LOOPBACK)}, or start the "
                "server with --api-key-file",
            )

    def check_key(self, scope: Scope, headers: Mapping[bytes, str]) -> Client:
        """Check the API key, if the server has one and the path needs it; returns who asks.

        Raises:
            HttpError: 401.
        """
        if not self.keys or scope["path"] in PUBLIC_PATHS:
            address = client_address(tuple(scope.get("client") or ()))
            return Client(f"address {address}", self.keys.anyone)
        header = headers.get(b"authorization", "").strip()
        scheme, _, rest = header.partition(" ")
        given = rest.strip() if scheme.lower() == "bearer" else header
        key = self.keys.find(given)
        if key is None:
            raise HttpError(
                401, "no valid API key; send the header Authorization: Bearer KEY", code="invalid_api_key"
            )
        return Client(f"key {key.name}", key)

    def body_limit(self, path: str, headers: Mapping[bytes, str]) -> int:
        """The most bytes that a body may have on this path.

        Raises:
            HttpError: 413, the header announces more.
        """
        limit = self.limits.upload_bytes if path == UPLOAD_PATH else self.limits.body_bytes
        length = headers.get(b"content-length", "0")
        if not length.isdecimal() or int(length[:LENGTH_DIGITS]) > limit:
            raise HttpError(413, f"the body has {length[:LENGTH_DIGITS]} bytes; expected at most {limit}")
        return limit

    def limited(self, receive: Receive, limit: int) -> Receive:
        """A `receive` that fails when the body grows too large, stops coming or comes too slowly.

        It raises HTTPException, because the framework turns any other error of reading a body into a 400.
        """
        received, complete = 0, False
        clock, stall = asyncio.get_running_loop().time, self.limits.stall_seconds
        began = clock()

        async def limited_receive() -> Message:
            nonlocal received, complete
            if complete:
                return await receive()  # the next message is the disconnect, which may be long in coming
            left = began + stall + received / BODY_RATE - clock()
            slow = left < SILENT * stall
            try:
                message = await asyncio.wait_for(receive(), max(0.0, left) if slow else stall)
            except asyncio.TimeoutError:  # before Python 3.11 it is not the built-in one
                reason = f"only {received} bytes" if slow else "no part"
                took = clock() - began if slow else stall
                raise HTTPException(
                    408, f"{reason} of the body came for {took:.3g} s; send the request again"
                ) from None
            received += len(message.get("body", b""))
            if received > limit:
                raise HTTPException(413, f"the body has more than {limit} bytes; send a smaller one")
            complete = not message.get("more_body")
            return message

        return limited_receive


def host_name(host: str) -> str:
    """The name in a `Host` header, in lower case, without port and brackets.

    Raises:
        HttpError: 400; it has another form.
    """
    found = HOST.fullmatch(host)
    if not found or int(found[2] or 0) > MAX_PORT:
        raise HttpError(400, f"host {shown(host)} is no host; expected a name or an address, and a port")
    return found[1].strip("[]").lower()


def origin_host(origin: str) -> str:
    """host:port of an origin in lower case, or nothing if it has none."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""
