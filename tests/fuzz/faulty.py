"""A reader with every fault that the harness must find. It tests the harness."""

from __future__ import annotations

import os
import pickle
import time
from pathlib import Path

from tests.fuzz.harness import SECONDS, WARM_UP
from tests.fuzz.pickles import bomb
from valle2.engine.errors import Valle2Error

MEMORY = 100 << 20


class Unclean(Valle2Error):
    """An error with a message of two lines, which `Valle2Error` itself prevents."""

    def __str__(self) -> str:
        return "two\nlines"


class Faulty:
    """Reads the warm-up files well. Each file after them shows one fault."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.mark, self.path = folder / "ran", folder / "model.pt"
        self.path.write_bytes(bomb(self.mark))
        self.number = -1

    def make(self) -> Path:
        self.number += 1
        return self.path

    def read(self, path: Path) -> None:
        match self.number - WARM_UP:
            case 0:
                pickle.loads(path.read_bytes())
            case 1:
                raise KeyError("raw")
            case 2:
                raise Unclean
            case 3:
                bytearray(MEMORY)[::4096] = bytes(MEMORY // 4096)
            case 4:
                began = time.process_time()
                while time.process_time() < began + SECONDS + 0.1:
                    pass
            case 5:
                path.with_name("other").write_bytes(b"")
            case 6:
                os._exit(3)


EXPECTED = (
    "ran code",
    "KeyError",
    "message of",
    "grew memory",
    "took",
    "did what it must not",
    "ended",
)
"""A part of each fault's message, in order."""
