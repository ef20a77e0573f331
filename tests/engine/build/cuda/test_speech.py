"""A whole request through the graphs of CUDA, in float32 on the CPU."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.engine.build.cuda.on_cpu import build_in_float32, run_on_cpu
from valle2.engine.bundle.contract import FUSED_DECODER, NAR_BATCH, NAR_ROW, STEP
from valle2.runtime import Request, Settings, Speech, Valle2
from valle2.runtime.generation.nar_runner import NARRunner, NARState
from valle2.runtime.tts import find_model

TEXT, SETTINGS = "Good morning.", Settings(seed=4, max_frames=120)


SHORT = "Good morning.", "It rains today.", "Two cats."


def spoken(bundle: Path, precision: str) -> list[Speech]:
    """One request alone, then three that may share calls of the NAR."""
    with Valle2.load(str(bundle), precision=precision, chunks_per_call=4) as tts:
        voice, short = tts.voice("amber"), replace(SETTINGS, max_frames=60)
        requests = [Request(text, voice, short) for text in SHORT]
        together = [speech for speech in tts.synthesize_batch(requests) if isinstance(speech, Speech)]
        return [tts.synthesize(TEXT, voice, SETTINGS), *together]


def test_speech_is_that_of_the_exported_graphs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same codes, drawn with repetition-aware sampling, and the same samples but for rounding."""
    bundle = Path(shutil.copytree(find_model("demo"), tmp_path / "bundle"))
    build_in_float32(bundle)
    rows: list[int] = []
    run = NARRunner.run

    def counted(self: NARRunner, states: Sequence[NARState], codebook: int) -> None:
        rows.append(len(states))
        assert len(states) == 1 or self.joint.spec.graph == NAR_BATCH
        run(self, states, codebook)

    expected = spoken(bundle, "fp32")
    monkeypatch.setattr(NARRunner, "run", counted)
    used = run_on_cpu(monkeypatch)
    found = spoken(bundle, "fp16")
    assert used >= {STEP, NAR_ROW, NAR_BATCH, FUSED_DECODER} and {1, 2, 3} & set(rows) > {1}
    assert len(found) == len(expected) == 1 + len(SHORT)
    for one, other in zip(found, expected, strict=True):
        assert np.array_equal(one.codes, other.codes)
        assert np.abs(one.audio - other.audio).max() < 1e-4
