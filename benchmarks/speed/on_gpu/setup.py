"""What a run of `on_gpu` measures: a device, models and their sizes."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from valle2.benchmarks.fullsize import FRAMES, FullSizeModel, full_size, has_graphs
from valle2.engine.build.ort import BuildOptions, build_graphs
from valle2.engine.bundle.precisions import STORED
from valle2.engine.errors import Valle2Error

CUDA, CPU = "cuda", "cpu"
HALF, INTEGERS = "fp16", ("int8", "int4")
TOY = {"d_model": 64, "heads": 4, "layers": 2, "ffn": 128, "max_text": 256, "max_frames": 512}
"""Sizes of the model of a trial on a CPU."""
TOY_FRAMES = 24
Result = dict[str, Any]


class NotHereError(Valle2Error):
    """A part cannot run on this machine. The message is the reason."""


@dataclass(frozen=True, slots=True)
class Setup:
    """What every part is given.

    Args:
        device: "cuda", or "cpu" for a trial with a toy. work: folder of the models that are made; empty for
            the user's cache. threads: CPU threads.
    """

    device: str
    work: str
    threads: int

    @property
    def on_gpu(self) -> bool:
        return self.device == CUDA

    @property
    def sizes(self) -> dict[str, int]:
        """Changes to the paper's sizes."""
        return {} if self.on_gpu else dict(TOY)

    @property
    def frames(self) -> int:
        """Frames that a request speaks."""
        return FRAMES if self.on_gpu else TOY_FRAMES

    @property
    def repeats(self) -> int:
        return 3 if self.on_gpu else 1

    @property
    def rows(self) -> tuple[int, ...]:
        """Numbers of requests at once."""
        return (1, 8, 32, 64) if self.on_gpu else (1, 2)

    @property
    def groups(self) -> tuple[int, ...]:
        """Group sizes whose graphs are compared with eager PyTorch."""
        return (1, 2, 4, 8) if self.on_gpu else (2,)

    @property
    def precisions(self) -> tuple[str, ...]:
        """Precisions that are built and timed. On a GPU a user takes the last one."""
        return STORED, HALF

    def model(self) -> FullSizeModel:
        """The model with its builds, made if it is not there. On CUDA "fp16" has fused graphs.

        Raises:
            Valle2Error: torch is absent.
        """
        made = full_size(Path(self.work) if self.work else None, self.precisions, self.device, **self.sizes)
        for precision in INTEGERS if self.on_gpu else ():
            if not has_graphs(made.bundle, precision):
                build_graphs(made.bundle, precision, BuildOptions(CUDA))
        return made

    def plain_bundle(self) -> Path:
        """A copy of the bundle whose "fp16" has no fused graphs: what CUDA ran before there were any."""
        bundle = self.model().bundle
        plain = bundle.with_name("plain")
        if not has_graphs(plain, HALF) if plain.is_dir() else True:
            shutil.rmtree(plain, ignore_errors=True)
            shutil.copytree(bundle, plain, ignore=shutil.ignore_patterns("engines"))
            build_graphs(plain, HALF, BuildOptions(fused=False))
        return plain

    def sides(self) -> dict[str, tuple[Path, str]]:
        """What is timed in turns, by name: a bundle, and a precision of it."""
        bundle = self.model().bundle
        sides = {precision: (bundle, precision) for precision in self.precisions}
        if self.on_gpu:
            sides |= {f"{HALF}, exported graphs": (self.plain_bundle(), HALF)}
            sides |= {precision: (bundle, precision) for precision in INTEGERS}
        return sides

    def options(self, precision: str = "") -> dict[str, Any]:
        """Arguments of `Valle2.load`."""
        return {"device": self.device, "precision": precision or self.precisions[-1]}

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Setup:
        return cls(**json.loads(text))


def all_threads() -> int:
    return os.cpu_count() or 1
