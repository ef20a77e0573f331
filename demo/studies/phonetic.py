"""Measure what codebook 0 says about the spoken symbols: `python -m demo.studies.phonetic --work W`.

For the held-out shard of each source it prints two measures. The first is the share of frames whose symbol
the codec's classifier reads from the code of codebook 0. The second is the mean distance of the rebuilt log
mels to the true ones, from codebook 0 alone and from all eight. When codebook 0 is phonetic only for trained
voices, an AR model must guess how an unseen speaker's sounds are coded.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from demo.speech.shards import Utterance, is_held_out, read_shard, shards
from demo.training.train_codec import CodecTrainer, load_codec
from valle2.benchmarks.report.tables import markdown


@torch.no_grad()
def judged(codec: CodecTrainer, item: Utterance) -> tuple[float, float, float]:
    """Share of frames told right, mel distance of codebook 0 alone, of all."""
    audio, tables = torch.from_numpy(item.wave)[None], codec.decoder_tables()
    codes, mel = codec.encoder(audio)[0], codec.encoder.mel(audio)
    vectors = torch.stack([tables[book][codes[:, book]] for book in range(len(tables))])
    right = codec.classify(vectors[0]).argmax(dim=1).numpy() == item.labels()
    alone, whole = (codec.decoder(x[None]) for x in (vectors[0], vectors.sum(dim=0)))
    return right.mean(), *((x - mel).abs().mean().item() for x in (alone, whole))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("demo/work"))
    parser.add_argument("--name", default="codec", help="checkpoint's name")
    parser.add_argument("--count", type=int, default=60, help="utterances a source")
    args = parser.parse_args()
    codec, rows = load_codec(args.work / f"{args.name}.pt").eval(), list[list[object]]()
    for path in shards(args.work):
        if is_held_out(path):
            found = [judged(codec, item) for item in read_shard(path)[: args.count]]
            rows.append([path.stem.split("-")[0], *(round(float(x), 3) for x in np.mean(found, axis=0))])
    print(markdown(["source", "symbol told", "mel, codebook 0", "mel, all"], rows))


if __name__ == "__main__":
    main()
