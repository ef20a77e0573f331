"""One server process: the listening socket, uvicorn with the app, and the shutdown after a signal."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn

from valle2.engine.errors import Valle2Error
from valle2.runtime.server.http.app import make_app
from valle2.runtime.server.http.slow_clients import deadline_protocol
from valle2.runtime.server.limits import Limits
from valle2.runtime.server.store import VoiceStore
from valle2.runtime.server.worker import Worker
from valle2.runtime.tts import Valle2

BACKLOG = 128
"""Connections that the kernel keeps until they are accepted."""
CONNECTIONS = 256
"""Open connections, above which uvicorn answers 503."""


class Server(uvicorn.Server):
    """uvicorn whose worker refuses new requests as soon as a signal comes."""

    worker: Worker

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.worker.drain()
        super().handle_exit(sig, frame)


def serve(
    load: Callable[[int], Valle2], limits: Limits, host: str, port: int, store: VoiceStore, key: str
) -> dict[str, Any]:
    """Serve until SIGTERM or SIGINT. Running streams may then take `limits.drain_seconds` more.

    Args:
        load: loads the model with the given number of rows. port: 0 takes a free one.
        store: uploaded voices. key: the API key, or an empty string.

    Returns:
        The numbers of completed requests and of restarts of the worker.

    Raises:
        Valle2Error: the address cannot be used.
    """
    worker = Worker(load, limits)
    config = uvicorn.Config(
        make_app(worker, store, key),
        http=deadline_protocol(limits.stall_seconds),
        log_level="warning",
        lifespan="on",
        timeout_graceful_shutdown=int(limits.drain_seconds) + 1,
        limit_concurrency=CONNECTIONS,
        ws_max_size=limits.body_bytes,
        server_header=False,
    )
    server = Server(config)
    server.worker = worker
    listener = open_listener(host, port, limits.stall_seconds)
    address = listener.getsockname()
    print(f"serving on http://{host}:{address[1]}", file=sys.stderr, flush=True)
    server.run(sockets=[listener])
    return {"served": int(worker.metrics.completed._value.get()), "restarts": worker.restarts}


def open_listener(host: str, port: int, stall_seconds: float) -> socket.socket:
    """A listening TCP socket. The kernel closes connections that acknowledge nothing for `stall_seconds`.

    Raises:
        Valle2Error: the address cannot be used.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
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
