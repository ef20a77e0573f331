"""Audio in and out, and that a failed write loses nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.conftest import shared
from valle2.runtime import audio as audio_module
from valle2.runtime.audio import AudioError, PromptError, faded, read_audio, write_audio

RATE = 24000


def tone(
    rate: int, seconds: float = 1.0, channels: int = 1
) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    wave = 0.5 * np.sin(2 * np.pi * 220 * np.arange(int(rate * seconds)) / rate)
    return np.repeat(wave[:, None], channels, axis=1).astype(np.float32)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
@pytest.mark.parametrize(("rate", "channels"), [(44100, 2), (8000, 1), (24000, 1)])
def test_any_format_rate_and_channels(tmp_path: Path, suffix: str, rate: int, channels: int) -> None:
    path = tmp_path / f"prompt.{suffix}"
    soundfile.write(path, tone(rate, channels=channels), rate)
    found = read_audio(path, RATE, 0.5, 20)
    assert found.dtype == np.float32 and abs(len(found) - RATE) <= 0.1 * RATE
    spectrum = np.abs(np.fft.rfft(found))
    assert abs(spectrum.argmax() * RATE / len(found) - 220) < 3


def test_a_real_prompt() -> None:
    found = read_audio(shared("prompts/ljspeech_LJ049-0108.wav"), RATE, 0.5, 20)
    assert 2 * RATE < len(found) < 10 * RATE


@pytest.mark.parametrize(
    ("seconds", "message"), [(0.1, "lasts 0.1 s; expected 0.5 to 20 s"), (600, "lasts 600.0 s")]
)
def test_wrong_length(tmp_path: Path, seconds: float, message: str) -> None:
    soundfile.write(tmp_path / "p.wav", tone(8000, seconds), 8000)
    with pytest.raises(PromptError, match=message):
        read_audio(tmp_path / "p.wav", RATE, 0.5, 20)


def test_silent_broken_and_missing(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "silent.wav", np.zeros(RATE), RATE)
    with pytest.raises(PromptError, match="is silent"):
        read_audio(tmp_path / "silent.wav", RATE, 0.5, 20)
    (tmp_path / "text.wav").write_text("not audio")
    with pytest.raises(PromptError, match="not audio that can be read"):
        read_audio(tmp_path / "text.wav", RATE, 0.5, 20)
    for name in ("absent.wav", "."):
        with pytest.raises(PromptError, match="no such audio file"):
            read_audio(tmp_path / name, RATE, 0.5, 20)
    bad = np.full(RATE, np.nan, np.float32)
    soundfile.write(tmp_path / "nan.wav", bad, RATE, subtype="FLOAT")
    with pytest.raises(PromptError, match="NaN"):
        read_audio(tmp_path / "nan.wav", RATE, 0.5, 20)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_write_every_format_and_name_it_synthetic(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"out.{suffix}"
    write_audio(str(path), tone(RATE)[:, 0], RATE)
    with soundfile.SoundFile(path) as file:
        assert file.samplerate == RATE and file.channels == 1
        assert "ynthetic" in file.comment or suffix == "mp3"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("out.xyz", "unknown audio type"),
        ("absent/out.wav", "does not exist; make it"),
        ("folder.wav", "folder"),
    ],
)
def test_targets_that_cannot_be(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "folder.wav").mkdir()
    with pytest.raises(AudioError, match=message):
        write_audio(str(tmp_path / name), tone(RATE)[:, 0], RATE)


def test_a_failed_write_leaves_the_earlier_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.wav"
    path.write_bytes(b"earlier")

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(audio_module.os, "replace", full)
    with pytest.raises(AudioError, match="No space left"):
        write_audio(str(path), tone(RATE)[:, 0], RATE)
    assert path.read_bytes() == b"earlier" and list(tmp_path.iterdir()) == [path]


def test_fades_begin_and_end_at_zero() -> None:
    piece = faded(np.ones(4800, np.float32), RATE)
    assert piece[0] == 0 and piece[-1] == 0 and piece[2400] == 1
    assert np.abs(np.diff(piece)).max() < 0.01
