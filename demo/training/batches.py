"""Training batches of the AR and NAR models: most rows join several utterances of one voice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch

from demo.speech.shards import WORN, is_held_out, read_codes, read_shard, shards, symbols
from demo.speech.speak import MIXED
from valle2.export.models.config import ModelConfig, Style

Array = np.ndarray[Any, Any]
Weights = Mapping[str, torch.Tensor]
SHIPPED_GROUP = 2
AR_LAYERS, NAR_LAYERS = 6, 6
JOINED_SHARES = (0.1, 0.35, 0.2, 0.15, 0.1, 0.1)
"""Shares of batches with one to six joined utterances. Six are as long as a 10 s prompt."""
CUT_END_SHARE, CUT_START_SHARE = 0.4, 0.15
"""Shares of prompts that end after any word, and that begin at any word, as a user's recording may."""
CUT_ERROR = (-3, 9)
"""Frames by which a cut misses the word's end: a recogniser's times are not exact."""
WORN_SHARE = 0.6
"""Share of joined rows whose prompt, all utterances but the last, is a simulated recording."""
SHORTEST_CUT = 50
"""Frames that a cut prompt keeps at least."""
POOL = 64
MIXED_SHARE = 0.65
"""Share of drawn utterances that have mixed voices, where there are any. There are many such voices."""


@dataclass(frozen=True, slots=True)
class Example:
    """An utterance, or several of one voice end to end.

    Args:
        ids: (S,) without `<eos>`. ends: (S,) frame where each symbol ends. codes: (T, 8).
        split: frames before the last utterance, 0 if there is only one.
        worn: (T, 8) codes of a simulated recording of the same utterance, or None.
        prompted: the codes before `split` are those of a recording, or cut: nothing learns to speak so.
    """

    voice: str
    ids: Array
    ends: Array
    codes: Array
    split: int = 0
    worn: Array | None = None
    prompted: bool = False


def demo_config(
    group: int = SHIPPED_GROUP, ar: Weights | None = None, nar: Weights | None = None
) -> ModelConfig:
    """The model's sizes. ar, nar: trained weights, whose layers and kind of positions are kept."""
    return ModelConfig(
        vocab_size=len(symbols()),
        d_model=256,
        heads=4,
        layers=AR_LAYERS if ar is None else block_count(ar),
        nar_layers=NAR_LAYERS if nar is None else block_count(nar),
        ffn=1024,
        group_size=group,
        max_text=640,
        max_frames=2048,
        style=Style(positions=positions(ar), nar_positions=positions(nar)),
    )


def positions(weights: Weights | None) -> str:
    """The kind of positions of an AR or NAR with these weights; new models have rotary ones."""
    return "table" if weights is not None and "text_positions.weight" in weights else "rotary"


def block_count(state: Weights) -> int:
    """The number of blocks of an AR or NAR with these weights."""
    return len({name.split(".")[1] for name in state if name.startswith("blocks.")})


def load_samples(work: Path, *, held_out: bool = False) -> dict[str, list[Example]]:
    """Samples by voice; the first shard of each source is held out, and the voices of `unseen` altogether."""
    out: dict[str, list[Example]] = {}
    for path in shards(work):
        if path.stem.startswith("unseen"):
            continue
        codes_path, worn_path = work / "codes" / path.name, work / WORN / path.name
        if codes_path.exists() and is_held_out(path) == held_out:
            items, codes = read_shard(path), read_codes(codes_path)
            heard = read_codes(worn_path) if worn_path.exists() else [None] * len(items)
            for item, code, worn in zip(items, codes, heard, strict=True):
                sample = Example(item.voice, item.ids, item.ends, code, worn=worn)
                out.setdefault(item.voice, []).append(sample)
    return out


def as_recorded(sample: Example) -> Example:
    """The utterance as a recording of it is heard; unchanged if there is none."""
    return sample if sample.worn is None else replace(sample, codes=sample.worn, prompted=True)


def join(first: Example, second: Example, group: int) -> Example:
    """Two utterances of one voice, a space between their texts; whole groups of frames before."""
    odd = len(first.codes) % group
    space = symbols().index(" ")
    split = len(first.codes) - odd
    return Example(
        first.voice,
        np.concatenate([first.ids, [space], second.ids]),
        np.concatenate([first.ends - odd, [split], second.ends + split]),
        np.concatenate([first.codes[odd:], second.codes]),
        split,
        prompted=first.prompted,
    )


