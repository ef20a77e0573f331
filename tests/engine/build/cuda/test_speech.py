"""A whole request through the graphs of CUDA, in float32 on the CPU."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from valle2.engine import Manifest
from valle2.engine.backends import placement as placements
from valle2.engine.backends.placement import Placement
from valle2.engine.build import ort as builds
from valle2.engine.build.ort import BuildOptions, build_graphs
from valle2.engine.bundle.contract import FUSED_DECODER, NAR_ROW, STEP
from valle2.engine.bundle.precisions import CUDA_LOWERING, LocatedGraph, find_graphs
from valle2.runtime import Settings, Speech, Valle2
from valle2.runtime.tts import find_model

TEXT, SETTINGS = "Good morning.", Settings(seed=3, max_frames=120)


def spoken(bundle: Path, precision: str) -> Speech:
    with Valle2.load(str(bundle), precision=precision) as tts:
        return tts.synthesize(TEXT, tts.voice("amber"), SETTINGS)


def test_speech_is_that_of_the_exported_graphs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same codes, drawn with repetition-aware sampling, and the same samples but for rounding."""
    bundle = Path(shutil.copytree(find_model("demo"), tmp_path / "bundle"))
    with monkeypatch.context() as whole:
        whole.setattr(builds, "convert", lambda model, kind: None)  # it stays in float32
        build_graphs(bundle, "fp16", BuildOptions("cuda"))
    used: set[str] = set()

    def variant(manifest: Manifest, _: Placement) -> Manifest:
        return manifest.in_lowering([CUDA_LOWERING], "test")

    def locate(chosen: Placement, folder: Path, manifest: Manifest) -> dict[str, LocatedGraph]:
        found = find_graphs(folder, manifest, chosen.precision)
        # the stored graphs prefill in float32, as these graphs continue
        found |= {n: LocatedGraph(folder, spec) for n, spec in manifest.graphs.items()}
        used.update(found)
        return found

    monkeypatch.setattr(placements, "select_variant", variant)
    expected = spoken(bundle, "fp32")
    monkeypatch.setattr(Placement, "locate_graphs", locate)
    found = spoken(bundle, "fp16")
    assert used >= {STEP, NAR_ROW, FUSED_DECODER}
    assert np.array_equal(found.codes, expected.codes)
    assert np.abs(found.audio - expected.audio).max() < 1e-4
