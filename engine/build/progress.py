"""How far a build is, from TensorRT's nested phases: every tenth once, never falling."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import Any

STEP = 10


class Percent:
    """Phases within phases, each of so many steps. `say` is called with 10, 20, ... as they are passed.

    TensorRT may call from several threads.
    """

    def __init__(self, say: Callable[[int], None]) -> None:
        self.say, self.said, self.lock = say, 0, Lock()
        self.names: list[str] = []
        self.done: list[int] = []
        self.steps: list[int] = []

    def start(self, name: str, parent: str | None, steps: int) -> None:
        with self.lock:
            self.leave(self.names.index(parent) + 1 if parent in self.names else 0)
            self.names.append(name)
            self.done.append(0)
            self.steps.append(max(1, steps))

    def complete(self, name: str, step: int) -> None:
        """A step of a phase is over; phases are known by name within their parents."""
        with self.lock:
            if name not in self.names:
                return
            level = self.names.index(name)
            self.leave(level + 1)
            self.done[level] = step + 1
            passed = int(100 * self.fraction()) // STEP * STEP
            if passed > self.said:
                self.said = passed
                self.say(passed)

    def finish(self, name: str) -> None:
        with self.lock:
            if name in self.names:
                self.leave(self.names.index(name))

    def leave(self, level: int) -> None:
        """Forget the phases from this depth on."""
        del self.names[level:], self.done[level:], self.steps[level:]

    def fraction(self) -> float:
        found, share = 0.0, 1.0
        for done, steps in zip(self.done, self.steps, strict=True):
            share /= steps
            found += share * done
        return found


def make_monitor(trt: Any, say: Callable[[int], None]) -> Any:
    """TensorRT's progress monitor around a `Percent`, None for a release without one."""
    if not hasattr(trt, "IProgressMonitor"):
        return None
    percent = Percent(say)

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            percent.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            percent.complete(phase_name, step)
            return True

        def phase_finish(self, phase_name: str) -> None:
            percent.finish(phase_name)

    return Monitor()
