"""When the listener of a request needs audio next. The engine serves the request that is due first."""

from __future__ import annotations

from dataclasses import dataclass

FIRST_CHUNK_SECONDS = 0.1
"""A first chunk is due this long after its request entered the engine."""
WHOLE_SECONDS = 2.0
"""A request that nobody hears before its end is due this long after its last turn."""


@dataclass(slots=True, eq=False)
class Playback:
    """The deadline of one request's next audio.

    A stream is due when its listener has played all audio given out so far. Its slack is the time until
    then. A stream with slack is due in the future, so a new request's first chunk goes before it. A stream
    that is about to run dry goes before that first chunk. A whole request yields to both. No request waits
    for ever, because its deadline stays where it is while those of newer requests are later.

    Args:
        due: seconds on the engine's clock. whole: the listener hears nothing before the request's end.
        playing: audio has been given out.
    """

    due: float = 0.0
    whole: bool = False
    playing: bool = False

    @classmethod
    def of(cls, now: float, whole: bool) -> Playback:
        """The deadline of a request that enters the engine now."""
        return cls(now + (WHOLE_SECONDS if whole else FIRST_CHUNK_SECONDS), whole)

    @property
    def waits(self) -> bool:
        """Does somebody wait for the first audio?"""
        return not self.whole and not self.playing

    def goes_before(self, other: Playback) -> bool:
        """May this request's AR steps delay a call of the NAR or the codec for the other one?

        A whole request's steps delay nobody: they are as many as its sentence needs.
        """
        return not self.whole and self.due < other.due

    def take_turn(self, now: float) -> None:
        """Take note of a turn to run the NAR or the codec. Whole requests share what streams leave."""
        if self.whole:
            self.due = now + WHOLE_SECONDS

    def add(self, seconds: float, now: float) -> None:
        """Take note of audio that is given out now. A listener who has run dry plays it at once."""
        if self.whole or seconds <= 0:
            return
        self.due = (max(self.due, now) if self.playing else now) + seconds
        self.playing = True
