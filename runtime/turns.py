"""Lets several threads use one engine, which is made for one thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Turns:
    """One thread at a time uses the engine, and all threads share its steps.

    A step advances the requests of every thread. A thread that asks for a step while another runs one waits
    for that step instead of running a second. Adding a request goes before the next step, so that no thread
    waits for another thread's whole request.
    """

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.user = 0  # the thread that uses the engine, 0 for none
        self.asking = 0  # threads that wait in `alone`

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait for the step under way, then keep the engine for the block."""
        try:
            with self.changed:
                self.asking += 1
                try:
                    while self.user:
                        self.changed.wait()
                    self.user = threading.get_ident()
                finally:
                    self.asking -= 1
                    self.changed.notify_all()  # an interrupt may leave threads that wait for this one
            yield
        finally:
            self.end_turn()

    def step(self, work: Callable[[], None]) -> None:
        """Do the work of one step, or wait until the thread that uses the engine has done its own."""
        try:
            with self.changed:
                if self.user or self.asking:
                    self.changed.wait()
                    return
                self.user = threading.get_ident()
            work()
        finally:
            self.end_turn()

    def try_alone(self, work: Callable[[], None]) -> None:
        """Do the work now if no thread uses the engine, else do nothing. Never waits."""
        if not self.changed.acquire(blocking=False):
            return
        try:
            if not self.user:
                work()
            self.changed.notify_all()
        finally:
            self.changed.release()

    def end_turn(self) -> None:
        """Let the next thread use the engine. Does nothing if this thread does not use it."""
        with self.changed:
            if self.user == threading.get_ident():
                self.user = 0
                self.changed.notify_all()
