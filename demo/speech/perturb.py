"""Make more voices: play shards slower and faster, `python -m demo.speech.perturb --work W`.

Writes W/speech/SOURCE-SPEED-*.npz. A voice with a few hundred utterances would be learnt by heart without
these. Existing shards and held-out shards are skipped.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import soxr

from demo.speech.shards import is_held_out, read_rows
from demo.speech.speak import HOP, RATE, write_shard

SPEEDS = {"kokoro": (0.94, 1.07), "mixed": (0.88, 0.94, 1.07, 1.14)}
"""Source -> its speeds. Pitch and formants change with the speed, so each speed gives a new voice."""


def played(path: Path, speed: float) -> list[dict[str, Any]]:
    """A shard's utterances as `write_shard` takes them, at another speed and under another voice's name."""
    items = []
    for voice, text, ids, durations, audio in read_rows(path):
        sound = soxr.resample(audio.astype(np.float32) / 32768, RATE * speed, RATE)
        sound = np.clip(sound[: len(sound) // HOP * HOP] * 32767, -32767, 32767).astype(np.int16)
        items.append(
            {
                "text": text,
                "voice": f"{voice}-{speed}",
                "ids": ids,
                "durations": (durations / speed).astype(np.float32),
                "audio": sound,
            }
        )
    return items


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("demo/work"))
    folder = parser.parse_args().work / "speech"
    for path in sorted(path for source in SPEEDS for path in folder.glob(f"{source}-????.npz")):
        source, number = path.stem.split("-")
        for speed in SPEEDS[source]:
            target = folder / f"{source}-{speed}-{number}.npz"
            if not is_held_out(path) and not target.exists():
                write_shard(target, played(path, speed))


if __name__ == "__main__":
    main()
