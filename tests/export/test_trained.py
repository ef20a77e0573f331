"""Export of trained weights: every lowering agrees with eager PyTorch and gives the same speech."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from valle2.engine import Placement, read_manifest
from valle2.export import export_checkpoint
from valle2.export.attention import LOWERINGS
from valle2.runtime import Valle2
from valle2.runtime.tts import find_model

CHECKPOINT = Path(__file__).parents[2] / "demo" / "checkpoint"


def in_variant(bundle: Path, lowering: str) -> Valle2:
    """A bundle's graphs in one of its lowerings, on the CPU."""
    manifest = read_manifest(bundle).in_lowering([lowering], "the test")
    return Valle2(bundle, manifest, 1, Placement(precision="fp32"))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_checkpoint(
        CHECKPOINT, tmp_path_factory.mktemp("exported") / "demo", lowering=list(LOWERINGS), cache_length=640
    )


def test_the_export_keeps_to_pytorch(exported: Path) -> None:
    parity = read_manifest(exported).parity
    assert {"ar", "ar-portable", "ar-primitive", "codec_decoder-primitive"} <= set(parity)
    assert max(parity.values()) < 1e-4


@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize("source", ["exported", "embedded"])
def test_every_lowering_says_the_same(source: str, lowering: str, exported: Path) -> None:
    bundle = exported if source == "exported" else find_model("demo")
    ours, shipped = in_variant(bundle, lowering), Valle2.load("demo", slots=1, precision="fp32")
    assert (ours.manifest.lowering, ours.manifest.cache_length > 0) == (lowering, lowering != "ort")
    voice, settings = shipped.voice("amber"), shipped.settings()
    found, theirs = (tts.synthesize("Good morning.", voice, settings) for tts in (ours, shipped))
    assert found.finish_reason == "eos"
    assert np.array_equal(found.codes[:, 0], theirs.codes[:, 0])
    assert (found.codes == theirs.codes).mean() > 0.999
