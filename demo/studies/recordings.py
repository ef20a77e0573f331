"""Write recordings of the held-out voices: `python -m demo.studies.recordings --work W --out demo/unseen`.

Takes the first utterances of each voice of the source `unseen` that fit a prompt. Writes NAME/NUMBER.flac
and its words as NAME/NUMBER.txt, for `valle2 bench quality --sweep unseen prompts --held-out demo/unseen`.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import soundfile

from demo.model.assemble import PROMPT_FRAMES
from demo.speech.shards import read_shard
from demo.speech.speak import RATE

EACH = 3
"""Recordings per voice."""


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
