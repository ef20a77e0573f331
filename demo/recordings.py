"""Recordings of the voices kept out of training: `python demo/recordings.py --work W --out demo/unseen`.

Of each voice of `speak.py unseen` the first utterance that makes a prompt, as NAME.flac with its words in
NAME.txt, for
`valle2 bench quality --sweep unseen --held-out demo/unseen`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import soundfile
from assemble import PROMPT_FRAMES
from data import read_shard
from speak import RATE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("demo/work"))
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    found = set[str]()
    for item in read_shard(args.work / "speech" / "unseen-0000.npz"):
        if item.voice not in found and PROMPT_FRAMES[0] <= item.frames <= PROMPT_FRAMES[1]:
            found.add(item.voice)
            soundfile.write(args.out / f"{item.voice}.flac", item.audio, RATE)
            (args.out / f"{item.voice}.txt").write_text(item.text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
