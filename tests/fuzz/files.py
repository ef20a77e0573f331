"""Makes hostile checkpoint files: archives, pickles, old torch files, safetensors, checkpoints."""

from __future__ import annotations

import io
import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from tests.conftest import toy_checkpoint
from tests.export.importers.peers import Lifeiteng
from tests.fuzz import archives, pickles
from valle2.export.checkpoint import METADATA, WEIGHTS, save_checkpoint
from valle2.export.importers import read_any
from valle2.export.options import ImportOptions
from valle2.export.weights.unpickle import read_container


def saved(value: Any, **options: Any) -> bytes:
    """The bytes that torch.save writes."""
    out = io.BytesIO()
    torch.save(value, out, **options)
    return out.getvalue()


def small() -> dict[str, Any]:
    """Weights of several dtypes and shapes, some shared or transposed, and plain values beside them."""
    whole = torch.arange(24.0).reshape(4, 6)
    weights = {
        "a.weight": whole,
        "a.turned": whole.T,
        "a.row": whole[1],
        "b.half": torch.ones(3, dtype=torch.float16),
        "b.bfloat": torch.ones(2, 2, dtype=torch.bfloat16),
        "b.count": torch.tensor(7),
        "b.none": torch.empty(0, 3),
        "b.parameter": torch.nn.Parameter(torch.ones(2)),
    }
    return {"model": weights, "values": pickles.plain_values(), "epoch": 3, "name": "x"}


class Fuzzer:
    """Makes files in a folder, the same for the same seed, and reads them as the export does."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder, self.rng = folder, random.Random(seed)
        self.mark = folder / "ran"
        self.path = folder / "model.pt"
        self.prepare()

    def prepare(self) -> None:
        """Make the valid files and the hostile parts."""
        self.valid = [saved(small()), saved({"w": torch.ones(300)}), saved(small(), pickle_protocol=4)]
        parts = archives.parts_of(self.valid[1])
        name = next(iter(parts))
        self.hostile = [
            archives.stored({**parts, name: pickles.bomb(self.mark)}),
            archives.stored({"archive/constants.pkl": b"", "archive/data.pkl": pickles.bomb(self.mark)}),
        ]

    def make(self) -> Path:
        """Write the next file."""
        self.path.write_bytes(self.next())
        return self.path

    def next(self) -> bytes:
        raise NotImplementedError

    def read(self, path: Path) -> None:
        read_container(path)


class ArchiveFuzzer(Fuzzer):
    def next(self) -> bytes:
        return archives.mutate(self.rng.choice(self.valid), self.rng, self.hostile)


class PickleFuzzer(Fuzzer):
    """Valid archives with hostile pickles."""

    def prepare(self) -> None:
        super().prepare()
        self.archives = [archives.parts_of(archive) for archive in self.valid]
        self.pickles = pickles.valid_pickles() + [next(iter(parts.values())) for parts in self.archives]

    def next(self) -> bytes:
        parts = dict(self.rng.choice(self.archives))
        parts[next(iter(parts))] = pickles.hostile(self.pickles, self.rng, self.mark)
        return archives.stored(parts)


class OldFuzzer(Fuzzer):
    """Files from before torch 1.6, and bare pickles."""

    def prepare(self) -> None:
        super().prepare()
        old = {"_use_new_zipfile_serialization": False}
        self.valid = [saved(small(), **old), saved({"w": torch.ones(300)}, **old)]
        self.pickles = pickles.valid_pickles()

    def next(self) -> bytes:
        data = self.rng.choice(self.valid)
        choices: list[Callable[[], bytes]] = [
            lambda: archives.flip(data, self.rng),
            lambda: archives.cut(data, self.rng),
            lambda: archives.add(data, self.rng),
            lambda: pickles.changed(data, self.rng),
            lambda: data[:150] + pickles.hostile(self.pickles, self.rng, self.mark),
            lambda: pickles.hostile(self.pickles, self.rng, self.mark),
        ]
        return self.rng.choice(choices)()


class SafetensorsFuzzer(Fuzzer):
    """Checkpoints in valle2's own format, with hostile headers, metadata and sizes."""

    def prepare(self) -> None:
        folder = self.folder / "toy"
        folder.mkdir()
        save_checkpoint(toy_checkpoint(2, 40), folder)
        self.whole = (folder / WEIGHTS).read_bytes()
        length = struct.unpack_from("<Q", self.whole)[0]
        self.header = json.loads(self.whole[8 : 8 + length])
        self.body = self.whole[8 + length :]
        self.path = self.folder / WEIGHTS
        self.few = save({"w": torch.ones(3)}, {METADATA: "{}"})

    def next(self) -> bytes:
        choice = self.rng.randrange(6)
        if choice == 0:
            return archives.flip(self.rng.choice((self.few, self.whole)), self.rng)
        if choice == 1:
            length = self.rng.choice((*pickles.HUGE, len(self.whole), len(self.whole) - 8)) % 2**64
            return struct.pack("<Q", length) + self.whole[8:]
        if choice == 2:
            return archives.cut(self.few, self.rng)
        header = json.loads(json.dumps(self.header))
        if choice == 3:
            edit(header, self.rng)
        else:
            values = json.loads(header["__metadata__"][METADATA])
            for _ in range(self.rng.choice((1, 1, 2))):
                edit(values, self.rng)
            header["__metadata__"][METADATA] = json.dumps(values)
        raw = json.dumps(header).encode()
        return struct.pack("<Q", len(raw)) + raw + self.body

    def read(self, path: Path) -> None:
        read_any([path])


ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 7, 10**6, 10**12, 2**63, 10**30, 0.5, 1e308, float("nan")),
    *(
        "",
        "x",
        "é\u202e\x1b[2J",
        "../x",
        "x" * 5000,
        [],
        [1],
        [[]],
        {},
        {"a": 1},
        {"kind": "bpe"},
        [None] * 50,
    ),
)


