"""The progress of a TensorRT build in percent, computed from its nested phases.

It never falls, and every multiple of ten is reported once.
"""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock
from typing import Any

STEP = 10


class Percent:
    """Calls `report` with 10, 20, ... as nested phases of known numbers of steps complete.

    TensorRT may call the methods from several threads.
    """

    def __init__(self, report: Callable[[int], None]) -> None:
        self.report, self.reported, self.lock = report, 0, Lock()
        self.names: list[str] = []
        self.done: list[int] = []
        self.steps: list[int] = []

    def start(self, name: str, parent: str | None, steps: int) -> None:
        with self.lock:
            self.end_from(self.names.index(parent) + 1 if parent in self.names else 0)
            self.names.append(name)
            self.done.append(0)
            self.steps.append(max(1, steps))

    def complete(self, name: str, step: int) -> None:
        """Note that a step of a phase is done. Phases that are open at one time have different names."""
        with self.lock:
            if name not in self.names:
                return
            level = self.names.index(name)
            self.end_from(level + 1)
            self.done[level] = step + 1
            passed = int(100 * self.fraction()) // STEP * STEP
            if passed > self.reported:
                self.reported = passed
                self.report(passed)

    def finish(self, name: str) -> None:
        with self.lock:
            if name in self.names:
                self.end_from(self.names.index(name))

    def end_from(self, level: int) -> None:
        """End the phases from this depth on."""
        del self.names[level:], self.done[level:], self.steps[level:]

    def fraction(self) -> float:
        found, share = 0.0, 1.0
        for done, steps in zip(self.done, self.steps, strict=True):
            share /= steps
            found += share * done
        return found


def make_monitor(trt: Any, report: Callable[[int], None]) -> Any:
    """A progress monitor for TensorRT that drives a `Percent`, or None for a release without monitors."""
    if not hasattr(trt, "IProgressMonitor"):
        return None
    percent = Percent(report)

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
