"""One server process: its listeners, uvicorn with the app, and the shutdown after a signal.

The process ends by itself if its model cannot be loaded, or if the engine fails for good. A supervisor then
starts it again (docs/serving.md).
"""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from types import FrameType
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.server import ServerState

from valle2.engine.bundle.untrusted import shown
from valle2.engine.errors import Valle2Error
from valle2.runtime.cli.streams import complain
from valle2.runtime.errors import SettingsError
from valle2.runtime.server.http.app import make_app
from valle2.runtime.server.http.connections import RESERVE, Connections, Listener, Place
from valle2.runtime.server.http.protocols import HttpProtocol, WebSocketProtocol
from valle2.runtime.server.keys import Keys
from valle2.runtime.server.limits import Limits
from valle2.runtime.server.logs import flush_logs, limit_logs
from valle2.runtime.server.request_log import set_up_logging
from valle2.runtime.server.store import VoiceStore
from valle2.runtime.server.worker import Worker, WorkerState
from valle2.runtime.tts import Valle2

log = logging.getLogger("valle2.server")
MAX_PORT, MAX_INT = 65_535, 2**31 - 1
BACKLOG = 128
"""Connections that the kernel keeps until they are accepted."""
MOST_DESCRIPTORS = 65_536
"""Descriptors that the server asks for, if the system allows so many."""
SPARE_DESCRIPTORS = 64
"""Descriptors that connections leave to files."""
STUCK_POLLS = 4
"""How often in `stall_seconds` connections are checked for clients that read nothing."""


FAILED_SECONDS = 2
"""How long the answers of a failed worker may take to reach their clients."""
SILENCE = 3.0
"""Times `step_seconds` without a turn of any Python thread, after which the process ends itself."""
TICKS = 10
"""uvicorn's ticks in a second."""
SWITCH_SECONDS = 0.001
"""How long a Python thread may keep the interpreter while another one waits for it. With Python's 5 ms the
engine and health checks would wait that long again and again while a flood keeps the event loop busy."""
COLLECTIONS = (700, 10, 3)
"""When the garbage collector looks at young, older and all objects. With Python's (700, 10, 10) those of a
thousand answered requests come together, and one look takes three times as long."""
STUCK_STATUS = 70
"""The exit status if the engine thread hangs and cannot be ended (sysexits.h: a fault of the program)."""


