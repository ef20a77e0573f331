"""Measure the warning of two speakers: `python -m demo.studies.two_speakers --people P --shards FILE ...`.

`P` holds a folder of sound files for each person; the shards are those of `demo.speech.speak`. For several
limits it prints in how many recordings `valle2.runtime.audio.speakers` hears two speakers: in recordings of
one, in two recordings of one speaker joined, in those of two speakers joined (A B), and where the second
speaks inside the first one's recording (A B A).
"""

from __future__ import annotations

import argparse
import random
from collections import defaultdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from demo.speech.shards import read_shard
from demo.speech.speak import RATE
from valle2.benchmarks.quality.speakers import recordings, sound_at
from valle2.benchmarks.report.tables import markdown
from valle2.runtime.audio.levels import FRAME_SECONDS, frame_levels, speech_span
from valle2.runtime.audio.speakers import OTHER_SPEAKER, most_different

Sound = NDArray[np.float64]
LIMITS = (7.0, 8.0, OTHER_SPEAKER, 10.0, 12.0)
JOINED_SECONDS, SECOND_SECONDS, LONGEST_SECONDS = (1.5, 9.0), 3.0, 20.0
"""Length of a recording that is joined with another; of the second speaker's part inside the first one's; of
any recording."""


def speech_of(sound: Sound) -> Sound:
    """A recording without its silent ends, at one level."""
    first, last = (round(frame * FRAME_SECONDS * RATE) for frame in speech_span(frame_levels(sound, RATE)))
    kept = sound[first:last]
    return np.asarray(kept / np.sqrt((kept**2).mean()))


def read_people(folder: Path) -> dict[str, list[Sound]]:
    """The recordings of each person at the rate of the shards."""
    found = defaultdict[str, list[Sound]](list)
    for path in recordings(folder):
        found[path.parent.name].append(sound_at(path, RATE))
    return dict(found)


def read_voices(shards: list[Path]) -> dict[str, list[Sound]]:
    """The utterances of each voice of some shards."""
    found = defaultdict[str, list[Sound]](list)
    for path in shards:
        for item in read_shard(path):
            found[item.voice].append(item.wave.astype(np.float64))
    return dict(found)


def recordings_of(speakers: dict[str, list[Sound]], joined: int) -> dict[str, list[Sound]]:
    """Recordings of each kind. joined: how many of each kind but the first."""
    draw = random.Random(0)
    low, high = JOINED_SECONDS
    fit = {name: [one for one in each if low < len(one) / RATE < high] for name, each in speakers.items()}
    names = [name for name, each in fit.items() if len(each) > 1]
    made = {"one speaker": [one for each in speakers.values() for one in each]}
    made |= {"the same, two files": [], "A B": [], "A B A": []}
    for _ in range(joined):
        first, second = draw.sample(names, 2)
        one, again = draw.sample(fit[first], 2)
        other = draw.choice(fit[second])
        half = len(one) // 2
        made["the same, two files"].append(np.concatenate([one, again]))
        made["A B"].append(np.concatenate([one, other]))
        made["A B A"].append(np.concatenate([one[:half], other[: int(SECOND_SECONDS * RATE)], one[half:]]))
    return made


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--people", type=Path, help="a folder of sound files for each person")
    parser.add_argument("--shards", type=Path, nargs="+", default=[])
    parser.add_argument("--joined", type=int, default=300, help="recordings of each kind that are made")
    args = parser.parse_args()
    sources = {
        "people": read_people(args.people) if args.people else {},
        "teachers": read_voices(args.shards),
    }
    rows = []
    for source, speakers in sources.items():
        if not speakers:
            continue
        spoken = {name: [*map(speech_of, each)] for name, each in speakers.items()}
        usable = {
            name: [one for one in each if len(one) / RATE < LONGEST_SECONDS] for name, each in spoken.items()
        }
        for kind, sounds in recordings_of(usable, args.joined).items():
            scores = np.array([most_different(sound, RATE, RATE / 2)[0] for sound in sounds])
            # a recording that is too short for two voices is not counted
            scores = scores[scores > 0]
            found = [100 * float((scores > limit).mean()) if len(scores) else 0.0 for limit in LIMITS]
            shares = [f"{share:.1f}" for share in found]
            rows.append([f"{source}, {len(speakers)} voices", kind, len(scores), *shares])
    print(markdown(["of", "recording", "number", *(f"above {limit:g}, %" for limit in LIMITS)], rows))


if __name__ == "__main__":
    main()
