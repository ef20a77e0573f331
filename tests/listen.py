"""`python -m tests.listen FILE TEXT`: what is heard in a recording; status 1 if too few words are TEXT's."""

from __future__ import annotations

import sys
from pathlib import Path

import soundfile

from valle2.benchmarks.quality.judges import Judges, words

ENOUGH = 0.75


def heard(path: Path) -> str:
    """The transcript of a file."""
    audio, rate = soundfile.read(path, dtype="float32")
    return Judges().transcribe(audio, rate)


def share_heard(transcript: str, text: str) -> float:
    """Share of the text's different words that the transcript holds."""
    expected = set(words(text).split())
    return len(expected & set(words(transcript).split())) / len(expected)


if __name__ == "__main__":
    transcript = heard(Path(sys.argv[1]))
    share = share_heard(transcript, sys.argv[2])
    print(f"heard {share:.0%} of the words: {transcript}")
    sys.exit(share < ENOUGH)
