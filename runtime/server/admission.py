"""Decides which requests the server takes, and which of those that wait is decoded next.

Earlier requests finish first: at most `Limits.slots` are decoded at once, and the others wait. A request is
refused at once if the server cannot keep its time limits with it. Clients take turns: the next request to
start is one of the client that has the fewest under way. It starts if the engine then still makes the audio
of all running streams in time, or after a while. This module knows no thread; `Worker` calls it under
its lock.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

from valle2.runtime.generation.engine import EncodedRequest
from valle2.runtime.server.keys import Client
from valle2.runtime.server.limits import RETRY_AFTER_SECONDS, Limits, RefusedError, TooLongError
from valle2.runtime.server.reply import Reply, Stage, Work

SECONDS_PER_SYMBOL = 0.07
"""Speech of one character, or of one id of an encoded text, before the model has been measured."""
PACE_RANGE = 4.0
"""The measured pace is believed up to this many times, and down to this part, of the constant above."""
REAL_TIME = 1.0
"""Seconds of speech made in a second, before the engine has been measured."""
MEASURED_SECONDS = 5.0
"""Seconds of work after which the measured speed may refuse a request that is alone."""
LEAST_LEFT = 0.05
"""The part of its estimate that a request counts as having left, however much has been made of it."""
SHARED_TIME = 0.8
"""The part of `request_seconds` that requests may fill. The rest is for other clients' first requests."""
HELD = 1 / 12
"""The part of `wait_seconds` for which a request is held back so that running streams do not fall behind."""
PATIENCE = 0.5
"""The part of `wait_seconds` after which later requests no longer go before one that does not fit yet."""


class Ratio:
    """A running ratio of two sums, in which older parts count less.

    Args:
        start: the ratio before anything is measured. weight: how much of the second sum this counts as.
        memory: how much of the second sum later parts need to outweigh earlier ones.
    """

    def __init__(self, start: float, weight: float, memory: float) -> None:
        self.first, self.second, self.memory = start * weight, weight, memory
        self.measured = 0.0

    def add(self, first: float, second: float) -> None:
        """Take note of a measurement, which adds to both sums."""
        kept = math.exp(-second / self.memory)
        self.first, self.second = kept * self.first + first, kept * self.second + second
        self.measured += second

    @property
    def value(self) -> float:
        """The ratio."""
        return self.first / self.second


class Pace(Ratio):
    """Seconds of speech for one symbol of a text. Symbols are characters or ids."""

    def __init__(self) -> None:
        super().__init__(SECONDS_PER_SYMBOL, 300.0, 5000.0)

    @property
    def value(self) -> float:
        """The ratio, within bounds that no request can move."""
        return min(max(super().value, SECONDS_PER_SYMBOL / PACE_RANGE), SECONDS_PER_SYMBOL * PACE_RANGE)


class Demand(NamedTuple):
    """What one listener needs from now on. Seconds of audio need `rate` times as many seconds of speech.

    Args:
        slack: seconds until it needs the next chunk. chunk: speech of that. rest: speech after that.
    """

    slack: float
    rate: float
    chunk: float
    rest: float

    @classmethod
    def of(cls, reply: Reply, left: float, now: float) -> Demand:
        """left: seconds of speech that are still to be decoded."""
        chunk = min(reply.next_chunk, left)
        return cls(reply.slack(now), reply.work.decoded_rate, chunk, left - chunk)

    @property
    def last(self) -> float:
        """Seconds until it needs its last chunk."""
        return self.slack + self.rest / self.rate

    def until(self, time: float) -> float:
        """Seconds of speech that it needs within so many seconds."""
        return self.chunk + min((time - self.slack) * self.rate, self.rest) if time >= self.slack else 0.0


