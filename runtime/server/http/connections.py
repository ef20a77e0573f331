"""Accepts connections and bounds how many are open, in all and for each client address.

A connection waits until a whole request has come. At a bound, a connection that waits is closed for a new
one: one of the address that has the most, so that a client that opens many closes its own. If none can be
closed, the new one joins a small reserve, which serves only `STATE_PATHS`. The reserve always takes a new
connection, so that health checks are answered whatever other clients do.
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
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from typing import Any

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
"""A client has so long to send its first request before its connection may be closed for another."""
LOOKS_PER_TURN = 64
"""Connections accepted or refused in one turn."""
MOST_SILENT = 64
"""Connections of a flood that have sent nothing yet and may still turn out to be health checks."""
MOST_DUE = 1024
"""Addresses above which those that have opened nothing for a second are forgotten."""
STATE_REQUESTS = tuple(f"GET {path} ".encode() for path in STATE_PATHS)
HEAD_PEEK = max(map(len, STATE_REQUESTS))
REFUSED_READ = 16_384
REFUSAL = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
)
RETRY_SECONDS = 0.1
"""The pause after the process has run out of descriptors."""
NO_RESOURCE = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
RESET = struct.pack("ii", 1, 0)
IPV6_NETWORK_BITS = 64
"""Bits of an IPv6 address that one client has as a rule; it may choose the others freely."""


class WaitingProtocol:
    """A protocol that knows whether its connection waits for a request."""

    def waiting(self) -> tuple[int, float] | None:
        """How readily the connection is closed: a class, smaller first, then the time since it waits.

        None if it handles a request.
        """
        raise NotImplementedError


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
        self.read_since: float | None = None
        self.unsent = 0
        self.stuck_since = 0.0

    def start(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        """Note that the connection is made. What it has sent by now is read within two turns of the loop."""
        self.transport = transport
        loop.call_soon(loop.call_soon, self.note_read)

    def note_read(self) -> None:
        """Note that the first bytes would have been read if the client had sent them by now."""
        self.read_since = time.monotonic()

    def note_answer(self) -> None:
        """Note that a request has been answered: the connection is not new any more."""
        self.read_since = 0.0

    def is_new(self, now: float) -> bool:
        """Can its first request not have been read yet? now: from `time.monotonic`."""
        return self.read_since is None or now - self.read_since < NEW_SECONDS

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
        self.connections.remove(self)


class Places:
    """Open connections, grouped by the client's address."""

    def __init__(self) -> None:
        self.by_address: dict[str, dict[Place, None]] = {}
        self.count = 0

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Place]:
        """Address after address."""
        for own in self.by_address.values():
            yield from own

    def __contains__(self, place: Place) -> bool:
        return place in self.by_address.get(place.address, {})

    def add(self, place: Place) -> None:
        """Add a place."""
        self.by_address.setdefault(place.address, {})[place] = None
        self.count += 1

    def discard(self, place: Place) -> None:
        """Remove a place if it is there."""
        own = self.by_address.get(place.address, {})
        if place in own:
            del own[place]
            self.count -= 1
            if not own:
                del self.by_address[place.address]

    def of(self, address: str) -> Collection[Place]:
        """The places of one address."""
        return self.by_address.get(address, {}).keys()

    def most_crowded(self) -> Collection[Place]:
        """The places of the address that has the most; there is one at least."""
        return max(self.by_address.values(), key=len).keys()

    def close_one(self, new_too: bool = False) -> bool:
        """Close a connection that waits, of the address that has the most. Returns whether there was one.

        new_too: it may be one whose first request could not be read yet.
        """
        crowded = sorted(self.by_address.values(), key=len, reverse=True)
        return any(close_one(own, new_too) for own in crowded)


