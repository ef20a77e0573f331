"""Audio in and out, and that a failed write loses nothing."""

from __future__ import annotations

import subprocess
import sys
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest
import soundfile

from tests.conftest import shared
from valle2.runtime.audio.io import BLOCK, Audio, encode, faded, peak_limit, read_recording, write_audio
from valle2.runtime.audio.prepare import PAUSE_SECONDS, prepare
from valle2.runtime.errors import AudioError, PromptError

RATE = 24000


def tone(
    rate: int, seconds: float = 1.0, channels: int = 1
) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    wave = 0.5 * np.sin(2 * np.pi * 220 * np.arange(int(rate * seconds)) / rate)
    return np.repeat(wave[:, None], channels, axis=1).astype(np.float32)


def read_audio(source: str | Path | bytes | BinaryIO, rate: int, least: float, most: float) -> Audio:
    """A recording as a prompt's sound."""
    return prepare(read_recording(source, least, most), rate, least, most).audio


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
@pytest.mark.parametrize(("rate", "channels"), [(44100, 2), (8000, 1), (24000, 1)])
def test_any_format_rate_and_channels(tmp_path: Path, suffix: str, rate: int, channels: int) -> None:
    path = tmp_path / f"prompt.{suffix}"
    soundfile.write(path, tone(rate, channels=channels), rate)
    found = read_audio(path, RATE, 0.5, 20)
    assert found.dtype == np.float32 and abs(len(found) - (1 + PAUSE_SECONDS) * RATE) <= 0.1 * RATE
    spectrum = np.abs(np.fft.rfft(found))
    assert abs(spectrum.argmax() * RATE / len(found) - 220) < 3


def test_a_real_prompt() -> None:
    found = read_audio(shared("prompts/ljspeech_LJ049-0108.wav"), RATE, 0.5, 20)
    assert 2 * RATE < len(found) < 10 * RATE


@pytest.mark.parametrize(
    ("seconds", "message"), [(0.1, "lasts 0.10 s; expected 0.5 to 20 s"), (600, "lasts 600.00 s")]
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
    (tmp_path / "empty.wav").touch()
    for name, message in (("absent.wav", "no such audio file"), (".", "a folder"), ("empty.wav", "is empty")):
        with pytest.raises(PromptError, match=message):
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
        assert file.comment.startswith("Synthetic speech made by valle2 ")


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

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(AudioError, match="No space left"):
        write_audio(str(path), tone(RATE)[:, 0], RATE)
    assert path.read_bytes() == b"earlier" and list(tmp_path.iterdir()) == [path]


def test_bytes_and_open_files_read_like_a_path(tmp_path: Path) -> None:
    path = tmp_path / "p.flac"
    soundfile.write(path, tone(44100, channels=2), 44100)
    expected = read_audio(path, RATE, 0.5, 20)
    assert np.array_equal(read_audio(path.read_bytes(), RATE, 0.5, 20), expected)
    with path.open("rb") as file:
        assert np.array_equal(read_audio(file, RATE, 0.5, 20), expected)
    with pytest.raises(PromptError, match="the recording is not audio"):
        read_audio(b"not audio", RATE, 0.5, 20)


def test_no_more_is_read_than_the_file_holds(tmp_path: Path) -> None:
    """The header of a cut MP3 still tells the full length."""
    noise = np.random.default_rng(0).normal(0, 0.1, 10 * RATE)
    soundfile.write(tmp_path / "p.mp3", noise, RATE)
    data = (tmp_path / "p.mp3").read_bytes()
    assert len(read_audio(data[: len(data) // 2], RATE, 0.5, 20)) < 8 * RATE
    with pytest.raises(PromptError, match="expected 8 to 20 s"):
        read_audio(data[: len(data) // 2], RATE, 8, 20)


def test_a_rate_of_no_recording(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "p.wav", tone(100, 2), 100)
    with pytest.raises(PromptError, match="a rate of 100 Hz; expected 4000 to 384000"):
        read_audio(tmp_path / "p.wav", RATE, 0.5, 20)


def test_long_ogg(tmp_path: Path) -> None:
    """One write of several minutes overflows the Vorbis encoder's stack and ends the process."""
    code = (
        "import numpy as np; from valle2.runtime.audio.io import encode; "
        "encode(np.random.default_rng(0).normal(0, .1, 24000 * 300).astype(np.float32), 24000, 'OGG')"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    long = np.resize(tone(RATE)[:, 0], 2 * BLOCK + 7)
    write_audio(str(tmp_path / "o.ogg"), long, RATE)
    assert soundfile.info(tmp_path / "o.ogg").frames == len(long)


def test_what_no_file_can_hold() -> None:
    with pytest.raises(AudioError, match=r"MP3 at 96000 Hz cannot be written.*Use \.wav"):
        encode(tone(96000)[:, 0], 96000, "MP3")
    with pytest.raises(AudioError, match="NaN or infinite"):
        encode(np.full(10, np.nan, np.float32), RATE, "WAV")


def test_loud_audio_is_lowered_not_clipped() -> None:
    quiet = tone(RATE)[:, 0]
    assert np.array_equal(peak_limit(quiet), quiet)
    assert np.allclose(peak_limit(3 * quiet), 2 * quiet, atol=1e-3)  # its peak, 0.5, becomes 1
    assert len(peak_limit(quiet[:0])) == 0


def test_an_earlier_file_keeps_its_mode_and_its_link(tmp_path: Path) -> None:
    real, link = tmp_path / "real.wav", tmp_path / "link.wav"
    real.write_bytes(b"earlier")
    real.chmod(0o600)
    link.symlink_to(real)
    write_audio(str(link), tone(RATE)[:, 0], RATE)
    assert link.is_symlink() and soundfile.info(real).frames == RATE
    assert real.stat().st_mode & 0o777 == 0o600


def test_a_name_as_long_as_a_name_can_be(tmp_path: Path) -> None:
    path = tmp_path / f"{'x' * 251}.wav"
    write_audio(str(path), tone(RATE)[:, 0], RATE)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("target", ["file", "folder"])
def test_protected_targets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    """The answer of `os.access` is given, since the superuser may write anywhere."""
    path = tmp_path / "out.wav"
    path.write_bytes(b"earlier")
    refused = path if target == "file" else tmp_path
    monkeypatch.setattr("os.access", lambda where, mode: Path(where) != refused)
    with pytest.raises(AudioError, match="choose another"):
        write_audio(str(path), tone(RATE)[:, 0], RATE)
    assert path.read_bytes() == b"earlier"


def test_a_terminal_gets_no_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    with pytest.raises(AudioError, match="standard output is a terminal"):
        write_audio("-", tone(RATE)[:, 0], RATE)


def test_a_pipe_gets_a_whole_wav() -> None:
    code = (
        "import numpy as np; from valle2.runtime.audio.io import write_audio; "
        "write_audio('-', np.full(2400, 0.5, np.float32), 24000)"
    )
    sound, rate = soundfile.read(BytesIO(subprocess.run([sys.executable, "-c", code], stdout=-1).stdout))
    assert rate == RATE and len(sound) == 2400 and np.allclose(sound, 0.5, atol=1e-4)


def test_fades_begin_and_end_at_zero() -> None:
    piece = faded(np.ones(4800, np.float32), RATE)
    assert piece[0] == 0 and piece[-1] == 0 and piece[2400] == 1
    assert np.abs(np.diff(piece)).max() < 0.01