def edit(values: Any, rng: random.Random) -> None:
    """Change a random entry of parsed JSON."""
    while True:
        keys = list(values) if isinstance(values, dict) else list(range(len(values)))
        key = rng.choice(keys) if keys else None
        if key is not None and isinstance(values[key], dict | list) and values[key] and rng.random() < 0.7:
            values = values[key]
            continue
        action = rng.random()
        if key is not None and action < 0.15:
            del values[key]
        elif isinstance(values, dict) and (key is None or action < 0.25):
            values[rng.choice(("", "x", "__metadata__", "model", "a.weight"))] = rng.choice(ODD)
        elif key is not None:
            values[key] = rng.choice(ODD)
        return


DTYPES = (torch.float16, torch.float64, torch.complex64, torch.int8, torch.bool, torch.float8_e4m3fn)


class CheckpointFuzzer(Fuzzer):
    """Checkpoints of other code bases, with entries of other types, shapes and values."""

    def prepare(self) -> None:
        super().prepare()
        self.containers = [
            Lifeiteng(width=16, layers=1, books=2).container(),
            Lifeiteng(width=16, layers=1, books=2, bos=True, languages=True, vocab=9).container(),
        ]

    def next(self) -> bytes:
        whole = self.rng.choice(self.containers)
        container, weights = dict(whole), dict(whole["model"])
        container["model"] = weights
        for _ in range(self.rng.choice((1, 1, 2))):
            if self.rng.random() < 0.4:
                key = self.rng.choice([*container, "nhead", "prefix_mode", "scale_factor"])
                container[key] = self.rng.choice((*ODD, *pickles.plain_values()))
            else:
                key = self.rng.choice(list(weights))
                weights[key] = self.tensor(whole["model"][key])
        return saved(container)

    def tensor(self, old: torch.Tensor) -> Any:
        """A value to replace a weight by."""
        if self.rng.random() < 0.4:
            return torch.zeros(old.shape, dtype=self.rng.choice(DTYPES))
        return self.rng.choice(
            (
                old[:0],
                old[None],
                old.flatten(),
                old.transpose(0, -1) if old.ndim else old,
                torch.full(
                    old.shape, self.rng.choice((float("nan"), float("inf"), 1e300)), dtype=torch.float64
                ),
                torch.zeros(1).expand(10**9),
                torch.zeros(1).expand(2**31, 2**10),
                torch.zeros(()),
                old[..., :1],
                old.repeat(2, *[1] * (old.ndim - 1)) if old.ndim else old,
                "text",
                [1],
                None,
            )
        )

    def read(self, path: Path) -> None:
        read_any([path], ImportOptions(heads=self.rng.choice((0, 2)), prefix_mode=1))
