"""Noise under a recording is lowered where it costs words."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from valle2.benchmarks.quality.forms import noisy
from valle2.runtime import Valle2
from valle2.runtime.audio.checks import signal_to_noise
from valle2.runtime.audio.denoise import denoised
from valle2.runtime.audio.io import Recording
from valle2.runtime.audio.levels import frame_levels
from valle2.runtime.audio.prepare import Prepared, prepare

Sound = NDArray[np.float64]
RATE = 24000


@pytest.fixture(scope="module")
def voice() -> Sound:
    """A sentence with half a second of silence at its ends."""
    with Valle2.load("demo", threads=1) as tts:
        sound = tts.need_codec().decode(tts.voice("elm").codes).astype(np.float64)
    return np.pad(sound, RATE // 2)


def prepared(sound: Sound) -> Prepared:
    return prepare(Recording("a.wav", sound.astype(np.float32)[:, None], RATE), RATE, 1, 20)


def is_told(made: Prepared) -> bool:
    return any("the noise was lowered" in one for one in made.warnings)


@pytest.mark.parametrize("seed", range(3))
def test_noise_under_speech_is_lowered_and_told(voice: Sound, seed: int) -> None:
    sound = noisy(voice, 5, seed)
    made = prepared(sound)
    assert is_told(made)
    before, after = (signal_to_noise(frame_levels(one, RATE)) for one in (sound, made.audio.astype(float)))
    assert before < 20 < before + 10 < after


def test_a_clean_recording_stays_as_it_is(voice: Sound) -> None:
    made = prepared(noisy(voice, 35))
    assert not is_told(made)
    assert signal_to_noise(frame_levels(made.audio.astype(np.float64), RATE)) < 45


@pytest.mark.parametrize("ratio", [10.0, 5.0, 0.0])
def test_the_speech_comes_nearer_to_what_was_said(voice: Sound, ratio: float) -> None:
    sound = noisy(voice, ratio)
    found = denoised(sound, RATE)
    assert len(found) == len(sound)
    lost, left = (((one - voice) ** 2).mean() for one in (sound, found))
    assert left < lost / 2


@pytest.mark.parametrize("length", [1, 500, 501, RATE])
@pytest.mark.parametrize("rate", [8000, 16000, 22050, RATE, 48000])
def test_any_length_rate_and_gain(length: int, rate: int) -> None:
    sound = np.random.default_rng(0).normal(size=length)
    found = denoised(sound, rate)
    assert found.shape == sound.shape and np.isfinite(found).all()
    np.testing.assert_allclose(denoised(1e-3 * sound, rate), 1e-3 * found, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("level", [0.0, 1.0])
def test_silence_and_an_offset_stay(level: float) -> None:
    sound = np.full(RATE, level)
    assert np.isfinite(denoised(sound, RATE)).all()
    assert not denoised(np.zeros(RATE), RATE).any()
