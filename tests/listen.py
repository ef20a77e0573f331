"""`python -m tests.listen FILE TEXT`: transcribes a file; status 1 if it lacks too many words of TEXT."""

from __future__ import annotations

import sys
from pathlib import Path

import soundfile

from valle2.benchmarks.quality.judges import Judges
from valle2.benchmarks.quality.word_errors import words

ENOUGH = 0.75
"""The share of the text's words that a transcript must have."""


def heard(path: Path) -> str:
    """Transcribe an audio file."""
    audio, rate = soundfile.read(path, dtype="float32")
    return Judges().transcribe(audio, rate)


def share_heard(transcript: str, text: str) -> float:
    """The share of the text's distinct words that are in the transcript."""
    expected = set(words(text).split())
    return len(expected & set(words(transcript).split())) / len(expected)


if __name__ == "__main__":
    transcript = heard(Path(sys.argv[1]))
    share = share_heard(transcript, sys.argv[2])
    print(f"heard {share:.0%} of the words: {transcript}")
    sys.exit(share < ENOUGH)
