"""The embedded model: it loads fast, says what it is told, and is what its checkpoint says."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from tests.listen import ENOUGH, heard, share_heard
from valle2.engine.build.ort import build_graphs
from valle2.engine.bundle.files import sha256
from valle2.runtime import Request, Settings, Valle2
from valle2.runtime.cli.main import main

CHECKPOINT = Path(__file__).parents[2] / "demo" / "checkpoint"
FOX = "The quick brown fox jumps over the lazy dog."
LOAD = """
import sys, time
began = time.perf_counter()
from valle2.runtime import Valle2
Valle2.load("demo")
print(time.perf_counter() - began, "torch" in sys.modules)
"""


@pytest.fixture(scope="module")
def demo() -> Valle2:
    return Valle2.load("demo")


@pytest.mark.serial
def test_import_and_load_take_under_two_seconds_and_no_torch() -> None:
    runs = [
        subprocess.run([sys.executable, "-c", LOAD], capture_output=True, text=True, check=True)
        for _ in "123"
    ]
    seconds, torch = zip(*(run.stdout.split() for run in runs), strict=True)
    assert set(torch) == {"False"}
    assert min(map(float, seconds)) < 2, seconds


def test_it_is_small(demo: Valle2) -> None:
    assert sum(file.stat().st_size for file in demo.path.rglob("*") if file.is_file()) < 40e6
    with safe_open(CHECKPOINT / "model.safetensors", "numpy") as weights:
        count = sum(int(np.prod(weights.get_slice(name).get_shape())) for name in weights.keys())  # noqa: SIM118
    assert count < 20e6


def test_it_was_exported_from_the_checkpoint_beside_it(demo: Valle2) -> None:
    assert demo.manifest.provenance["checkpoint_sha256"] == sha256(CHECKPOINT / "model.safetensors")
    assert max(demo.manifest.parity.values()) < 1e-4


def test_what_is_said_in_int8_fits_the_caches(demo: Valle2, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(demo.path, tmp_path / "demo"))
    build_graphs(folder, "int8")
    tts = Valle2.load(folder, precision="int8", slots=6)
    voices = [tts.voice(name) for name in tts.voices()]
    tts.synthesize_batch([Request(FOX, voice, tts.settings()) for voice in voices])
    kept = [cache.read().astype(np.int64) for cache in tts.model.ar.caches.values()]
    numbers = np.concatenate([cache[cache.any(axis=3)].ravel() for cache in kept])
    assert len(numbers) > 1e6
    assert np.mean(np.abs(numbers) >= 127) < 1e-3  # cut off, or just there
    assert np.std(numbers) > 12  # and no more room is left than needed


def test_six_voices_with_words_and_licence(demo: Valle2) -> None:
    voices = [demo.voice(name) for name in demo.voices()]
    assert len(voices) >= 6
    for voice in voices:
        assert voice.transcript and voice.licence and voice.source
        assert 3 <= len(voice.codes) / 75 <= 5


def test_it_says_the_fox(tmp_path: Path) -> None:
    out = tmp_path / "fox.wav"
    assert main(["say", FOX, "-o", str(out)]) == 0
    if not find_spec("faster_whisper"):
        pytest.skip("the judge is not installed; pip install 'valle2[eval]'")
    assert share_heard(heard(out), FOX) >= ENOUGH


def test_every_voice_ends_by_itself(demo: Valle2) -> None:
    for name in demo.voices():
        speech = demo.synthesize("Please leave your shoes by the front door.", demo.voice(name))
        assert speech.finish_reason == "eos" and 1 < len(speech.audio) / 24000 < 6, name


def test_very_short_texts_end_by_themselves(demo: Valle2) -> None:
    """All do; one may not where a processor rounds to other codes. Of earlier weights 1 in 7 did not."""
    settings = replace(demo.settings(), seed=1)
    said = [(text, name) for text in ("Yes.", "No.", "Thank you.") for name in demo.voices()]
    requests = [Request(text, demo.voice(name), settings) for text, name in said]
    ran_on = [
        which
        for which, speech in zip(said, demo.synthesize_batch(requests), strict=True)
        if speech.finish_reason != "eos" or not 0.3 < len(speech.audio) / 24000 < 2
    ]
    assert len(ran_on) <= 1, ran_on


def test_codes_equal_eager_pytorch(demo: Valle2) -> None:
    from valle2.export import read_checkpoint
    from valle2.export.models.reference import generate, refine

    checkpoint, exported = read_checkpoint(CHECKPOINT), Valle2.load("demo", precision="fp32")
    assert demo.front is not None
    for name in demo.voices()[:2]:
        voice = demo.voice(name)
        ids = demo.front.encode(f"{voice.transcript} Good morning.")
        found = exported.generate_codes(ids, voice.codes, Settings(top_p=0.0, threshold=1.0))
        text, prompt = np.append(ids, checkpoint.config.vocab_size), voice.codes[len(voice.codes) % 2 :]
        first, ended = generate(checkpoint.ar, text, prompt[:, 0], 150)
        assert ended and found.finish_reason == "eos"
        assert np.array_equal(found.codes[:, 0], first)
        agree = found.codes == refine(checkpoint.nar, text, prompt, first)
        assert agree.mean() > 0.999, "argmax of the NAR may differ only where two logits tie in rounding"


def test_a_streamed_text_has_the_same_first_codebook(demo: Valle2) -> None:
    voice, settings = demo.voice(demo.voices()[0]), demo.settings()
    whole = demo.synthesize(FOX, voice, settings)
    stream = demo.stream(FOX, voice, settings)
    list(stream)
    assert np.array_equal(stream.speech().codes[:, 0], whole.codes[:, 0])
    assert len(stream.speech().audio) == len(whole.audio) and stream.taken > 1