def cut_end(sample: Example, rng: np.random.Generator) -> Example:
    """Cut after a random word, within a few frames, and end the text with a full stop as the runtime does."""
    space, mark = symbols().index(" "), symbols().index(".")
    spaces = np.flatnonzero(sample.ids == space)
    places = [int(i) for i in spaces if sample.ends[i - 1] >= SHORTEST_CUT]
    if not places:
        return sample
    at = int(rng.choice(places))
    stop = min(int(sample.ends[at - 1]) + int(rng.integers(*CUT_ERROR)), len(sample.codes))
    ids, ends = sample.ids[:at], sample.ends[:at].clip(max=stop)
    if ids[-1] != mark:
        ids, ends = np.append(ids, mark), np.append(ends, stop)
    return replace(sample, ids=ids, ends=ends, codes=sample.codes[:stop], worn=None, prompted=True)


def cut_start(sample: Example, rng: np.random.Generator) -> Example:
    """Cut before a random word, within a few frames."""
    spaces = np.flatnonzero(sample.ids == symbols().index(" "))
    places = [int(i) for i in spaces if len(sample.codes) - sample.ends[i] >= SHORTEST_CUT]
    if not places:
        return sample
    at = int(rng.choice(places))
    begin = max(int(sample.ends[at]) - int(rng.integers(*CUT_ERROR)), 0)
    ends = (sample.ends[at + 1 :] - begin).clip(min=0)
    ids, codes = sample.ids[at + 1 :], sample.codes[begin:]
    return replace(sample, ids=ids, ends=ends, codes=codes, worn=None, prompted=True)


def prompt_of(parts: list[Example], rng: np.random.Generator, group: int) -> Example:
    """A prompt of several utterances end to end, which may begin and end inside a sentence.

    Users' recordings do. The model does not learn to speak so: what is cut is no target.
    """
    prompt = reduce(lambda first, second: join(first, second, group), parts)
    if rng.random() < CUT_END_SHARE:
        prompt = cut_end(prompt, rng)
    if rng.random() < CUT_START_SHARE:
        prompt = cut_start(prompt, rng)
    return prompt


def clipped(sample: Example, group: int) -> Example:
    """Drop the leading frames that fill no group (section 3.1)."""
    odd = len(sample.codes) % group
    if not odd:
        return sample
    if sample.split:
        codes = np.concatenate([sample.codes[: sample.split], sample.codes[sample.split + odd :]])
        ends = np.where(sample.ends > sample.split, sample.ends - odd, sample.ends)
        return replace(sample, ends=ends, codes=codes)
    return replace(sample, ends=sample.ends - odd, codes=sample.codes[odd:], worn=None)


def voice_shares(names: list[str], weights: Array) -> Array:
    """Each voice's probability, by weight; the mixed voices together have MIXED_SHARE."""
    mixed = np.array([name.startswith(MIXED) for name in names])
    if not 0 < mixed.sum() < len(names):
        return np.asarray(weights / weights.sum())
    shares = np.where(mixed, MIXED_SHARE, 1 - MIXED_SHARE)
    return np.asarray(shares * weights / np.where(mixed, weights[mixed].sum(), weights[~mixed].sum()))


def draw(
    samples: dict[str, list[Example]], rng: np.random.Generator, positions: int, group: int
) -> list[Example]:
    """Samples of similar length until their padded positions are used up, `group` frames a position.

    Voices with little speech are drawn more often. All rows of a batch join the same number of utterances,
    as far as a voice has so many: mixing them would pad half of it. None is joined to itself, whose codes
    would only have to be copied.
    """
    names = sorted(samples)
    weights = voice_shares(names, np.array([len(samples[name]) for name in names]) ** 0.3)
    joined, pool = int(rng.choice(len(JOINED_SHARES), p=JOINED_SHARES)), []
    for _ in range(POOL):
        items = samples[names[rng.choice(len(names), p=weights)]]
        sample, *others = (items[index] for index in rng.permutation(len(items))[: joined + 1])
        if others:
            *heard, target = sample, *others
            if rng.random() < WORN_SHARE:
                heard = [as_recorded(part) for part in heard]
            sample = join(prompt_of(heard, rng, group), target, group)
        pool.append(clipped(sample, group))
    pool.sort(key=lambda item: len(item.ids) + len(item.codes) // group)
    end = int(rng.integers(1, POOL + 1))
    longest = len(pool[end - 1].ids) + len(pool[end - 1].codes) // group
    return pool[max(0, end - max(1, positions // longest)) : end]


def text_batch(batch: list[Example], eos: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded ids with `<eos>` (B, L), and lengths (B,)."""
    lengths = [len(item.ids) + 1 for item in batch]
    text = np.full((len(batch), max(lengths)), eos)
    for row, item in enumerate(batch):
        text[row, : len(item.ids)] = item.ids
    return torch.from_numpy(text), torch.tensor(lengths)
