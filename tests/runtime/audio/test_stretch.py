"""Speech at another speed: its length, its pitch, its seams, and that pieces change nothing."""

from __future__ import annotations

import numpy as np
import pytest

from valle2.runtime.audio.stretch import TimeStretcher
from valle2.runtime.types import Audio

RATE = 24000
SPEEDS = (0.25, 0.5, 0.75, 0.9, 1.1, 1.5, 2.0, 3.0, 4.0)


def vowel(pitch: float, seconds: float = 2.0) -> Audio:
    """A periodic sound with a formant near 700 Hz, whose loudness rises and falls like syllables."""
    time = np.arange(int(seconds * RATE)) / RATE
    parts = range(1, int(4000 / pitch))
    sound = sum(np.sin(2 * np.pi * pitch * k * time) / (1 + ((pitch * k - 700) / 300) ** 2) for k in parts)
    sound = sound * (0.6 + 0.4 * np.sin(2 * np.pi * 3 * time))
    return np.asarray(0.5 * sound / np.abs(sound).max(), np.float32)


def stretched(audio: Audio, speed: float, piece: int = 10**9) -> Audio:
    stretcher = TimeStretcher(speed, RATE)
    starts = range(0, max(1, len(audio)), piece)
    parts = [stretcher.add(audio[at : at + piece], last=at + piece >= len(audio)) for at in starts]
    return np.concatenate(parts)


def pitch_of(audio: Audio) -> float:
    """Hz, from the highest peak of the autocorrelation between 60 and 400 Hz."""
    middle = audio[len(audio) // 4 : len(audio) // 4 + 4096].astype(np.float64)
    likeness = np.correlate(middle, middle, "full")[len(middle) - 1 :]
    lags = np.arange(RATE // 400, RATE // 60)
    return RATE / float(lags[np.argmax(likeness[lags])])


@pytest.mark.parametrize("speed", SPEEDS)
@pytest.mark.parametrize("pitch", [80.0, 120.0, 220.0, 330.0])
def test_the_length_changes_and_the_pitch_does_not(pitch: float, speed: float) -> None:
    audio = vowel(pitch)
    made = stretched(audio, speed)
    assert len(made) == round(len(audio) / speed)
    assert abs(pitch_of(made) / pitch - 1) < 0.02
    assert abs(made.std() / audio.std() - 1) < 0.1


@pytest.mark.parametrize("speed", SPEEDS)
def test_no_clicks(speed: float) -> None:
    """No two samples are farther apart than in the sound itself, also where pieces and windows meet."""
    audio = vowel(120.0)
    assert np.abs(np.diff(stretched(audio, speed, 2400))).max() < 1.3 * np.abs(np.diff(audio)).max()
    assert abs(stretched(audio, speed)[-1]) < 1e-3


@pytest.mark.parametrize("speed", SPEEDS)
@pytest.mark.parametrize("piece", [1, 100, 2399, 9600])
def test_pieces_change_nothing(speed: float, piece: int) -> None:
    audio = vowel(120.0, 0.3 if piece == 1 else 2.0)
    assert np.array_equal(stretched(audio, speed, piece), stretched(audio, speed))


@pytest.mark.parametrize("speed", SPEEDS)
def test_sounds_stay_in_their_places(speed: float) -> None:
    """A burst is heard at its time over the speed: the latency is compensated."""
    audio = np.zeros(2 * RATE, np.float32)
    audio[RATE : RATE + 1200] = vowel(200.0, 0.05)
    energy = np.cumsum(stretched(audio, speed) ** 2)
    middle = float(np.searchsorted(energy, energy[-1] / 2)) / RATE
    assert abs(middle - 1.025 / speed) < 0.015


@pytest.mark.parametrize("speed", SPEEDS)
def test_a_stream_waits_for_no_more_than_the_window(speed: float) -> None:
    stretcher = TimeStretcher(speed, RATE)
    given = made = 0
    for piece in np.split(vowel(120.0), 200):
        made += len(stretcher.add(piece, last=False))
        given += len(piece)
        assert made * speed > given - stretcher.lookahead - stretcher.hop * speed
        assert len(stretcher.input) <= stretcher.lookahead + 2 * stretcher.hop * max(1.0, speed) + len(piece)
    assert stretcher.lookahead <= 0.1 * RATE


@pytest.mark.parametrize("samples", [0, 1, 50, 359, 700, 1300])
@pytest.mark.parametrize("speed", [0.25, 0.7, 1.3, 4.0])
def test_short_sounds(samples: int, speed: float) -> None:
    made = stretched(vowel(120.0)[:samples], speed)
    assert len(made) == round(samples / speed) and made.dtype == np.float32 and np.isfinite(made).all()


def test_silence_stays_silent() -> None:
    assert not stretched(np.zeros(RATE, np.float32), 1.7).any()
