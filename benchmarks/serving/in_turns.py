"""`valle2` with an engine in which first chunks have no precedence, for comparison.

    python -m valle2.benchmarks.serving.in_turns serve --model demo

Requests take turns with the NAR and the codec, and get free rows in the order in which they came.
"""

from __future__ import annotations

import sys

from valle2.runtime.cli.main import main
from valle2.runtime.generation.engine import SynthesisEngine
from valle2.runtime.generation.playback import Playback


class InTurns(Playback):
    """A request is due at its last turn: the one that has waited longest goes first."""

    @classmethod
    def of(cls, now: float, whole: bool) -> InTurns:
        return cls(now, whole)

    def goes_before(self, other: Playback) -> bool:
        """Steps delay no turn."""
        return False

    def take_turn(self, now: float) -> None:
        self.due = now

    def add(self, seconds: float, now: float) -> None:
        """What the listener has left to play changes nothing."""


if __name__ == "__main__":
    SynthesisEngine.playback = InTurns
    sys.exit(main())
