"""Writes the codes that the embedded model speaks, to compare Pythons, runtimes and machines.

    python tests/speak_codes.py OUT.npz
    python tests/speak_codes.py --same ONE.npz OTHER.npz   # status 1 if they differ

It needs an installed valle2 and no other part of the tests, so it runs where torch and pytest are absent.
"""

from __future__ import annotations

import sys

import numpy as np
from numpy.typing import NDArray

from valle2.runtime import Settings, Valle2

SENTENCES = (
    "Good morning.",
    "The quick brown fox jumps over the lazy dog.",
    "Dr. Smith paid 5 dollars on 3 May.",
)
"""Several lengths, and text that is normalised."""
PRECISION = "fp32"
"""What 8-bit products make differs between processors."""


def speak_codes() -> dict[str, NDArray[np.int64]]:
    """Codes (T, Q) int64 of each sentence, greedy and drawn."""
    tts = Valle2.load("demo", precision=PRECISION)
    found = {}
    for seed, text in enumerate(SENTENCES):
        for name, top_p in (("greedy", 0.0), ("drawn", 0.9)):
            settings = Settings(top_p=top_p, seed=seed, max_frames=200)
            found[f"{seed}_{name}"] = tts.synthesize(text, tts.voice("amber"), settings).codes
    return found


def differing(one: str, other: str) -> list[str]:
    """Names of sentences whose codes are not the same in two files."""
    ours, theirs = np.load(one), np.load(other)
    names = sorted({*ours, *theirs})
    return [name for name in names if not np.array_equal(ours.get(name), theirs.get(name))]


if __name__ == "__main__":
    if sys.argv[1] == "--same":
        sys.exit(f"codes differ: {found}" if (found := differing(*sys.argv[2:])) else 0)
    np.savez(sys.argv[1], allow_pickle=False, **speak_codes())
