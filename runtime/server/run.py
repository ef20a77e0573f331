"""One server process: the listening socket, uvicorn with the app, and the shutdown after a signal.

The process ends by itself if its model cannot be loaded, or if the engine fails for good. A supervisor then
starts it again (docs/serving.md).
"""

from __future__ import annotations

import faulthandler
import os
import socket
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn

from valle2.engine.bundle.untrusted import shown
from valle2.engine.errors import Valle2Error
from valle2.runtime.cli.streams import complain
from valle2.runtime.errors import SettingsError
from valle2.runtime.server.http.app import make_app
from valle2.runtime.server.http.slow_clients import deadline_protocol
from valle2.runtime.server.limits import Limits
from valle2.runtime.server.request_log import set_up_logging
from valle2.runtime.server.store import VoiceStore
from valle2.runtime.server.worker import Worker, WorkerState
from valle2.runtime.tts import Valle2

MAX_PORT, MAX_INT = 65_535, 2**31 - 1
BACKLOG = 128
"""Connections that the kernel keeps until they are accepted."""
CONNECTIONS = 256
"""Open connections, above which uvicorn answers 503."""


FAILED_SECONDS = 2
"""How long the answers of a failed worker may take to reach their clients."""
SILENCE = 3.0
"""Times `step_seconds` without a turn of any Python thread, after which the process ends itself."""
TICKS = 10
"""uvicorn's ticks in a second."""
STUCK_STATUS = 70
"""The exit status if the engine thread hangs and cannot be ended (sysexits.h: a fault of the program)."""


class Server(uvicorn.Server):
    """uvicorn whose worker refuses new requests as soon as a signal comes. It ends when the worker fails."""

    worker: Worker
    address = ""
    announced = False

    async def on_tick(self, counter: int) -> bool:
        """Say once that the server serves; end if the worker has failed. Called ten times a second.

        faulthandler ends the process if these calls stop, as they do when a native call hangs with Python's
        lock in its hands.
        """
        if counter % TICKS == 0 and self.address:
            faulthandler.dump_traceback_later(SILENCE * self.worker.limits.step_seconds, exit=True)
        if self.address and self.worker.state is WorkerState.READY and not self.announced:
            self.announced = True
            print(f"serving on {self.address}", file=sys.stderr, flush=True)
        ends = await super().on_tick(counter)
        if self.worker.failure:
            self.config.timeout_graceful_shutdown, ends = FAILED_SECONDS, True
        if ends:
            faulthandler.cancel_dump_traceback_later()  # draining may take longer
        return ends

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
    log_format: str = "text",
) -> dict[str, Any]:
    """Serve until SIGTERM or SIGINT. Running streams may then take `limits.drain_seconds` more.

    The port listens at once and answers 503 while the model is loaded. "serving" is printed after that.

    Args:
        load: loads the model with the given number of rows. port: 0 takes a free one.
        store: uploaded voices. key: the API key, or an empty string.
        log_format: `text` or `json`, one line for each request.

    Returns:
        The numbers of completed requests and of restarts of the worker.

    Raises:
        Valle2Error: the address cannot be used, the model does not load, or the engine failed too often.
        SystemExit: `STUCK_STATUS`; the engine hangs.
    """
    set_up_logging(log_format)
    faulthandler.enable()  # a crash of native code names the Python line that called it
    worker = Worker(load, limits)
    config = uvicorn.Config(
        make_app(worker, store, key),
        http=deadline_protocol(limits.stall_seconds),
        log_config=None,
        lifespan="on",
        timeout_graceful_shutdown=int(limits.drain_seconds) + 1,
        limit_concurrency=CONNECTIONS,
        ws_max_size=limits.body_bytes,
        server_header=False,
    )
    server = Server(config)
    server.worker = worker
    listener = open_listener(host, port, limits.stall_seconds)
    name = f"[{host}]" if ":" in host else host
    server.address = f"http://{name}:{listener.getsockname()[1]}"
    try:
        server.run(sockets=[listener])
    finally:
        faulthandler.cancel_dump_traceback_later()
    if worker.failure:
        worker.thread.join(FAILED_SECONDS)
        if worker.thread.is_alive():  # neither it nor what it waits for can be ended
            complain(str(worker.failure))
            os._exit(STUCK_STATUS)
        raise worker.failure
    return {"served": int(worker.metrics.completed._value.get()), "restarts": worker.restarts}


def open_listener(host: str, port: int, stall_seconds: float) -> socket.socket:
    """A listening TCP socket. The kernel closes connections that acknowledge nothing for `stall_seconds`.

    Raises:
        Valle2Error: the address cannot be used. SettingsError: the port is out of range.
    """
    if not 0 <= port <= MAX_PORT:
        raise SettingsError(f"--port is {port}; expected 0 to {MAX_PORT} (0 takes a free one)")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        listener.setsockopt(
            socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, min(int(1000 * stall_seconds), MAX_INT)
        )
    try:
        listener.bind((host, port))
    except (OSError, ValueError) as error:  # ValueError: a name that is no name of a host
        listener.close()
        reason = getattr(error, "strerror", None) or error
        raise Valle2Error(
            f"{shown(host)}:{port} cannot be bound: {reason}; choose another --port or --host"
        ) from None
    listener.listen(BACKLOG)
    return listener
