"""One server process: its listeners, uvicorn with the app, and the shutdown after a signal."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from valle2.engine.errors import Valle2Error
from valle2.runtime.server.http.app import make_app
from valle2.runtime.server.http.connections import RESERVE, Connections, Listener, Place
from valle2.runtime.server.http.protocols import HttpProtocol, WebSocketProtocol
from valle2.runtime.server.limits import Limits
from valle2.runtime.server.logs import limit_logs
from valle2.runtime.server.store import VoiceStore
from valle2.runtime.server.worker import Worker
from valle2.runtime.tts import Valle2

log = logging.getLogger("valle2.server")
BACKLOG = 64
"""Connections that the kernel keeps until they are accepted."""
MOST_DESCRIPTORS = 65_536
"""Descriptors that the server asks for, if the system allows so many."""
SPARE_DESCRIPTORS = 64
"""Descriptors that connections leave to files."""
STUCK_POLLS = 4
"""How often in `stall_seconds` connections are checked for clients that read nothing."""


class Server(uvicorn.Server):
    """uvicorn with listeners of our own. Its worker refuses new requests as soon as a signal comes.

    Args:
        app: the ASGI app. worker: makes the speech. port: listening socket for requests.
        health: listening socket for health checks alone, which works until the process ends; or None.
        more: of uvicorn's configuration.
    """

    def __init__(
        self,
        app: ASGIApp,
        worker: Worker,
        port: socket.socket,
        health: socket.socket | None = None,
        **more: Any,
    ) -> None:
        self.worker, self.limits = worker, worker.limits
        config = uvicorn.Config(
            app,
            http="h11",
            ws=WebSocketProtocol,
            loop="asyncio:SelectorEventLoop",
            log_level="warning",
            timeout_graceful_shutdown=int(self.limits.drain_seconds) + 1,
            ws_max_size=self.limits.body_bytes,
            ws_per_message_deflate=False,
            server_header=False,
            **more,
        )
        super().__init__(config)
        stall = self.limits.stall_seconds
        self.connections = Connections(self.limits.connections, self.limits.connections_per_address, stall)
        self.port = Listener(port, self.connections, self.make_protocol)
        health_connections = Connections(1, 1, stall)
        self.health = health and Listener(health, health_connections, self.make_protocol, state_only=True)

    def make_protocol(self, place: Place) -> HttpProtocol:
        """The protocol of a new connection."""
        return HttpProtocol(
            place,
            self.limits.stall_seconds,
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=[])  # starts the app, and no listener of asyncio's
        self.servers = [self.port]  # type: ignore[list-item]
        self.port.start()
        if self.health:
            self.health.start()
        self.checks = asyncio.create_task(self.check_connections())

    async def check_connections(self) -> None:
        """Look for clients that read nothing, for ever."""
        while True:
            await asyncio.sleep(self.limits.stall_seconds / STUCK_POLLS)
            now = asyncio.get_running_loop().time()
            self.connections.close_stuck(now)
            if self.health:
                self.health.connections.close_stuck(now)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().shutdown()
        finally:
            self.checks.cancel()
            if self.health:
                self.health.close()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.worker.drain()
        super().handle_exit(sig, frame)


def serve(
    load: Callable[[int], Valle2],
    limits: Limits,
    host: str,
    port: int,
    store: VoiceStore,
    key: str,
    health_port: int = 0,
) -> dict[str, Any]:
    """Serve until SIGTERM or SIGINT. Running streams may then take `limits.drain_seconds` more.

    Args:
        load: loads the model with the given number of rows. port: 0 takes a free one.
        store: uploaded voices. key: the API key, or an empty string.
        health_port: for health checks and metrics alone; 0 for none.

    Returns:
        The numbers of completed requests and of restarts of the worker.

    Raises:
        Valle2Error: an address cannot be used.
    """
    limits = replace(limits, connections=most_connections(limits.connections))
    listener = open_listener(host, port, limits.stall_seconds)
    health = open_listener(host, health_port, limits.stall_seconds) if health_port else None
    worker = Worker(load, limits)
    server = Server(make_app(worker, store, key), worker, listener, health, lifespan="on")
    limit_logs()
    print(f"serving on http://{host}:{listener.getsockname()[1]}", file=sys.stderr, flush=True)
    server.run()
    return {"served": int(worker.metrics.completed._value.get()), "restarts": worker.restarts}


def open_listener(host: str, port: int, stall_seconds: float) -> socket.socket:
    """A listening TCP socket. The kernel closes connections that acknowledge nothing for `stall_seconds`.

    Raises:
        Valle2Error: the address cannot be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * stall_seconds))
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise Valle2Error(f"{host}:{port} cannot be bound: {error.strerror}; choose another --port") from None
    listener.listen(BACKLOG)
    return listener


def most_connections(wanted: int) -> int:
    """Raise the limit of descriptors, and return how many connections fit below it, at most `wanted`."""
    if os.name != "posix":
        return wanted
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    most = MOST_DESCRIPTORS if hard == unlimited else min(hard, MOST_DESCRIPTORS)
    if soft != unlimited and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    else:
        most = MOST_DESCRIPTORS if soft == unlimited else soft
    fit = max(1, most - min(SPARE_DESCRIPTORS, most // 2) - 2 * RESERVE)
    if fit < wanted:
        log.warning("%d descriptors are allowed: at most %d connections instead of %d", most, fit, wanted)
    return min(fit, wanted)
