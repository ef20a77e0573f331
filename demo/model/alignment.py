"""Make the table for the times of words: `python -m demo.model.alignment --work W --out W/model/text`.

The table says how often each code of codebook 0 stands where the teacher spoke a symbol, and how long the
symbol lasts. It counts over the training speech that has been encoded. The first shard of each source and the
voices of `unseen` are held out. The table is no weight of the model. It lies in `text/` and is copied into
the bundle (see `valle2.runtime.generation.alignment`).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from demo.speech.shards import Array, Utterance, is_held_out, read_codes, read_shard, shards, symbols
from valle2.engine.bundle.contract import CODEBOOK_SIZE
from valle2.runtime.generation.alignment import FILE, STEPS_PER_NAT

PRIOR_FRAMES = 50.0
"""Frames of the codes of all symbols that are added to each symbol's own."""


def is_learnt(path: Path) -> bool:
    """Is a shard encoded, and neither held out nor of voices for tests alone?"""
    kept = is_held_out(path) or path.stem.startswith("unseen")
    return not kept and (path.parents[1] / "codes" / path.name).exists()


def pairs(path: Path) -> list[tuple[Utterance, Array]]:
    """The utterances of a shard with their codes (T, 8), which `demo.training.encode` has made."""
    codes = read_codes(path.parents[1] / "codes" / path.name)
    return list(zip(read_shard(path), codes, strict=True))


def table(items: list[tuple[Utterance, Array]]) -> dict[str, Array]:
    """The tensors of `AlignmentTable` for the symbols that occur."""
    counts = np.zeros((len(symbols()), CODEBOOK_SIZE))
    times, frames = np.zeros(len(symbols())), np.zeros(len(symbols()))
    for item, codes in items:
        labels = item.labels()[: len(codes)]
        np.add.at(counts, (labels, codes[: len(labels), 0].astype(np.int64)), 1)
        np.add.at(times, item.ids, 1)
        np.add.at(frames, item.ids, np.diff(item.ends, prepend=0.0))
    ids = np.flatnonzero(times)
    prior = (counts.sum(axis=0) + 1) / (counts.sum() + CODEBOOK_SIZE)
    found = counts[ids] + PRIOR_FRAMES * prior
    costs = -np.log(found / found.sum(axis=1, keepdims=True))
    return {
        "ids": ids.astype(np.int32),
        "costs": np.clip(np.round(STEPS_PER_NAT * costs), 0, 255).astype(np.uint8),
        "frames": (frames[ids] / times[ids]).astype(np.float32),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("demo/work"))
    parser.add_argument("--out", type=Path, required=True, help="folder `text` of a checkpoint")
    args = parser.parse_args()
    learnt = [path for path in shards(args.work) if is_learnt(path)]
    if not learnt:
        raise SystemExit(f"{args.work} has no encoded speech; run demo.speech.speak and demo.training.encode")
    made = table([pair for path in learnt for pair in pairs(path)])
    args.out.mkdir(parents=True, exist_ok=True)
    save_file(made, str(args.out / Path(FILE).name))
    print(f"{len(made['ids'])} symbols from {len(learnt)} shards")


if __name__ == "__main__":
    main()
