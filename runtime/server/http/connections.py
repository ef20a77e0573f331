"""Accepts connections and bounds how many are open, in all and for each client address.

A connection waits until a whole request has come. At a bound, the connection that has waited longest is
closed for a new one. If none waits, the new one joins a small reserve, which serves only `STATE_PATHS`. The
reserve always takes a new connection, so that health checks are answered whatever other clients do.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import socket
import struct
import time
from collections.abc import Callable, Iterable
from ipaddress import IPv6Address, ip_address
from typing import Any, Protocol, runtime_checkable

log = logging.getLogger("valle2.server")
STATE_PATHS = ("/health", "/ready", "/metrics")
"""Paths that a connection of the reserve may ask for."""
RESERVE = 32
"""Connections above the bounds."""
RESERVE_SECONDS = 5.0
"""How long a connection of the reserve may wait."""
ACCEPTS_PER_TURN = 8
"""Connections accepted in one turn of the event loop: their requests are read before the next ones come."""
NEW_SECONDS = 0.02
"""A connection is not closed for a new one before its first request could be read."""
RETRY_SECONDS = 0.1
"""The pause after the process has run out of descriptors."""
NO_RESOURCE = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
RESET = struct.pack("ii", 1, 0)
IPV6_NETWORK_BITS = 64
"""Bits of an IPv6 address that one client has as a rule; it may choose the others freely."""


@runtime_checkable
class WaitingProtocol(Protocol):
    """A protocol that knows whether its connection waits for a request."""

    def waiting(self) -> tuple[int, float] | None:
        """How readily the connection is closed: a class, smaller first, then the time since it waits.

        None if it handles a request.
        """


class Place:
    """One open connection's place among the others.

    Args:
        connections: where it counts. address: of the client. state_only: it serves only `STATE_PATHS`.
    """

    def __init__(self, connections: Connections, address: str, state_only: bool) -> None:
        self.connections, self.address, self.state_only = connections, address, state_only
        self.reserved = False
        self.transport: asyncio.Transport | None = None
        self.websocket = False
        self.arrived = time.monotonic()
        self.unsent = 0
        self.stuck_since = 0.0

    def waiting(self) -> tuple[int, float] | None:
        """See `WaitingProtocol`."""
        protocol = self.transport.get_protocol() if self.transport else None
        return protocol.waiting() if isinstance(protocol, WaitingProtocol) else None

    def close(self) -> None:
        """Close the connection without waiting for what is unsent."""
        self.release()
        if self.transport:
            self.transport.abort()

    def release(self) -> None:
        """Give the place back."""
        self.connections.places.pop(self, None)


class Connections:
    """The open connections of one server.

    Args:
        most: connections in all, without the reserve. per_address: connections of one client address.
        stall_seconds: how long a client may take nothing of what was sent.
    """

    def __init__(self, most: int, per_address: int, stall_seconds: float) -> None:
        self.most, self.per_address, self.stall_seconds = most, per_address, stall_seconds
        self.places: dict[Place, None] = {}  # in the order of their arrival

    def admit(self, address: str, state_only: bool = False) -> Place:
        """A place for a new connection, in the reserve if no other place is free or can be freed.

        Args:
            state_only: the connection may only join the reserve, and never leaves it.
        """
        place = Place(self, address, state_only)
        if state_only or not self.free_place(place, NEW_SECONDS):
            others = [other for other in self.places if other.reserved]
            if len(others) >= RESERVE and not close_one(others, 0.0):
                others[0].close()
            place.reserved = True
        self.places[place] = None
        return place

    def promote(self, place: Place) -> bool:
        """Take a connection out of the reserve because its request has come. Returns whether it is out."""
        if place.reserved and not place.state_only and self.free_place(place, 0.0):
            place.reserved = False
        return not place.reserved

    def free_place(self, place: Place, age: float) -> bool:
        """Is there a place outside of the reserve? It may close another that has waited `age` seconds."""
        served = [other for other in self.places if not other.reserved]
        own = [other for other in served if other.address == place.address]
        if len(own) >= self.per_address:
            return close_one(own, age)
        return len(served) < self.most or close_one(served, age)

    def may_upgrade(self, place: Place) -> bool:
        """May this connection become a WebSocket? They take at most half of each bound."""
        sockets = [other for other in self.places if other.websocket]
        own = [other for other in sockets if other.address == place.address]
        full = len(sockets) >= max(1, self.most // 2) or len(own) >= max(1, self.per_address // 2)
        return not full and self.promote(place)

    def close_stuck(self, now: float) -> None:
        """Reset connections whose client has taken nothing for `stall_seconds`. now: time of the loop."""
        for place in list(self.places):
            unsent = place.transport.get_write_buffer_size() if place.transport else 0
            if not unsent or unsent != place.unsent:
                place.unsent, place.stuck_since = unsent, now
            elif place.transport and now - place.stuck_since > self.stall_seconds:
                place.release()
                reset(place.transport)


def close_one(places: Iterable[Place], age: float) -> bool:
    """Close the connection that waits and is to be closed first. Returns whether there was one.

    Args:
        age: seconds that it has been open at least.
    """
    latest = time.monotonic() - age
    ranks = {place: rank for place in places if place.arrived <= latest and (rank := place.waiting())}
    if not ranks:
        return False
    min(ranks, key=ranks.__getitem__).close()
    return True


def reset(transport: asyncio.Transport) -> None:
    """Close a connection so that the client sees an error. A plain close looks like the end of the answer."""
    connected = transport.get_extra_info("socket")
    if connected is not None:
        with contextlib.suppress(OSError):  # the client has gone
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    transport.abort()


def client_address(peer: Any) -> str:
    """What counts as one client: an IPv4 address, or the network of an IPv6 address."""
    if not isinstance(peer, tuple) or not peer:
        return ""
    try:
        address = ip_address(peer[0].partition("%")[0])
    except ValueError:
        return str(peer[0])
    if not isinstance(address, IPv6Address):
        return str(address)
    if address.ipv4_mapped:
        return str(address.ipv4_mapped)
    return f"{int(address) >> (128 - IPV6_NETWORK_BITS):x}"


class Listener:
    """Accepts the connections of one listening socket.

    asyncio's own way logs a traceback for each connection in the backlog when the process has no descriptor
    left, and never accepts fewer than that at once.

    Args:
        make_protocol: makes the protocol of a new connection. state_only: connections join the reserve.
    """

    def __init__(
        self,
        listening: socket.socket,
        connections: Connections,
        make_protocol: Callable[[Place], asyncio.Protocol],
        state_only: bool = False,
    ) -> None:
        self.listening, self.connections = listening, connections
        self.make_protocol, self.state_only = make_protocol, state_only
        self.tasks = set[asyncio.Task[None]]()
        self.spare = os.open(os.devnull, os.O_RDONLY)
        self.closed = False

    def start(self) -> None:
        """Accept connections from now on, in the running event loop."""
        self.loop = asyncio.get_running_loop()
        self.listening.setblocking(False)
        self.resume()

    def resume(self) -> None:
        """Accept again, after a pause."""
        if not self.closed:
            self.loop.add_reader(self.listening.fileno(), self.accept)

    def close(self) -> None:
        """Accept no more connections."""
        if not self.closed:
            self.closed = True
            self.loop.remove_reader(self.listening.fileno())
            self.listening.close()
            os.close(self.spare)

    async def wait_closed(self) -> None:
        """Do nothing; uvicorn waits for the connections itself."""

    def accept(self) -> None:
        """Accept the connections that have come, a few at once."""
        for _ in range(ACCEPTS_PER_TURN):
            try:
                connected, peer = self.listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno not in NO_RESOURCE:
                    raise
                return self.refuse(error)
            place = self.connections.admit(client_address(peer), self.state_only)
            task = self.loop.create_task(self.serve(connected, place))
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    async def serve(self, connected: socket.socket, place: Place) -> None:
        """Begin to serve an accepted connection."""
        try:
            connected.setblocking(False)
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await self.loop.connect_accepted_socket(lambda: self.make_protocol(place), connected)
        except OSError:  # the client has gone
            place.release()
            connected.close()

    def refuse(self, error: OSError) -> None:
        """Make do without descriptors: refuse one connection with the spare one, and close one that waits."""
        log.error("no connection can be accepted: %s; fewer --connections would help", error.strerror)
        os.close(self.spare)
        with contextlib.suppress(OSError):
            self.listening.accept()[0].close()
        self.spare = os.open(os.devnull, os.O_RDONLY)
        close_one(self.connections.places, 0.0)
        self.loop.remove_reader(self.listening.fileno())
        self.loop.call_later(RETRY_SECONDS, self.resume)
