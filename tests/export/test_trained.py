"""Export of trained weights, both lowerings: compared with eager PyTorch, and the same speech."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from valle2.export import export_checkpoint
from valle2.runtime import Valle2

CHECKPOINT = Path(__file__).parents[2] / "demo" / "checkpoint"


@pytest.mark.parametrize("lowering", ["ort", "portable"])
def test_export_of_the_demo(lowering: str, tmp_path: Path) -> None:
    bundle = export_checkpoint(CHECKPOINT, tmp_path / "demo", lowering=lowering, cache_length=640)
    exported, shipped = Valle2.load(bundle, slots=1), Valle2.load("demo", slots=1)
    assert max(exported.manifest.parity.values()) < 1e-4
    voice, settings = shipped.voice("amber"), shipped.settings()
    ours, theirs = (tts.synthesize("Good morning.", voice, settings) for tts in (exported, shipped))
    assert ours.finish_reason == "eos"
    assert np.array_equal(ours.codes[:, 0], theirs.codes[:, 0])
    assert (ours.codes == theirs.codes).mean() > 0.999