class Admission:
    """The requests of one worker, from their arrival to their end.

    Args:
        limits: bounds on requests.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.replies: dict[Reply, None] = {}  # in the order of their arrival
        self.speed = Ratio(REAL_TIME, 1.0, 20.0)
        self.per_character: Ratio = Pace()
        self.per_id: Ratio = Pace()
        self.starts = dict[Client, int]()  # the number of each client's last start

    # -- estimates -------------------------------------------------------------------------------

    def text_work(self, reply: Reply) -> Work:
        """What a text will need, by its characters."""
        request = reply.request
        seconds = len(request.text) * self.per_character.value
        return Work(seconds / request.speed, seconds * request.settings.candidates, 0)

    def encoded_work(self, encoded: EncodedRequest, frame_rate: float) -> Work:
        """What an encoded request will need, by its ids. frame_rate: frames in a second of speech."""
        pace, settings = self.per_id.value, encoded.settings
        most = settings.max_frames / frame_rate if settings.max_frames else math.inf
        audio, decoded, ids = encoded.end_pause, 0.0, 0
        for sentence in encoded.sentences:
            count = max(1, len(sentence.text.ids) - (sentence.text.prompt_length or 0))
            seconds = max(min(count * pace, most), settings.min_frames / frame_rate)
            audio += (seconds + sentence.pause) / sentence.speed
            decoded += seconds
            ids += count
        return Work(audio, decoded * settings.candidates, ids)

    def left(self, reply: Reply) -> float:
        """Seconds of speech that are still to be decoded for a request."""
        work = reply.work.decoded
        return max(work - reply.made, LEAST_LEFT * work)

    def measure(self, reply: Reply) -> None:
        """Learn the pace of speech from a complete request."""
        if reply.made and reply.work.ids and not reply.request.settings.max_frames:
            seconds = reply.made / reply.request.settings.candidates
            self.per_id.add(seconds, reply.work.ids)
            self.per_character.add(seconds, len(reply.request.text))

    # -- arrival ---------------------------------------------------------------------------------

    def enter(self, reply: Reply) -> Reply | None:
        """Take a request, whose text is to be prepared next.

        Returns:
            A request of another client to be ended instead, because that client has the most waiting.

        Raises:
            RefusedError: too many wait, or the request would wait too long.
        """
        reply.work = self.text_work(reply)
        limits, own = self.limits, len(self.of(reply.client))
        if own >= limits.slots + limits.queue_per_client:
            raise self.refusal(
                f"{own} of your requests are under way or waiting; try again later",
                "client_queue_full",
                self.turnover(),
            )
        wait = self.wait(reply)
        if wait > limits.wait_seconds:
            raise self.too_busy(wait)
        victim = None
        if len(self.replies) >= limits.slots + limits.queue:
            victim = self.newest_of_the_largest(own)
            if victim is None:
                count = len(self.replies)
                raise self.refusal(
                    f"{count} requests are under way or waiting; try again later",
                    "queue_full",
                    self.turnover(),
                )
        self.replies[reply] = None
        return victim

    def settle(self, reply: Reply, encoded: EncodedRequest, frame_rate: float, now: float) -> None:
        """Take note of a request's encoded text: it waits for its start now.

        Raises:
            TooLongError: its speech alone exceeds a limit. RefusedError: it would wait too long.
        """
        reply.work, reply.encoded = self.encoded_work(encoded, frame_rate), encoded
        limits, work = self.limits, reply.work
        if work.audio > limits.audio_seconds:
            raise TooLongError(
                f"the text is about {work.audio:.3g} s of speech; this server makes at most "
                f"{limits.audio_seconds:g} s for one request: send a shorter text"
            )
        alone = work.decoded / self.speed.value
        if alone > limits.request_seconds and self.speed.measured >= MEASURED_SECONDS:
            raise TooLongError(
                f"the text would take this server about {alone:.3g} s; it allows "
                f"{limits.request_seconds:g} s: send a shorter text"
            )
        wait = self.wait(reply)
        if wait and wait > limits.wait_seconds - (now - reply.arrived):
            raise self.too_busy(wait)
        reply.stage = Stage.WAITING

    def wait(self, reply: Reply) -> float:
        """Seconds until a request begins to be decoded, as estimated."""
        beside = [*self.in_stage(Stage.STARTED), *self.before(reply)]
        if self.may_start(reply, beside) and self.fits(reply, beside):
            return 0.0
        return sum(self.left(other) for other in beside) / self.speed.value

    def before(self, reply: Reply) -> list[Reply]:
        """The waiting requests that start before this one: its client's, and as many of each other client."""
        earlier = list[Reply]()
        for other in self.replies:
            if other is reply:
                break
            earlier.append(other)
        waiting = [other for other in earlier if other.stage is not Stage.STARTED]
        turn = sum(other.client == reply.client for other in waiting) + 1
        counts = dict[Client, int]()
        found = []
        for other in waiting:
            counts[other.client] = counts.get(other.client, 0) + 1
            if other.client == reply.client or counts[other.client] <= turn:
                found.append(other)
        return found

    def newest_of_the_largest(self, own: int) -> Reply | None:
        """The last request of the client that has the most, if some wait and it has two more than `own`."""
        counts = dict[Client, int]()
        for reply in self.replies:
            counts[reply.client] = counts.get(reply.client, 0) + 1
        waiting = [reply for reply in self.replies if reply.stage is not Stage.STARTED]
        waiting = [reply for reply in waiting if counts[reply.client] > own + 1]
        most = max((counts[reply.client] for reply in waiting), default=0)
        return next((reply for reply in reversed(waiting) if counts[reply.client] == most), None)

    def too_busy(self, wait: float) -> RefusedError:
        """The error for a request that would wait too long."""
        most = self.limits.wait_seconds
        return self.refusal(
            f"the server is busy for about {wait:.0f} s and lets no request wait more than {most:g} s; "
            "try again later",
            "server_busy",
            wait - most,
        )

    def refusal(self, message: str, code: str, seconds: float) -> RefusedError:
        """The error for a request that is refused. seconds: until it would be taken."""
        return RefusedError(
            message, code, min(max(seconds, RETRY_AFTER_SECONDS), self.limits.request_seconds)
        )

    def displaced(self) -> RefusedError:
        """The error for a waiting request whose place another client gets."""
        return self.refusal(
            "other clients need the places of your waiting requests; try again later",
            "client_queue_full",
            self.turnover(),
        )

    @property
    def backlog(self) -> float:
        """Seconds of speech that are still to be decoded."""
        return sum(self.left(reply) for reply in self.replies)

    def turnover(self) -> float:
        """Seconds until one of the requests has ended, on average."""
        return self.backlog / self.speed.value / max(1, len(self.replies))

    # -- turns -----------------------------------------------------------------------------------

    def next_text(self) -> Reply | None:
        """The request whose text is prepared next: the first of the client with the fewest further on."""
        heads = self.heads(Stage.ARRIVED)
        if not heads:
            return None
        further = [reply.client for reply in self.replies if reply.stage is not Stage.ARRIVED]
        found = min(heads, key=lambda reply: further.count(reply.client))
        found.stage = Stage.ENCODING
        return found

    def next_start(self, now: float) -> Reply | None:
        """The next request to decode, if one may begin now: of the client with the fewest under way.

        Of two such clients it is the one that has waited longer since its last start. A request that does not
        fit beside those under way lets others go first for a while. One that is held back lets nobody pass.
        """
        started = list(self.in_stage(Stage.STARTED))
        under_way = [reply.client for reply in started]
        heads = self.heads(Stage.WAITING)
        heads.sort(key=lambda reply: (under_way.count(reply.client), self.starts.get(reply.client, 0)))
        for reply in heads:
            if not self.may_start(reply, started):
                continue
            if self.is_held(reply, started, now):
                return None
            if self.fits(reply, started, now):
                self.starts[reply.client] = max(self.starts.values(), default=0) + 1
                reply.stage, reply.started_at = Stage.STARTED, now
                return reply
            if now - reply.arrived > PATIENCE * self.limits.wait_seconds:
                return None
        return None

    def may_start(self, reply: Reply, beside: list[Reply]) -> bool:
        """Is there a slot beside these requests?

        A client's first request may begin while another client holds several slots: the rows of the engine
        are shared then, and the first chunk goes first. So nobody keeps the server for himself by long texts.
        """
        slots = self.limits.slots
        if len(beside) < slots:
            return True
        others = [other.client for other in beside if other.client != reply.client]
        crowded = len(set(others)) < len(others)
        return crowded and len(others) == len(beside) < 2 * slots

    def is_held(self, reply: Reply, beside: list[Reply], now: float) -> bool:
        """Must a request wait because streams would fall behind? It waits for a part of its time at most.

        One that begins beside the several requests of another client does not wait for them.
        """
        if reply.whole or len(beside) >= self.limits.slots or self.keeps_up([*beside, reply], now):
            return False
        reply.held_since = reply.held_since or now
        return now - reply.held_since < HELD * self.limits.wait_seconds

    def keeps_up(self, replies: list[Reply], now: float) -> bool:
        """Does the engine make the audio of these requests as fast as their listeners play it?

        It serves first who needs audio first. So no listener waits if, until any time, the engine makes as
        much as the listeners need by then: what they play until then, and the chunk that goes on from there.
        Only the times at which a listener needs its next or its last chunk have to be looked at, because
        between them the need grows steadily.

        Whole requests have no listener. An engine slower than one stream keeps up with none, and is not asked
        to.
        """
        streams = [reply for reply in replies if not reply.whole]
        speed = self.speed.value
        if len(streams) < 2 or speed < 1.0 or self.speed.measured < MEASURED_SECONDS:
            return True
        demands = [Demand.of(reply, self.left(reply), now) for reply in streams]
        times = [time for demand in demands for time in (demand.slack, demand.last)]
        return all(sum(demand.until(time) for demand in demands) <= speed * time for time in times)

    def fits(self, reply: Reply, beside: list[Reply], now: float = 0.0) -> bool:
        """Would a request and those beside it end within `request_seconds`, each of its start?

        Requests share the engine equally: one with little left ends early. One that is late anyway does not
        count. A request alone always fits.
        """
        if not beside:
            return True
        most, speed = self.limits.request_seconds, self.speed.value
        first = all(other.client != reply.client for other in beside)
        share = 1.0 if first else SHARED_TIME
        own = self.left(reply)
        lefts = [self.left(other) for other in beside]
        if sum(min(left, own) for left in (*lefts, own)) > share * most * speed:
            return False
        for other, left in zip(beside, lefts, strict=True):
            seconds = most - (now - other.started_at if now and other.started_at else 0.0)
            alone = sum(min(one, left) for one in lefts)
            if alone <= share * seconds * speed < alone + min(own, left):
                return False
        return True

    # -- lists -----------------------------------------------------------------------------------

    def remove(self, reply: Reply) -> bool:
        """Forget a request. Returns whether it was there."""
        found = self.replies.pop(reply, reply) is None
        if not self.of(reply.client):
            self.starts.pop(reply.client, None)
        return found

    def of(self, client: Client) -> list[Reply]:
        """The requests of a client."""
        return [reply for reply in self.replies if reply.client == client]

    def in_stage(self, stage: Stage) -> Iterator[Reply]:
        """The requests in a stage, in the order of their arrival."""
        return (reply for reply in self.replies if reply.stage is stage)

    def heads(self, stage: Stage) -> list[Reply]:
        """The first request of each client in a stage."""
        found = dict[Client, Reply]()
        for reply in self.in_stage(stage):
            found.setdefault(reply.client, reply)
        return list(found.values())
