"""Answers what a dead or hung engine thread would leave open. Runs in a thread of its own; knows no HTTP.

A native call that hangs cannot be ended from outside. The worker then fails for good, and its process ends,
so that a supervisor starts it again.
"""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from valle2.runtime.server.worker import Worker

log = logging.getLogger("valle2.server")
POLL_SECONDS = 0.25


class Watchdog:
    """Looks at a worker every `POLL_SECONDS` until the worker has stopped or failed.

    It ends requests and calls that exceed their time, whatever the engine thread does. It declares the worker
    failed if that thread has died, or has not turned for `Limits.step_seconds`.
    """

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.poll_seconds = min(POLL_SECONDS, worker.limits.step_seconds / 4)
        self.thread = threading.Thread(target=self.run, name="valle2-watchdog", daemon=True)
        self.turn = 0.0
        self.stuck_seconds = 0.0

    def run(self) -> None:
        """Check until the worker has ended."""
        before = time.perf_counter()
        while not self.worker.ended:
            time.sleep(self.poll_seconds)
            now = time.perf_counter()
            # the time of a stopped or suspended process does not count
            passed, before = min(now - before, 2 * self.poll_seconds), now
            try:
                self.check_thread(passed)
                self.check_time(now)
            except Exception:
                log.exception("the watchdog failed at one check")

    def check_thread(self, passed: float) -> None:
        """Fail the worker if its thread is dead or hangs. passed: seconds since the last check."""
        worker = self.worker
        if not worker.thread.is_alive():
            return worker.give_up("the engine thread has died")
        if not worker.serving or worker.last_turn != self.turn:
            self.turn, self.stuck_seconds = worker.last_turn, 0.0
            return
        self.stuck_seconds += passed
        if self.stuck_seconds > worker.limits.step_seconds:
            worker.give_up(f"the engine thread hangs: no step ended for {self.stuck_seconds:.3g} s")

    def check_time(self, now: float) -> None:
        """End requests and calls whose time is over."""
        worker = self.worker
        for reply in list(worker.admission.replies):
            error = worker.exceeded_time(reply, now)
            if error:
                worker.close_reply(reply, error)
        worker.end_late_calls(now)


def settle(future: Future[Any], result: Any = None, error: Exception | None = None) -> None:
    """Set the result or the exception of a future, unless it has one or was cancelled."""
    with suppress(InvalidStateError):
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)
