"""Measure how far the teachers' durations lag the sound: `python -m demo.studies.label_delay --work W`.

For every voice and shift, a linear classifier of the symbol is fitted to mel frames of some utterances and
judged on others. The right shift is the most accurate one. LABEL_DELAY (demo/speech/shards.py) is already
subtracted, so a correct LABEL_DELAY gives 0.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from demo.speech.shards import Array, Utterance, read_shard, shards, symbols
from valle2.export.codecs.demo import CodecConfig, LogMel

SHIFTS = np.arange(-6.0, 6.1, 1.5)
UTTERANCES, FITTED = 60, 45
RIDGE = 0.1


@torch.no_grad()
def features(mel: LogMel, item: Utterance) -> Array:
    """Log-mel frames and a constant: (T, mels + 1)."""
    frames = mel(torch.from_numpy(item.wave)[None])[0].numpy()
    return np.concatenate([frames, np.ones((len(frames), 1))], axis=1)


def accuracy(inputs: list[Array], labels: list[Array]) -> float:
    """Share of the other utterances' frames whose symbol a ridge regression on the first ones predicts."""
    seen, known = np.concatenate(inputs[:FITTED]), np.concatenate(labels[:FITTED])
    weights = np.linalg.solve(
        seen.T @ seen + RIDGE * np.eye(seen.shape[1]), seen.T @ np.eye(len(symbols()))[known]
    )
    guess = (np.concatenate(inputs[FITTED:]) @ weights).argmax(axis=1)
    return float((guess == np.concatenate(labels[FITTED:])).mean())


def shifted(item: Utterance, shift: float) -> Array:
    """Frame labels with every symbol ending `shift` frames earlier."""
    return Utterance(item.voice, item.text, item.ids, item.ends - shift, item.audio).labels()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("demo/work"))
    args = parser.parse_args()
    mel, voices = LogMel(CodecConfig()), dict[str, list[Utterance]]()
    for path in shards(args.work):
        if path.stem.endswith(("-0001", "-0002", "-0003")):
            for item in read_shard(path):
                voices.setdefault(item.voice, []).append(item)
    for voice, items in sorted(voices.items()):
        items = items[:UTTERANCES]
        inputs = [features(mel, item) for item in items]
        found = {shift: accuracy(inputs, [shifted(item, shift) for item in items]) for shift in SHIFTS}
        print(voice, {float(shift): round(value, 3) for shift, value in found.items()})


if __name__ == "__main__":
    main()
