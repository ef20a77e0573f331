"""Does the NAR keep the prompt's voice: `python -m demo.studies.timbre --work W --bundle B`.

The mean over an utterance of the vectors of books 1 to 7 says more about its voice than about its words. The
NAR gets the true codebook 0 of a held-out utterance, and the voice's next utterance as the prompt. The table
gives two squared distances to the true mean: of the NAR's mean, and of the prompt's mean. Both are shares of
the distance between the true mean and the mean of all. A NAR that copies the voice has the smaller distance.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from demo.speech.shards import is_held_out, read_codes, read_shard, shards
from demo.training.refine import Array, pairs, refine_shard
from demo.training.train_codec import load_codec
from valle2.benchmarks.report.tables import markdown
from valle2.export.codecs.common import embedded
from valle2.runtime import Valle2


def voices(tables: Tensor, codes: list[Array]) -> Array:
    """The mean vector (D,) of each utterance; tables (8, 1024, D), codes (T, 8)."""
    found = [embedded(torch.from_numpy(c[None].astype(np.int64)), tables) for c in codes]
    return np.stack([vectors[0].mean(dim=0).numpy() for vectors in found])


def missed(guess: Array, true: Array, middle: Array) -> float:
    """Squared distance of rows (N, D), as a share of that to the middle (D,)."""
    return float(np.square(guess - true).sum() / np.square(true - middle).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("demo/work"))
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--count", type=int, default=48, help="utterances a source")
    args = parser.parse_args()
    tts = Valle2.load(args.bundle, threads=1)
    tables = load_codec(args.work / "codec.pt").decoder_tables()
    tables[0] = 0
    found = dict[str, list[Array]]()
    for path in shards(args.work):
        if is_held_out(path):
            items = read_shard(path)[: args.count]
            codes = read_codes(args.work / "codes" / path.name)[: args.count]
            true, guess = (voices(tables, c) for c in (codes, refine_shard(tts, items, codes)))
            which = np.array(pairs(items))
            found[path.stem.split("-")[0]] = [true[which[:, 0]], guess[which[:, 0]], true[which[:, 1]]]
    middle = np.concatenate([true for true, _, _ in found.values()]).mean(axis=0)
    rows = [
        [source, len(true), *(round(missed(other, true, middle), 3) for other in others)]
        for source, (true, *others) in found.items()
    ]
    print(markdown(["source", "utterances", "missed by the NAR", "by the prompt's own mean"], rows))


if __name__ == "__main__":
    main()
