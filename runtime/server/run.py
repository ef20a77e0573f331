"""One server process: its socket, uvicorn around the app, and what a signal does."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from valle2.engine.errors import Valle2Error
from valle2.runtime.server.http.app import make_app
from valle2.runtime.server.http.slow_clients import patient
from valle2.runtime.server.limits import Limits
from valle2.runtime.server.store import VoiceStore
from valle2.runtime.server.worker import Worker
from valle2.runtime.tts import Valle2

BACKLOG = 128
CONNECTIONS = 256
WS_BYTES = 65_536


class Server(uvicorn.Server):
    """uvicorn that takes nothing new from the moment of the signal on."""

    worker: Worker

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.worker.drain()
        super().handle_exit(sig, frame)


def serve(
    load: Callable[[int], Valle2], limits: Limits, host: str, port: int, voices: Path, key: str
) -> dict[str, Any]:
    """Serve until SIGTERM or SIGINT; running streams then have `drain_seconds`."""
    worker = Worker(load, limits)
    config = uvicorn.Config(
        make_app(worker, VoiceStore(voices), key),
        http=patient(limits.stall_seconds),
        log_level="warning",
        lifespan="on",
        timeout_graceful_shutdown=int(limits.drain_seconds) + 1,
        limit_concurrency=CONNECTIONS,
        ws_max_size=WS_BYTES,
        server_header=False,
    )
    server = Server(config)
    server.worker = worker
    listener = listen(host, port, limits.stall_seconds)
    address = listener.getsockname()
    print(f"serving on http://{host}:{address[1]}", file=sys.stderr, flush=True)
    server.run(sockets=[listener])
    return {"served": int(worker.metrics.completed._value.get()), "restarts": worker.restarts}


def listen(host: str, port: int, stall_seconds: float) -> socket.socket:
    """A listening socket; the kernel drops peers that acknowledge or read nothing for `stall_seconds`."""
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
