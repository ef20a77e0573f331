"""Seconds per stage of one request."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(slots=True)
class Timings:
    """Seconds per stage of one request, AR steps, and seconds of audio made.

    Steps that were shared with other requests count in full. first_audio: from its start to the first
    playable sample.
    """

    prefill: float = 0.0
    ar: float = 0.0
    nar: float = 0.0
    codec: float = 0.0
    total: float = 0.0
    first_audio: float = 0.0
    steps: int = 0
    audio: float = 0.0

    @property
    def rtf(self) -> float:
        """Compute time over audio time."""
        return self.total / self.audio if self.audio else 0.0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the seconds of a block to a stage."""
        began = time.perf_counter()
        try:
            yield
        finally:
            setattr(self, name, getattr(self, name) + time.perf_counter() - began)
