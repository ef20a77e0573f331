"""The longest engine step of a running stream while a long request arrives.

    python -m valle2.benchmarks.serving.arrival

A listener waits for no more than one step. Text that is prepared inside a step makes it longer for every
running stream, so the text of a new request must be prepared elsewhere. Steps are timed by the server's own
metric `step_seconds`, in a server's worker without HTTP. Each round compares a stream beside which nothing
happens with one beside which a request of 4,096 characters arrives.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from statistics import median
from typing import Any

from valle2.runtime import Request, Settings, Valle2
from valle2.runtime.server.limits import Limits
from valle2.runtime.server.metrics import Metrics
from valle2.runtime.server.worker import Worker, WorkerState

CHARACTERS = 4096
STEPS = 50
"""Steps that are observed where nothing arrives."""
TEXTS = {
    "prose": "The quick brown fox jumps over the lazy dog, and nobody knows why it does so every day. ",
    "abbreviations": "etc. ",
    "numbers": "In 1984 it cost $1,299.99 and weighed 3.5 kg. ",
}
STREAM = "The morning was cold and clear, and the road ran straight on between the fields. " * 3


class Noted:
    """A histogram that keeps what it observes."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def observe(self, value: float) -> None:
        self.values.append(value)


def arrival(model: str, rounds: int, threads: int) -> dict[str, Any]:
    """Longest step in milliseconds, the median over rounds, for every kind of text and for none."""
    metrics, noted = Metrics(), Noted()
    metrics.step_seconds = noted
    worker = Worker(lambda slots: Valle2.load(model, threads=threads, slots=slots), Limits(), metrics)
    worker.start()
    wait(lambda: worker.state is WorkerState.READY)
    longest: dict[str, list[float]] = {"none": [], **{name: [] for name in TEXTS}}
    try:
        for _ in range(rounds):
            for name, found in longest.items():
                found.append(1000 * longest_step(worker, noted, TEXTS.get(name, "")))
    finally:
        worker.stop()
    return {"longest_step_ms": {name: round(median(found), 1) for name, found in longest.items()}}


def longest_step(worker: Worker, noted: Noted, text: str) -> float:
    """Seconds of the longest step from the arrival of a text to its first audio."""
    assert worker.tts
    voice = worker.tts.voice(worker.tts.default_voice())
    stream = worker.submit(Request(STREAM, voice, Settings(seed=1)))
    next(iter(stream))
    noted.values.clear()
    if text:
        text = (text * CHARACTERS)[:CHARACTERS]
        late = worker.submit(Request(text, voice, Settings(seed=2, max_frames=1)))
        wait(lambda: late.first_at or late.ended)
    else:
        wait(lambda: len(noted.values) >= STEPS)
    found = max(noted.values)
    stream.cancel()
    if text:
        late.cancel()
    wait(lambda: not worker.outstanding)
    return found


def wait(done: Callable[[], object]) -> None:
    """Wait until something is so."""
    while not done():
        time.sleep(0.01)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0)
    args = parser.parse_args()
    print(json.dumps(arrival(args.model, args.rounds, args.threads)))


if __name__ == "__main__":
    main()
