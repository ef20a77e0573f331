"""Encode the training speech to codes, one file a shard: `python -m demo.training.encode --work W`.

Beside the codes of the clean speech in W/codes, it writes those of the same speech as people would record it
in W/codes-worn. AR and NAR learn from them what prompts are like.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from demo.speech.recording import worn
from demo.speech.shards import WORN, read_shard, shards, write_codes
from demo.training.train_codec import HOP, load_codec
from valle2.export.codecs.demo import CodecEncoder

GROUP = 32


@torch.no_grad()
def encode(encoder: CodecEncoder, sounds: list[np.ndarray]) -> list[np.ndarray]:
    """Encode float32 waves in padded groups of similar length."""
    order = sorted(range(len(sounds)), key=lambda i: len(sounds[i]))
    out: list[np.ndarray] = [np.zeros(0)] * len(sounds)
    for start in range(0, len(order), GROUP):
        part = order[start : start + GROUP]
        audio = np.zeros((len(part), len(sounds[part[-1]])), np.float32)
        for row, index in enumerate(part):
            audio[row, : len(sounds[index])] = sounds[index]
        codes = encoder(torch.from_numpy(audio)).numpy()
        for row, index in enumerate(part):
            out[index] = codes[row, : len(sounds[index]) // HOP].astype(np.int16)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("demo/work"))
    work = parser.parse_args().work
    encoder = load_codec(work / "codec.pt").encoder.eval()
    for folder in ("codes", WORN):
        (work / folder).mkdir(exist_ok=True)
        for path in shards(work):
            target = work / folder / path.name
            if not target.exists():
                sounds = [item.wave for item in read_shard(path)]
                if folder == WORN:
                    rng = np.random.default_rng(list(path.stem.encode()))
                    sounds = [worn(sound, rng) for sound in sounds]
                write_codes(target, encode(encoder, sounds))


if __name__ == "__main__":
    main()
