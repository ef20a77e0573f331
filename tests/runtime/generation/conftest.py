"""A toy model with four rows, and its voice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from valle2.runtime import Prompt, Valle2


@pytest.fixture(scope="module")
def tts(bundle: Path) -> Iterator[Valle2]:
    with Valle2.load(bundle, threads=1, slots=4) as model:
        yield model


@pytest.fixture(scope="module")
def voice(tts: Valle2) -> Prompt:
    return tts.voice(tts.default_voice())
