"""Recordings of the voices kept out of training: `python demo/recordings.py --work W --out demo/unseen`.

Of each voice of `speak.py unseen` the first utterances that make a prompt, as NAME/NUMBER.flac with their
words in NAME/NUMBER.txt, for `valle2 bench quality --sweep unseen prompts --held-out demo/unseen`.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import soundfile
from assemble import PROMPT_FRAMES
from data import read_shard
from speak import RATE

EACH = 3
"""Recordings of a voice."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("demo/work"))
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    found = Counter[str]()
    for item in read_shard(args.work / "speech" / "unseen-0000.npz"):
        if found[item.voice] < EACH and PROMPT_FRAMES[0] <= item.frames <= PROMPT_FRAMES[1]:
            path = args.out / item.voice / f"{found[item.voice]}.flac"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, item.audio, RATE)
            path.with_suffix(".txt").write_text(item.text + "\n", encoding="utf-8")
            found[item.voice] += 1


if __name__ == "__main__":
    main()
