"""A process that loads a model, speaks, and notes seconds and bytes on the way; told a `Plan` as JSON.

`memory` starts it and says what the figures mean. The runtime is imported inside `main`, since that is timed;
what this module itself imports is a small part of the standard library.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from valle2.benchmarks.process import peak_bytes, resident_bytes

if TYPE_CHECKING:
    from valle2.runtime import Settings, Valle2

SECOND = 75
LENGTHS = 10, 2 * SECOND


@dataclass(frozen=True, slots=True)
class Plan:
    """What to load and say.

    frames: of a request, 0 lets `<eos>` end it. filled: whether to decode with all slots at once, after the
    first request. requests: of random lengths, after that.
    """

    model: str
    precision: str
    slots: int
    threads: int
    text: str
    seed: int
    frames: int
    filled: bool = False
    requests: int = 0


@dataclass(slots=True)
class Notes:
    """By moment (`import`, `load`, `first`, `slots`): seconds it took, bytes resident after it, peak so far.

    positions: that the cache's rows hold after `slots`; cache_bytes: theirs. sizes: resident bytes after each
    request of random length.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    resident: dict[str, int | None] = field(default_factory=dict)
    peak: dict[str, int | None] = field(default_factory=dict)
    positions: int = 0
    cache_bytes: int = 0
    sizes: list[int | None] = field(default_factory=list)

    @contextmanager
    def moment(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - began
        self.resident[name], self.peak[name] = resident_bytes(), peak_bytes()


def observe(plan: Plan) -> Notes:
    """Do what the plan says, in this process."""
    notes = Notes()
    with notes.moment("import"):
        from valle2.runtime import Valle2
    with notes.moment("load"):
        tts = Valle2.load(plan.model, precision=plan.precision, slots=plan.slots, threads=plan.threads)
    with notes.moment("first"):
        speak(tts, plan, 1, min(plan.frames, SECOND))
    if plan.filled:
        with notes.moment("slots"):
            speak(tts, plan, plan.slots, plan.frames)
        notes.positions, notes.cache_bytes = cache_filled(tts)
    notes.sizes = list(soak(tts, plan))
    return notes


def speak(tts: Valle2, plan: Plan, count: int, frames: int) -> None:
    """The text, so many times at once."""
    from valle2.runtime import Request

    voice = tts.voice(tts.default_voice())
    tts.synthesize_batch(
        [Request(plan.text, voice, chosen(tts, plan.seed + i, frames)) for i in range(count)]
    )


def chosen(tts: Valle2, seed: int, frames: int) -> Settings:
    """The model's own sampling."""
    from dataclasses import replace

    return replace(tts.settings(), seed=seed, max_frames=frames)


def cache_filled(tts: Valle2) -> tuple[int, int]:
    """Positions whose keys are in the cache, of all rows, and the bytes of all that is kept of them."""
    caches = [buffer.read() for buffer in tts.model.ar.caches.values()]
    filled = int(caches[0][:, 0].any(axis=2).sum())
    each = sum(cache.shape[1] * cache.shape[3] * cache.itemsize for cache in caches)
    return filled, filled * each


def soak(tts: Valle2, plan: Plan) -> Iterator[int | None]:
    """Requests of random words and lengths, one after another -> resident bytes after each."""
    import numpy as np

    draws = np.random.default_rng(plan.seed)
    words, voice = plan.text.split(), tts.voice(tts.default_voice())
    for index in range(plan.requests):
        said = draws.choice(words, int(draws.integers(1, len(words) + 1)))
        frames = int(draws.integers(*LENGTHS))
        tts.synthesize(" ".join(said), voice, chosen(tts, plan.seed + index, frames))
        yield resident_bytes()


def main(plan: dict[str, Any]) -> None:
    """Print the notes as a line of JSON."""
    from dataclasses import asdict

    print(json.dumps(asdict(observe(Plan(**plan)))))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
