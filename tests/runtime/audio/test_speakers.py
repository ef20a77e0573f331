"""The warning of two speakers in a recording."""

from __future__ import annotations

import numpy as np
import pytest
import soxr
from numpy.typing import NDArray

from valle2.runtime import Valle2
from valle2.runtime.audio.io import Recording
from valle2.runtime.audio.prepare import prepare
from valle2.runtime.audio.speakers import most_different, other_speaker

Sound = NDArray[np.float64]
RATE, TOP = 24000, 12000.0


@pytest.fixture(scope="module")
def voices() -> dict[str, Sound]:
    """A sentence of 3 to 4 s in each of the embedded model's voices."""
    with Valle2.load("demo", threads=1) as tts:
        codec = tts.need_codec()
        return {name: codec.decode(tts.voice(name).codes).astype(np.float64) for name in tts.voices()}


def warned(sound: Sound, rate: int = RATE) -> bool:
    samples = sound.astype(np.float32)[:, None]
    return any(
        "two speakers" in one for one in prepare(Recording("a.wav", samples, rate), RATE, 1, 20).warnings
    )


def test_one_speaker_is_not_warned_of(voices: dict[str, Sound]) -> None:
    for sound in voices.values():
        assert not warned(sound)
        assert not warned(np.concatenate([sound, sound]))


@pytest.mark.parametrize("pair", [("elm", "flint"), ("flint", "elm"), ("dune", "garnet"), ("basalt", "elm")])
def test_a_second_speaker_is_found_where_he_speaks(voices: dict[str, Sound], pair: tuple[str, str]) -> None:
    first, second = (voices[name] for name in pair)
    ends = len(first) / RATE, (len(first) + len(second)) / RATE
    assert warned(np.concatenate([first, second]))
    found = other_speaker(np.concatenate([first, second, first]), RATE, TOP)
    assert found is not None
    middle = sum(found) / 2
    assert ends[0] < middle < ends[1]


@pytest.mark.parametrize("gain", [1e-3, 0.1, 30.0])
@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_level_rate_and_silence_change_nothing(voices: dict[str, Sound], gain: float, rate: int) -> None:
    silence = np.zeros(RATE)
    for names, expected in (("elm", "elm"), False), (("elm", "flint"), True):
        joined = np.concatenate([silence, *(voices[name] for name in names), silence])
        assert warned(gain * soxr.resample(joined, RATE, rate), rate) == expected


@pytest.mark.parametrize("snr", [30, 20, 10])
def test_noise_is_no_second_speaker(voices: dict[str, Sound], snr: float) -> None:
    noise = np.random.default_rng(0).normal(0, 1, 10 * RATE)
    for sound in voices.values():
        noisy = sound + noise[: len(sound)] * sound.std() * 10 ** (-snr / 20)
        assert not warned(noisy)


@pytest.mark.parametrize(
    "sound",
    [
        np.zeros(5 * RATE),
        np.ones(5 * RATE),
        np.sin(np.arange(5 * RATE) * 0.05),
        np.random.default_rng(0).normal(0, 1, 5 * RATE),
        np.r_[np.zeros(5 * RATE), 1.0],
        np.random.default_rng(0).normal(0, 1, RATE // 2),
    ],
    ids=["silence", "offset", "tone", "noise", "click", "short"],
)
def test_what_is_no_speech(sound: Sound) -> None:
    score, (start, end) = most_different(sound, RATE, TOP)
    assert np.isfinite(score)
    assert 0 <= start <= end <= len(sound) / RATE
    assert other_speaker(sound, RATE, TOP) is None
