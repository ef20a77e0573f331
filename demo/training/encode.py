"""Encode the training speech to codes, one file a shard: `python -m demo.training.encode --work W`."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from demo.speech.shards import read_shard, shards, write_codes
from demo.training.train_codec import HOP, load_codec
from valle2.export.codecs.demo import CodecEncoder

GROUP = 32


@torch.no_grad()
def encode(encoder: CodecEncoder, sounds: list[np.ndarray]) -> list[np.ndarray]:
    """Encode int16 waves in padded groups of similar length."""
    order = sorted(range(len(sounds)), key=lambda i: len(sounds[i]))
    out: list[np.ndarray] = [np.zeros(0)] * len(sounds)
    for start in range(0, len(order), GROUP):
        part = order[start : start + GROUP]
        audio = np.zeros((len(part), len(sounds[part[-1]])), np.float32)
        for row, index in enumerate(part):
            audio[row, : len(sounds[index])] = sounds[index] / 32768
        codes = encoder(torch.from_numpy(audio)).numpy()
        for row, index in enumerate(part):
            out[index] = codes[row, : len(sounds[index]) // HOP].astype(np.int16)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("demo/work"))
    work = parser.parse_args().work
    (work / "codes").mkdir(exist_ok=True)
    encoder = load_codec(work / "codec.pt").encoder.eval()
    for path in shards(work):
        target = work / "codes" / path.name
        if not target.exists():
            codes = encode(encoder, [item.audio for item in read_shard(path)])
            write_codes(target, codes)


if __name__ == "__main__":
    main()