class Server(uvicorn.Server):
    """uvicorn with listeners of our own. Its worker refuses new requests as soon as a signal comes.

    It ends when the worker fails.

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
        self.address, self.announced = "", False
        self.frozen: Valle2 | None = None  # the model whose objects the garbage collector leaves out
        config = uvicorn.Config(
            app,
            http="h11",
            ws=WebSocketProtocol,
            loop="asyncio:SelectorEventLoop",
            log_config=None,
            timeout_graceful_shutdown=int(self.limits.drain_seconds) + 1,
            ws_max_size=self.limits.body_bytes,
            ws_per_message_deflate=False,
            server_header=False,
            proxy_headers=False,  # anybody may send these, and a client is bounded by its address
            **more,
        )
        super().__init__(config)
        stall = self.limits.stall_seconds
        self.connections = Connections(self.limits.connections, self.limits.connections_per_address, stall)
        self.port = Listener(port, self.connections, self.make_protocol)
        self.health = health and HealthThread(health, self.config, stall)

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
            self.connections.close_stuck(asyncio.get_running_loop().time())

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().shutdown()
        finally:
            flush_logs()  # after a signal, uvicorn ends the process by that signal
            self.checks.cancel()
            if self.health:
                self.health.close()

    async def on_tick(self, counter: int) -> bool:
        """Say once that the server serves; end if the worker has failed. Called ten times a second.

        faulthandler ends the process if these calls stop, as they do when a native call hangs with Python's
        lock in its hands.
        """
        if counter % TICKS == 0 and self.address:
            faulthandler.dump_traceback_later(SILENCE * self.worker.limits.step_seconds, exit=True)
        if self.address and self.worker.state is WorkerState.READY:
            if self.frozen is not self.worker.tts:
                self.frozen = self.worker.tts
                freeze_objects()
            if not self.announced:
                self.announced = True
                print(f"serving on {self.address}", file=sys.stderr, flush=True)
        ends = await super().on_tick(counter)
        if self.worker.failure and self.address:
            self.config.timeout_graceful_shutdown, ends = FAILED_SECONDS, True
        if ends:
            faulthandler.cancel_dump_traceback_later()  # draining may take longer
        return ends

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.worker.drain()
        super().handle_exit(sig, frame)


class HealthThread:
    """A listener for health checks alone, with an event loop and a thread of its own.

    Its answers do not wait for the work that connections of other clients bring to the server's event loop.

    Args:
        listening: its socket. config: of uvicorn, with the app. stall_seconds: see `Limits`.
    """

    def __init__(self, listening: socket.socket, config: uvicorn.Config, stall_seconds: float) -> None:
        self.config, self.stall_seconds = config, stall_seconds
        self.connections = Connections(1, 1, stall_seconds)
        self.state = ServerState()
        self.listener = Listener(listening, self.connections, self.make_protocol, state_only=True)
        self.loop = asyncio.SelectorEventLoop()
        self.thread = threading.Thread(target=self.run, name="valle2-health", daemon=True)

    def make_protocol(self, place: Place) -> HttpProtocol:
        """The protocol of a new connection."""
        return HttpProtocol(
            place,
            self.stall_seconds,
            config=self.config,
            server_state=self.state,
            app_state={},
            _loop=self.loop,
        )

    def start(self) -> None:
        """Answer from now on, until the process ends or `close`."""
        self.thread.start()

    def run(self) -> None:
        """Run the loop until `close` stops it."""
        self.loop.call_soon(self.listener.start)
        self.loop.call_later(self.stall_seconds / STUCK_POLLS, self.check_connections)
        self.loop.run_forever()
        self.listener.close()
        for place in list(self.connections):
            place.close()
        self.loop.run_until_complete(asyncio.sleep(0))
        self.loop.close()

    def check_connections(self) -> None:
        """Look for clients that read nothing, for ever."""
        self.connections.close_stuck(self.loop.time())
        self.loop.call_later(self.stall_seconds / STUCK_POLLS, self.check_connections)

    def close(self) -> None:
        """End the thread and its connections."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(FAILED_SECONDS)


def freeze_objects() -> None:
    """Let the garbage collector leave out all objects that there are now: the model, the app, the libraries.

    No thread of the process runs while it looks at them all, which takes 0.1 s, and requests make it do so
    every few seconds. Called again for a new model, it frees the old one's first.
    """
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECTIONS)


def serve(
    load: Callable[[int], Valle2],
    limits: Limits,
    host: str,
    port: int,
    store: VoiceStore,
    keys: Keys,
    log_format: str = "text",
    health_port: int = 0,
) -> dict[str, Any]:
    """Serve until SIGTERM or SIGINT. Running streams may then take `limits.drain_seconds` more.

    The port listens at once and answers 503 while the model is loaded. "serving" is printed after that.

    Args:
        load: loads the model with the given number of rows. port: 0 takes a free one.
        store: uploaded voices. keys: the API keys, if there are any.
        log_format: `text` or `json`, one line for each request.
        health_port: for health checks and metrics alone; 0 for none.

    Returns:
        The numbers of completed requests and of restarts of the worker.

    Raises:
        Valle2Error: an address cannot be used, the model does not load, or the engine failed too often.
        SystemExit: `STUCK_STATUS`; the engine hangs.
    """
    set_up_logging(log_format)
    limit_logs()
    sys.setswitchinterval(SWITCH_SECONDS)
    faulthandler.enable()  # a crash of native code names the Python line that called it
    limits = replace(limits, connections=most_connections(limits.connections))
    listener = open_listener(host, port, limits.stall_seconds)
    health = open_listener(host, health_port, limits.stall_seconds) if health_port else None
    worker = Worker(load, limits)
    server = Server(make_app(worker, store, keys), worker, listener, health, lifespan="on")
    name = f"[{host}]" if ":" in host else host
    server.address = f"http://{name}:{listener.getsockname()[1]}"
    try:
        server.run()
    finally:
        faulthandler.cancel_dump_traceback_later()
        flush_logs()
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
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
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
