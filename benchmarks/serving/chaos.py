"""What a server promises, judged while attackers and four times its capacity of requests are at it.

`attacks` runs the attackers in a process of their own. Here are the judges: health checks, in another
process, and listeners, who speak with the server as good clients do and compare what they hear with what each
seed gave before. Memory and descriptors are noted all the time. After the attack nothing may be left of it.
Then the server is restarted under a second attack. Soak: many short requests, to see whether memory grows.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from statistics import mean
from typing import Any

from valle2.benchmarks.report.statistics import growth, longest_wait, percentiles
from valle2.benchmarks.report.tables import markdown
from valle2.benchmarks.serving.attacks import FIRST_ADDRESS, Attack, Load
from valle2.benchmarks.serving.client import ServerProcess, address, get, listen, speech_body, wait
from valle2.engine.errors import Valle2Error

SHORT_TEXT = "Hello."
SETTLE_SECONDS = 60.0
POLL_SECONDS = 0.1
NICE = 15
"""By how much health checks go before other processes, where the system allows it."""
SAMPLE_SECONDS = 0.25
LISTENERS, SEEDS, REPEATED = 4, 4, 3
"""Good clients, the seeds that they ask for, and how often the text stands in their requests."""
HEALTH_MS = 100.0
SILENT_SECONDS = 1.0
GROWTH_MIB = 32.0
"""Bounds: of each health check, of a silence in a stream, and of the memory that is more at the end."""
WARM_UP_SECONDS, COMPARED_SECONDS = 20.0, 10.0
"""Memory grows to its usual size in the first. The seconds after that are compared with the last ones."""
RESTART_SECONDS = 3.0
CLOSED_SECONDS = 0.5
"""After so long the connections of requests that have been answered are closed."""


@dataclass(slots=True)
class Listener:
    """One good client. It asks again when the server says so, and listens to the end.

    Args:
        first_audio: seconds from its question, asked again if need be, to the first audio.
        waits: the longest silence of each stream, in seconds.
    """

    address: str
    statuses: Counter[int] = field(default_factory=Counter)
    first_audio: list[float] = field(default_factory=list)
    waits: list[float] = field(default_factory=list)
    cut: int = 0
    different: int = 0

    def run(
        self, server: ServerProcess, wanted: dict[bytes, bytes], samples: int, stop: threading.Event
    ) -> None:
        """Ask for each body in turn until told to stop. wanted: the audio of each body."""
        bodies = list(wanted)
        while not stop.is_set():
            body, asked = bodies[len(self.waits) % len(bodies)], time.perf_counter()
            heard = listen(server.port, body, asked, samples, address=self.address)
            while heard.status in (429, 503) and not stop.wait(max(0.1, heard.retry_after)):
                self.statuses[heard.status] += 1
                heard = listen(server.port, body, asked, samples, address=self.address)
            self.statuses[heard.status] += 1
            if heard.pieces:
                self.first_audio.append(heard.pieces[0][0])
                self.waits.append(longest_wait(heard.pieces))
                self.cut += heard.cut
                self.different += not wanted[body].startswith(heard.data)
                self.different += heard.whole and heard.data != wanted[body]


class HealthPolls:
    """Health checks from a process of its own, which is ready when this object is made.

    Threads of this process would delay them, and its priority is as high as the system lets it be.

    Attributes:
        answers: status and seconds of each check. late: seconds by which the process woke too late for it.
    """

    def __init__(self, port: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.here, there = context.Pipe()
        self.process = context.Process(target=poll_health, args=(port, there), daemon=True)
        self.answers: list[tuple[int, float]] = []
        self.late: list[float] = []
        self.process.start()
        there.close()  # so that nothing is waited for if the process dies
        self.receive()

    def start(self) -> None:
        """Begin to ask."""
        self.here.send("start")

    def stop(self) -> None:
        """Ask no more, and note what was found."""
        self.here.send("stop")
        self.answers, self.late = self.receive()
        self.process.join()

    def receive(self) -> Any:
        """What the process says next.

        Raises:
            Valle2Error: it has ended.
        """
        try:
            return self.here.recv()
        except EOFError:
            raise Valle2Error("the process of the health checks has ended; its error is above") from None


def poll_health(port: int, other: Connection) -> None:
    """Ask for health checks from a first message to a second one; answer with what they found."""
    with suppress(AttributeError, OSError):
        os.nice(-NICE)
    answers, late = list[tuple[int, float]](), list[float]()
    other.send("ready")
    other.recv()
    due = time.perf_counter()
    while not other.poll(max(0.0, due - time.perf_counter())):
        began = time.perf_counter()
        late.append(began - due)
        status = get(port, "/health")[0]
        answers.append((status, time.perf_counter() - began))
        due = max(due + POLL_SECONDS, time.perf_counter())
    other.send((answers, late))


@dataclass(slots=True)
class Watch:
    """Memory and descriptors of the server over time.

    Args:
        memory: (seconds since the beginning, bytes). most_descriptors: at any time.
    """

    memory: list[tuple[float, int]] = field(default_factory=list)
    most_descriptors: int = 0

    def sample(self, server: ServerProcess, stop: threading.Event) -> None:
        """Note memory and descriptors until told to stop."""
        began = time.perf_counter()
        while not stop.wait(SAMPLE_SECONDS) and server.running:
            self.memory.append((time.perf_counter() - began, server.resident_bytes()))
            self.most_descriptors = max(self.most_descriptors, len(server.descriptors()))

    def grown_mib(self) -> float | None:
        """How much more memory is used at the end than after the warm-up; None if the time is too short."""
        end = self.memory[-1][0] if self.memory else 0.0
        early, late = WARM_UP_SECONDS + COMPARED_SECONDS, end - COMPARED_SECONDS
        if late < early:
            return None
        before = mean(size for when, size in self.memory if WARM_UP_SECONDS <= when < early)
        return round((mean(size for when, size in self.memory if when >= late) - before) / 2**20, 1)


def chaos(
    server: ServerProcess, text: str, seed: int, rate: float, seconds: float, samples: int
) -> dict[str, Any]:
    """Attack the server for `seconds` beside `rate` requests per second, then restart it under attack.

    Args:
        samples: sample rate of the audio in Hz.

    Returns:
        Figures, `attacks` with what each kind of attacker got, and `criteria` with what passed and what not.

    Raises:
        Valle2Error: the server has ended.
    """
    bodies = [speech_body(" ".join([text] * REPEATED), seed + index) for index in range(SEEDS)]
    wanted = {body: reference(server, body, samples) for body in bodies}
    time.sleep(CLOSED_SECONDS)
    before, load = len(server.descriptors()), Load(text, rate, samples)
    watch, stop = Watch(), threading.Event()
    listeners = [Listener(address(FIRST_ADDRESS - 1 - index)) for index in range(LISTENERS)]
    threads = [
        threading.Thread(target=watch.sample, args=(server, stop)),
        *(threading.Thread(target=one.run, args=(server, wanted, samples, stop)) for one in listeners),
    ]
    health = HealthPolls(server.health_port)
    with Attack(server.port, load, seed) as attack:
        health.start()
        for thread in threads:
            thread.start()
        time.sleep(seconds)
        stop.set()
        health.stop()
        for thread in threads:
            thread.join()
    after = settled(server, bodies[0], wanted, samples, before)
    with Attack(server.port, load, seed + 1) as second:
        server.restart()
        time.sleep(min(seconds, RESTART_SECONDS))
    again = settled(server, bodies[0], wanted, samples, before)
    kinds = {kind: added(found, second.result[kind]) for kind, found in attack.result.items()}
    figures = watched(watch, health, before) | heard_by(listeners) | after
    figures |= {f"restarted_{name}": value for name, value in again.items()}
    statuses = [kind["statuses"] for kind in kinds.values()] + [figures["listener_statuses"]]
    figures["other_5xx"] = sum(
        count for each in statuses for status, count in each.items() if status >= "500" and status != "503"
    )
    figures["tracebacks"] = server.tracebacks
    return figures | {"criteria": criteria(figures), "attacks": kinds}


def watched(watch: Watch, health: HealthPolls, before: int) -> dict[str, Any]:
    """Figures of the health checks, the memory and the descriptors. before: descriptors at the beginning."""
    return {
        "health_polls": len(health.answers),
        "health_other_than_200": sum(status != 200 for status, _ in health.answers),
        "health_slowest_ms": round(1000 * max((took for _, took in health.answers), default=0.0), 1),
        "judge_latest_ms": round(1000 * max(health.late, default=0.0), 1),
        "memory_mib": round(max((size for _, size in watch.memory), default=0) / 2**20, 1),
        "memory_growth_mib": watch.grown_mib(),
        "descriptors_before": before,
        "descriptors_most": watch.most_descriptors,
    }


def heard_by(listeners: list[Listener]) -> dict[str, Any]:
    """Figures of the good clients."""
    first = [seconds for one in listeners for seconds in one.first_audio]
    statuses = sum((one.statuses for one in listeners), Counter[int]())
    return {
        "listeners": len(listeners),
        "listeners_heard": sum(bool(one.first_audio) for one in listeners),
        "streams": len(first),
        "streams_cut": sum(one.cut for one in listeners),
        "streams_different": sum(one.different for one in listeners),
        "first_audio_ms": percentiles(first, 50, 95) if first else {},
        "longest_silence_s": round(max((wait for one in listeners for wait in one.waits), default=0.0), 3),
        "listener_statuses": {str(status): count for status, count in sorted(statuses.items())},
    }


def settled(
    server: ServerProcess, body: bytes, wanted: dict[bytes, bytes], samples: int, before: int
) -> dict[str, Any]:
    """What is left of the attack once the server has had time, and whether it speaks as before.

    Raises:
        Valle2Error: the server has ended.
    """
    server.need_alive()
    server.wait_idle(SETTLE_SECONDS)
    wait(lambda: len(server.descriptors()) <= before, SETTLE_SECONDS)
    left = server.descriptors()  # before the next request, whose connection would count
    found = server.metrics()
    return {
        "leaked_slots": int(found["active_slots"] + found["queue_depth"]),
        "descriptors_left": max(0, len(left) - before),
        "descriptors": Counter(re.sub(r"\d+", "N", target) for target in left),
        "worker_restarts": int(found["worker_restarts_total"]),
        "next_request_identical": reference(server, body, samples) == wanted[body],
    }


def reference(server: ServerProcess, body: bytes, samples: int) -> bytes:
    """The audio of a request that is alone."""
    return listen(server.port, body, time.perf_counter(), samples).data


def added(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """The acts and statuses of two attacks together."""
    statuses = Counter(one["statuses"]) + Counter(other["statuses"])
    return {"acts": one["acts"] + other["acts"], "statuses": dict(sorted(statuses.items()))}


def criteria(found: dict[str, Any]) -> list[dict[str, Any]]:
    """What must hold: the criterion, what was measured, the bound, and whether it passed."""

    def both(name: str) -> list[Any]:
        return [found[name], found[f"restarted_{name}"]]

    def most(name: str, measured: float, bound: float) -> dict[str, Any]:
        return {"criterion": name, "measured": measured, "bound": bound, "passed": measured <= bound}

    grown = found["memory_growth_mib"]
    memory = [] if grown is None else [most("growth of memory after the warm-up, MiB", grown, GROWTH_MIB)]
    unheard, same = found["listeners"] - found["listeners_heard"], both("next_request_identical")
    return [
        most(f"{found['health_polls']} health checks: other than 200", found["health_other_than_200"], 0),
        most("slowest health check, ms", found["health_slowest_ms"], HEALTH_MS),
        most(f"{found['listeners']} good clients: without audio", unheard, 0),
        most(
            f"their {found['streams']} streams: longest silence, s",
            found["longest_silence_s"],
            SILENT_SECONDS,
        ),
        most("streams cut", found["streams_cut"], 0),
        most("streams with other bytes than their seed's", found["streams_different"], 0),
        most("other bytes of a seed after the attack or the restart", same.count(False), 0),
        most("5xx other than 503", found["other_5xx"], 0),
        *memory,
        most("descriptors left", sum(both("descriptors_left")), 0),
        most("rows and requests left", sum(both("leaked_slots")), 0),
        most("restarts of the engine", sum(both("worker_restarts")), 0),
        most("tracebacks in the log", found["tracebacks"], 0),
    ]


def failed(found: dict[str, Any]) -> list[str]:
    """The criteria that did not pass, each with what was measured."""
    return [
        f"{row['criterion']}: {row['measured']} (bound: {row['bound']})"
        for row in found["criteria"]
        if not row["passed"]
    ]


def table(found: dict[str, Any]) -> str:
    """The criteria, and what the attackers got, as two Markdown tables."""
    judged = [
        [row["criterion"], row["measured"], row["bound"], "pass" if row["passed"] else "FAIL"]
        for row in found["criteria"]
    ]
    attacks = [
        [kind, each["acts"], ", ".join(f"{status}: {count}" for status, count in each["statuses"].items())]
        for kind, each in found["attacks"].items()
    ]
    return "\n\n".join(
        [
            markdown(["under attack", "measured", "bound", ""], judged),
            markdown(["attack", "acts", "answers by status (0: none)"], attacks),
        ]
    )


def soak(server: ServerProcess, seed: int, count: int, samples: int) -> dict[str, Any]:
    """Growth of the server's resident memory over `count` short requests, one after another."""
    sizes, whole = [], 0
    for index in range(count):
        body = speech_body(SHORT_TEXT, seed + index)
        whole += listen(server.port, body, time.perf_counter(), samples).whole
        sizes.append(server.resident_bytes() / 2**20)
    return {"requests": count, "whole": whole} | growth(sizes)
