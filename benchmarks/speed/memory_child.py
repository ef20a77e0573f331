"""The child process of `bench memory`: it loads a model, speaks, and prints seconds and bytes as JSON.

Its argument is a `Plan` as JSON; `memory` explains the figures. The runtime is imported inside `observe`,
because the import is timed. This module itself imports only a small part of the standard library.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from valle2.benchmarks.process_memory import peak_bytes, resident_bytes

if TYPE_CHECKING:
    from valle2.runtime import Settings, Valle2

SECOND = 75
LENGTHS = 10, 2 * SECOND


@dataclass(frozen=True, slots=True)
class Plan:
    """What to load and speak.

    Args:
        slots: rows decoded side by side. frames: length of a request; 0 lets `<eos>` end it.
        filled: decode with all rows at once after the first request. requests: of random length, after that.
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
class Observed:
    """Seconds, resident bytes and peak bytes, by moment: `import`, `load`, `first`, `slots`.

    positions: filled cache positions of all rows after `slots`. cache_bytes: their size. sizes: resident
    bytes after each request of random length.
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


def observe(plan: Plan) -> Observed:
    """Carry out the plan in this process."""
    observed = Observed()
    with observed.moment("import"):
        from valle2.runtime import Valle2
    with observed.moment("load"):
        tts = Valle2.load(plan.model, precision=plan.precision, slots=plan.slots, threads=plan.threads)
    with observed.moment("first"):
        speak(tts, plan, 1, min(plan.frames, SECOND))
    if plan.filled:
        with observed.moment("slots"):
            speak(tts, plan, plan.slots, plan.frames)
        observed.positions, observed.cache_bytes = cache_filled(tts)
    observed.sizes = list(soak(tts, plan))
    return observed


def speak(tts: Valle2, plan: Plan, count: int, frames: int) -> None:
    """Speak the plan's text `count` times in one batch."""
    from valle2.runtime import Request

    voice = tts.voice(tts.default_voice())
    tts.synthesize_batch(
        [Request(plan.text, voice, settings_for(tts, plan.seed + i, frames)) for i in range(count)]
    )


def settings_for(tts: Valle2, seed: int, frames: int) -> Settings:
    """The model's own sampling settings with this seed and length."""
    from dataclasses import replace

    return replace(tts.settings(), seed=seed, max_frames=frames, loop_frames=0, retries=0)


def cache_filled(tts: Valle2) -> tuple[int, int]:
    """Filled cache positions of all rows, and the bytes of their keys and values."""
    from valle2.benchmarks.stages import ARStage

    caches = list(ARStage(tts).caches().values())
    filled = int(caches[0][:, 0].any(axis=2).sum())
    each = sum(cache.shape[1] * cache.shape[3] * cache.itemsize for cache in caches)
    return filled, filled * each


def soak(tts: Valle2, plan: Plan) -> Iterator[int | None]:
    """Speak requests of random words and lengths one after another; yield the resident bytes after each."""
    import numpy as np

    draws = np.random.default_rng(plan.seed)
    words, voice = plan.text.split(), tts.voice(tts.default_voice())
    for index in range(plan.requests):
        spoken = draws.choice(words, int(draws.integers(1, len(words) + 1)))
        frames = int(draws.integers(*LENGTHS))
        tts.synthesize(" ".join(spoken), voice, settings_for(tts, plan.seed + index, frames))
        yield resident_bytes()


def main(plan: dict[str, Any]) -> None:
    """Print what was observed as one line of JSON."""
    from dataclasses import asdict

    print(json.dumps(asdict(observe(Plan(**plan)))))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
