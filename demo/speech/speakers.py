"""Make more speakers from the voices of shards: `python -m demo.speech.speakers --work W`.

WORLD (pyworld) changes tract, pitch and breath. Kokoro's voices and their mixtures lie in one space of
styles; people do not. Writes W/speech/SOURCE-vN-*.npz with the same texts, labels and durations. Existing
shards and held-out shards are skipped.
"""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from demo.speech.shards import is_held_out, read_rows
from demo.speech.speak import HOP, MIXED, RATE, write_shard

Array = np.ndarray[Any, Any]
SOURCES = ("hibari", "kokoro", "others", MIXED)
TRACT, PITCH_OCTAVES, RANGE, BREATH, TILT = (0.84, 1.2), (-0.7, 0.7), (0.5, 1.6), 0.35, 2.0
"""Ranges: factor of the formants' frequencies, octaves of pitch, factor of the pitch's range around its mean
(in octaves), largest share of noise added to the voiced part, largest tilt in dB per octave."""
LOWEST, HIGHEST = 60.0, 420.0
"""Hz between which the mean pitch stays."""
FRAME_MS = 5.0


def changed(sound: Array, rng: np.random.Generator) -> Array:
    """The same words from another mouth. sound: (N,) float32; returns (N,) float64 of the same length."""
    world = import_module("pyworld")
    wave = sound.astype(np.float64)
    pitch, times = world.dio(wave, RATE, frame_period=FRAME_MS)
    pitch = world.stonemask(wave, pitch, times, RATE)
    spectrum = world.cheaptrick(wave, pitch, times, RATE)
    breath = world.d4c(wave, pitch, times, RATE)
    bins = np.arange(spectrum.shape[1])
    tract = rng.uniform(*TRACT)
    octaves = np.log2(np.maximum(bins / (len(bins) - 1) * RATE / 2, 50) / 1000)
    level = 10 ** (rng.uniform(-TILT, TILT) * octaves / 10)
    at = np.minimum(bins / tract, len(bins) - 1)
    low = at.astype(np.int64)
    high, share = np.minimum(low + 1, len(bins) - 1), at - low
    spectrum = np.exp((1 - share) * np.log(spectrum[:, low]) + share * np.log(spectrum[:, high])) * level
    breath = np.clip(breath + rng.uniform(0, BREATH) * (1 - breath), 0.001, 0.999)
    parts = (np.ascontiguousarray(part) for part in (new_pitch(pitch, rng), spectrum, breath))
    out = world.synthesize(*parts, RATE, FRAME_MS)
    return np.asarray(np.pad(out, (0, max(0, len(wave) - len(out))))[: len(wave)])


def new_pitch(pitch: Array, rng: np.random.Generator) -> Array:
    """The pitch (T,) in Hz, 0 where unvoiced, at another height and with another range."""
    voiced = pitch > 0
    if not voiced.any():
        return pitch
    octaves = np.log2(pitch[voiced])
    mean = octaves.mean()
    height = np.clip(mean + rng.uniform(*PITCH_OCTAVES), np.log2(LOWEST), np.log2(HIGHEST))
    out: Array = pitch.copy()
    out[voiced] = 2 ** np.clip(height + rng.uniform(*RANGE) * (octaves - mean), np.log2(50), np.log2(700))
    return out


def variant(path: Path, number: int) -> list[dict[str, Any]]:
    """A shard's utterances as `write_shard` takes them, each voice changed in one way for the whole shard."""
    items = []
    for voice, text, ids, durations, audio in read_rows(path):
        seed = [number, *f"{path.stem} {voice}".encode()]
        wave = changed(audio.astype(np.float32) / 32768, np.random.default_rng(seed))
        wave = wave / max(1.0, float(np.abs(wave).max()))
        sound = (wave[: len(wave) // HOP * HOP] * 32767).astype(np.int16)
        name = f"{MIXED}-{path.stem}-{voice}-v{number}"
        items.append({"text": text, "voice": name, "ids": ids, "durations": durations, "audio": sound})
    return items


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("demo/work"))
    parser.add_argument("--variants", type=int, default=2, help="new shards from each shard")
    args = parser.parse_args()
    folder = args.work / "speech"
    for number in range(1, args.variants + 1):
        for path in sorted(path for source in SOURCES for path in folder.glob(f"{source}-????.npz")):
            source, part = path.stem.split("-")
            target = folder / f"{source}-v{number}-{part}.npz"
            if not is_held_out(path) and not target.exists():
                write_shard(target, variant(path, number))
                print(target.name, flush=True)


if __name__ == "__main__":
    main()
