"""Audio in and out: any rate, mono or stereo, through soundfile and soxr; writing never loses a file."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from io import BytesIO
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from valle2.runtime.errors import AudioError, PromptError

Audio = NDArray[np.float32]
FORMATS = {".wav": "WAV", ".flac": "FLAC", ".ogg": "OGG", ".mp3": "MP3"}
STDOUT = "-"
SILENCE = 1e-3
FADE_SECONDS = 0.005
PAUSE_SECONDS = 0.12


def read_audio(path: Path, rate: int, min_seconds: float, max_seconds: float) -> Audio:
    """Read a recording as mono float32 at `rate`.

    Args:
        path: WAV, FLAC, OGG or MP3 with any rate and channels. rate: Hz wanted.
        min_seconds, max_seconds: the length accepted; a longer file is not decoded.

    Returns:
        (N,) float32 in -1..1.

    Raises:
        PromptError: not there, not audio, of a wrong length, silent, or not finite.
    """
    if not path.is_file():
        raise PromptError(f"{path}: no such audio file")
    try:
        with soundfile.SoundFile(path) as file:
            seconds = file.frames / file.samplerate
            if not min_seconds <= seconds <= max_seconds:
                raise PromptError(
                    f"{path} lasts {seconds:.1f} s; expected {min_seconds:g} to {max_seconds:g} s of speech: "
                    "cut it to one or two sentences"
                )
            samples = file.read(dtype="float32", always_2d=True)
            original = file.samplerate
    except (soundfile.SoundFileError, OSError) as error:
        raise PromptError(f"{path} is not audio that can be read (WAV, FLAC, OGG, MP3): {error}") from None
    mono = samples.mean(axis=1, dtype=np.float32)
    if not np.isfinite(mono).all():
        raise PromptError(f"{path} holds NaN or infinite samples; record or convert it again")
    if np.abs(mono).max(initial=0.0) < SILENCE:
        raise PromptError(f"{path} is silent; expected a recording of speech")
    return mono if original == rate else np.asarray(soxr.resample(mono, original, rate), np.float32)


def check_writable(path: str) -> None:
    """Refuse a target that could not be written, before any work is done for it."""
    if path == STDOUT:
        return
    target = Path(path)
    if target.suffix.lower() not in FORMATS:
        raise AudioError(f"{path}: unknown audio type; expected a name ending in {', '.join(FORMATS)}")
    if target.is_dir():
        raise AudioError(f"{path} is a folder; give a file name in it")
    if not target.parent.is_dir():
        raise AudioError(f"{target.parent} does not exist; make it with: mkdir -p {target.parent}")
    if not os.access(target.parent, os.W_OK):
        raise AudioError(f"{target.parent} is read-only; choose another folder")


def write_audio(path: str, audio: Audio, rate: int) -> None:
    """Write 16-bit audio in the format of the suffix, aside first; `-` is a WAV on standard output.

    Raises:
        AudioError: the target cannot be written; an earlier file there is untouched.
    """
    check_writable(path)
    if path == STDOUT:
        sys.stdout.buffer.write(encode(audio, rate, "WAV"))
        sys.stdout.buffer.flush()
        return
    target = Path(path)
    data = encode(audio, rate, FORMATS[target.suffix.lower()])
    aside = None
    try:
        handle, aside = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(aside, 0o666 & ~umask)
        os.replace(aside, target)
    except BaseException as error:
        if aside:
            Path(aside).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise AudioError(f"{path} cannot be written: {error.strerror}") from None
        raise


def encode(audio: Audio, rate: int, kind: str) -> bytes:
    """Encode with a note that says the speech is synthetic."""
    memory = BytesIO()
    subtype = {"WAV": "PCM_16", "FLAC": "PCM_16"}.get(kind)
    with soundfile.SoundFile(memory, "w", rate, 1, subtype=subtype, format=kind) as file:
        file.comment = "Synthetic speech"
        file.software = f"valle2 {version('valle2')}"
        file.write(np.clip(audio, -1.0, 1.0))
    return memory.getvalue()


def faded(audio: Audio, rate: int) -> Audio:
    """A copy with 5 ms ramps at both ends, so that joined pieces do not click."""
    out = audio.copy()
    size = min(int(FADE_SECONDS * rate), len(out) // 2)
    ramp = np.linspace(0, 1, size, dtype=np.float32)
    out[:size] *= ramp
    out[len(out) - size :] *= ramp[::-1]
    return out


def pause(rate: int) -> Audio:
    """The silence between two sentences."""
    return np.zeros(int(PAUSE_SECONDS * rate), np.float32)


def join(pieces: Sequence[Audio]) -> Audio:
    """Pieces end to end."""
    return np.concatenate(pieces) if pieces else np.zeros(0, np.float32)