class Connections:
    """The open connections of one server.

    Args:
        most: connections in all, without the reserve. per_address: connections of one client address.
        stall_seconds: how long a client may take nothing of what was sent.
    """

    def __init__(self, most: int, per_address: int, stall_seconds: float) -> None:
        self.most, self.per_address, self.stall_seconds = most, per_address, stall_seconds
        self.served, self.reserve = Places(), Places()

    def __contains__(self, place: Place) -> bool:
        return place in self.served or place in self.reserve

    def __iter__(self) -> Iterator[Place]:
        yield from self.served
        yield from self.reserve

    def remove(self, place: Place) -> None:
        """Forget a connection."""
        self.served.discard(place)
        self.reserve.discard(place)

    def admit(self, address: str, state_only: bool = False) -> Place:
        """A place for a new connection, in the reserve if no other place is free or can be freed.

        Args:
            state_only: the connection may only join the reserve, and never leaves it.
        """
        place = Place(self, address, state_only)
        place.reserved = state_only or not self.free_place(address)
        if not place.reserved:
            self.served.add(place)
            return place
        if len(self.reserve) >= RESERVE and not self.reserve.close_one():
            next(iter(self.reserve.most_crowded())).close()
        self.reserve.add(place)
        return place

    def promote(self, place: Place, whole: bool = True) -> bool:
        """Take a connection out of the reserve because its request has come. Returns whether it is out.

        Args:
            whole: no part of the request is to come. It may then close even a new connection.
        """
        if place in self.reserve and not place.state_only and self.free_place(place.address, whole):
            self.reserve.discard(place)
            self.served.add(place)
            place.reserved = False
        return not place.reserved

    def free_place(self, address: str, new_too: bool = False) -> bool:
        """Is there a place outside of the reserve for this address? It may close another connection."""
        own = self.served.of(address)
        if len(own) >= self.per_address:
            return close_one(own) or (new_too and close_one(own, new_too))
        if len(self.served) < self.most:
            return True
        return self.served.close_one() or (new_too and self.served.close_one(new_too))

    def may_upgrade(self, place: Place) -> bool:
        """May this connection become a WebSocket? They take at most half of each bound."""
        sockets = sum(other.websocket for other in self.served)
        own = sum(other.websocket for other in self.served.of(place.address))
        full = sockets >= max(1, self.most // 2) or own >= max(1, self.per_address // 2)
        return not full and self.promote(place)

    def close_stuck(self, now: float) -> None:
        """Reset connections whose client has taken nothing for `stall_seconds`. now: time of the loop."""
        for place in list(self):
            unsent = place.transport.get_write_buffer_size() if place.transport else 0
            if not unsent or unsent != place.unsent:
                place.unsent, place.stuck_since = unsent, now
            elif place.transport and now - place.stuck_since > self.stall_seconds:
                place.release()
                reset(place.transport)


def close_one(places: Iterable[Place], new_too: bool = False) -> bool:
    """Close the connection that waits and is to be closed first. Returns whether there was one.

    Args:
        new_too: it may be one whose first request could not be read yet.
    """
    now = time.monotonic()
    ranks = {
        place: rank for place in places if (new_too or not place.is_new(now)) and (rank := place.waiting())
    }
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
    return address_or_network(peer[0]) if isinstance(peer, tuple) and peer else ""


@lru_cache(1024)
def address_or_network(host: str) -> str:
    """The IPv4 address, or the network of the IPv6 address, that a host's text has."""
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if not isinstance(address, IPv6Address):
        return str(address)
    if address.ipv4_mapped:
        return str(address.ipv4_mapped)
    return f"{int(address) >> (128 - IPV6_NETWORK_BITS):x}"


def asks_state(connected: socket.socket) -> bool | None:
    """Has the client of this non-blocking socket asked for one of `STATE_PATHS`? The request stays unread.

    None if the client has sent nothing yet.
    """
    try:
        sent = connected.recv(HEAD_PEEK, socket.MSG_PEEK)
    except BlockingIOError:
        return None
    except OSError:  # the client has gone
        return False
    return sent.startswith(STATE_REQUESTS)


def refuse(connected: socket.socket) -> None:
    """Answer a new connection with 503 and close it, at the least cost. The socket does not block."""
    with contextlib.suppress(OSError):
        connected.recv(REFUSED_READ)  # what is unread would turn the answer into a reset
    with contextlib.suppress(OSError):
        connected.send(REFUSAL)
    connected.close()


class Listener:
    """Accepts the connections of one listening socket.

    While connections have to wait, an address may open `per_address` of them at once and as many each
    second. Others are refused, so that a flood does not fill the queue in which other clients wait. Health
    checks are not: one whose request comes a moment after the connection is told by a second look.

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
        self.behind = False  # connections wait that the last turn did not look at
        self.turns = 0
        self.due: dict[str, float] = {}
        self.silent = deque[tuple[float, socket.socket, str]]()  # when it came, and the client's address

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
            self.look_at_all()

    async def wait_closed(self) -> None:
        """Do nothing; uvicorn waits for the connections itself."""

    def accept(self) -> None:
        """Accept the connections that have come, a few at once, and refuse those of a flood."""
        self.turns += 1
        accepted = 0
        for _ in range(LOOKS_PER_TURN):
            try:
                connected, peer = self.listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                self.behind = False
                return
            except OSError as error:
                if error.errno not in NO_RESOURCE:
                    raise
                return self.do_without_descriptors(error)
            connected.setblocking(False)
            address = client_address(peer)
            if self.floods(address) and not (asked := asks_state(connected)):
                if asked is None:
                    self.wait_for_request(connected, address)
                else:
                    refuse(connected)
                continue
            self.admit(connected, address)
            accepted += 1
            if accepted == ACCEPTS_PER_TURN:
                break
        self.behind = True
        self.loop.call_soon(self.loop.call_soon, self.catch_up, self.turns)

    def admit(self, connected: socket.socket, address: str) -> None:
        """Give an accepted connection a place, and begin to serve it."""
        place = self.connections.admit(address, self.state_only)
        task = self.loop.create_task(self.serve(connected, place))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def wait_for_request(self, connected: socket.socket, address: str) -> None:
        """Keep a connection of a flood that has sent nothing for `NEW_SECONDS`, then look at it again."""
        if len(self.silent) == MOST_SILENT:
            self.look_again()
        self.silent.append((self.loop.time(), connected, address))
        self.loop.call_later(NEW_SECONDS, self.look_at_due)

    def look_at_due(self) -> None:
        """Look again at the connections that have been silent long enough."""
        came_by = self.loop.time() - NEW_SECONDS
        while self.silent and self.silent[0][0] <= came_by:
            self.look_again()

    def look_at_all(self) -> None:
        """Look again at all silent connections, now."""
        while self.silent:
            self.look_again()

    def look_again(self) -> None:
        """Serve the oldest silent connection if it asks for a state by now; refuse it if not."""
        _, connected, address = self.silent.popleft()
        if asks_state(connected) and not self.closed:
            self.admit(connected, address)
        else:
            refuse(connected)

    def catch_up(self, turns: int) -> None:
        """Note that no connection waits any more if none has come since so many turns."""
        self.behind = self.behind and self.turns != turns

    def floods(self, address: str) -> bool:
        """Does this address open connections faster than it may while others have to wait?

        Each connection moves the time at which the next one is due; an address may be a second early.
        """
        now = time.monotonic()
        due = max(now, self.due.get(address, now)) + 1 / self.connections.per_address
        if due > now + 1:
            return self.behind
        self.due[address] = due
        if len(self.due) > MOST_DUE:
            self.due = {other: time for other, time in self.due.items() if time > now}
        return False

    async def serve(self, connected: socket.socket, place: Place) -> None:
        """Begin to serve an accepted connection."""
        try:
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await self.loop.connect_accepted_socket(lambda: self.make_protocol(place), connected)
        except OSError:  # the client has gone
            place.release()
            connected.close()

    def do_without_descriptors(self, error: OSError) -> None:
        """Free descriptors: refuse one connection with the spare one, and close some that wait."""
        log.error("no connection can be accepted: %s; fewer --connections would help", error.strerror)
        os.close(self.spare)
        with contextlib.suppress(OSError):
            self.listening.accept()[0].close()
        self.spare = os.open(os.devnull, os.O_RDONLY)
        self.look_at_all()
        held = self.connections
        if not held.served.close_one(new_too=True):
            held.reserve.close_one(new_too=True)
        self.loop.remove_reader(self.listening.fileno())
        self.loop.call_later(RETRY_SECONDS, self.resume)
