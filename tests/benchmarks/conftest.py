"""What several tests of the benchmarks share."""

from __future__ import annotations

import pytest

from valle2.benchmarks.fullsize import FullSizeModel, full_size
from valle2.benchmarks.quality.scores import COLUMNS, Score

SMALL = {"d_model": 32, "heads": 4, "layers": 2, "ffn": 64, "max_frames": 1024}
"""Sizes with which the full-size model is tried."""


@pytest.fixture(scope="session")
def small_full_size(tmp_path_factory: pytest.TempPathFactory) -> FullSizeModel:
    """The full-size model in small, in a cache of its own; do not change it."""
    return full_size(tmp_path_factory.mktemp("cache"), ["fp32", "int8"], **SMALL)


def a_score(sentence: int = 0, seed: int = 0, **values: object) -> Score:
    """A flawless utterance of ten words, with changes."""
    plain = dict.fromkeys(COLUMNS, 0) | {"voice": "amber", "words": 10, "letters": 40, "drawn": 100}
    return Score(**(plain | {"sentence": sentence, "seed": seed} | values))  # type: ignore[arg-type]
