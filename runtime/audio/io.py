"""Audio files and streams: reading any rate, writing without losing an earlier file.

Reading and writing go through soundfile. A WAV stream of unknown length is written
here, because no library writes one.
"""

from __future__ import annotations

import os
import shutil
import struct
import sys
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import soundfile
from numpy.typing import NDArray

from valle2.engine.bundle.files import replacing_file
from valle2.runtime.audio.containers import check_format, repaired
from valle2.runtime.errors import AudioError, PromptError

Audio = NDArray[np.float32]
FORMATS = {".wav": "WAV", ".flac": "FLAC", ".ogg": "OGG", ".mp3": "MP3"}
STDOUT = "-"
MIN_RATE, MAX_RATE = 4000, 384000
MAX_CHANNELS = 2
MAX_SAMPLES = 24_000_000
"""A minute in two channels at 192 kHz has fewer."""
BLOCK = 65536
FADE_SECONDS = 0.005
UNKNOWN = 0xFFFFFFFF
BYTES_PER_SAMPLE = 2


@dataclass(frozen=True, slots=True)
class Recording:
    """Samples as a file holds them. samples: (N, C) float32 in any range, C is 1 or 2. rate: Hz."""

    name: str
    samples: NDArray[np.float32] = field(repr=False)
    rate: int


def read_recording(
    source: str | Path | bytes | BinaryIO, min_seconds: float, max_seconds: float
) -> Recording:
    """Read a recording as it is.

    Args:
        source: WAV, FLAC, OGG or MP3 with any rate: a path, its bytes, or an open file.
        min_seconds, max_seconds: the length accepted; a longer file is not decoded.

    Raises:
        PromptError: not there, not audio, of a wrong length, with more than two channels, or not finite.
    """
    name = "the recording"
    if isinstance(source, str | Path):
        name, path = str(source), Path(source)
        check_readable(path)
    try:
        with ExitStack() as opened:
            if isinstance(source, str | Path):
                source = opened.enter_context(path.open("rb"))
            binary = BytesIO(source) if isinstance(source, bytes) else source
            check_format(name, binary)
            with soundfile.SoundFile(repaired(binary)) as file:
                rate = int(file.samplerate)
                check_header(name, rate, file.frames, min_seconds, max_seconds)
                check_channels(name, file.channels, file.frames)
                samples = joined_blocks(file, file.frames)
    except (soundfile.SoundFileError, OSError) as error:
        reason = getattr(error, "error_string", None) or error
        raise PromptError(f"{name} is not audio that can be read (WAV, FLAC, OGG, MP3): {reason}") from None
    # a damaged file holds less than its header says
    check_header(name, rate, len(samples), min_seconds, max_seconds)
    if not np.isfinite(samples).all():
        raise PromptError(f"{name} holds NaN or infinite samples; record or convert it again")
    return Recording(name, samples, rate)


def check_channels(name: str, channels: int, frames: int) -> None:
    """Refuse more channels or samples than a recording of one speaker has, before they are decoded."""
    if channels > MAX_CHANNELS:
        raise PromptError(f"{name} has {channels} channels; expected 1 or 2: convert it to mono")
    if channels * frames > MAX_SAMPLES:
        raise PromptError(f"{name} has {channels * frames:,} samples; expected up to {MAX_SAMPLES:,}: cut it")


def check_readable(path: Path) -> None:
    """Refuse a path that is no file or an empty one. A pipe or a device would block."""
    if path.is_dir():
        raise PromptError(f"{path} is a folder; give an audio file in it")
    if not path.is_file():
        raise PromptError(f"{path}: no such audio file")
    if not path.stat().st_size:
        raise PromptError(f"{path} is empty; expected a recording of speech")


def check_header(name: str, rate: int, frames: int, min_seconds: float, max_seconds: float) -> None:
    """Refuse a rate or a length that a prompt cannot have."""
    if not MIN_RATE <= rate <= MAX_RATE:
        raise PromptError(f"{name} has a rate of {rate} Hz; expected {MIN_RATE} to {MAX_RATE}: convert it")
    seconds = frames / rate
    if not min_seconds <= seconds <= max_seconds:
        remedy = "cut it to" if seconds > max_seconds else "record"
        raise PromptError(
            f"{name} lasts {seconds:.2f} s; expected {min_seconds:g} to {max_seconds:g} s: "
            f"{remedy} one or two sentences"
        )


def joined_blocks(file: Any, frames: int) -> NDArray[np.float32]:
    """At most `frames` of a file, (N, C) float32. A header can promise far more than the file holds."""
    blocks = [np.zeros((0, file.channels), np.float32)]
    while frames > 0:
        block = file.read(min(BLOCK, frames), dtype="float32", always_2d=True)
        if not len(block):
            break
        frames -= len(block)
        blocks.append(block)
    return np.concatenate(blocks)


def check_writable(path: str) -> None:
    """Refuse a target that cannot be written, before work is done for it."""
    if path == STDOUT:
        if sys.stdout.isatty():
            raise AudioError("standard output is a terminal; send it to a program or a file, or give a name")
        return
    check_target(path, FORMATS, "audio")


def check_target(path: str, suffixes: Collection[str], kind: str) -> None:
    """Refuse a file that cannot be written. kind: of file, for the message.

    Raises:
        AudioError: unknown suffix, no folder, or no permission.
    """
    target = Path(path)
    if target.suffix.lower() not in suffixes:
        raise AudioError(f"{path}: unknown {kind} type; expected a name ending in {', '.join(suffixes)}")
    if target.is_dir():
        raise AudioError(f"{path} is a folder; give a file name in it")
    if not target.parent.is_dir():
        raise AudioError(f"{target.parent} does not exist; make it with: mkdir -p {target.parent}")
    if not os.access(target.parent, os.W_OK):
        raise AudioError(f"{target.parent} is read-only; choose another folder")
    if target.exists() and not os.access(target, os.W_OK):
        raise AudioError(f"{path} is write-protected; choose another name")


def write_audio(path: str, audio: Audio, rate: int) -> None:
    """Write 16-bit audio in the format of the suffix, or a WAV to standard output for `-`.

    Raises:
        AudioError: the target cannot be written. An earlier file there is unchanged.
    """
    check_writable(path)
    if path == STDOUT:
        sys.stdout.buffer.write(encode(audio, rate, "WAV"))
        sys.stdout.buffer.flush()
        return
    data = encode(audio, rate, FORMATS[Path(path).suffix.lower()])
    target = Path(os.path.realpath(path))  # a link stays one
    try:
        with replacing_file(target) as part:
            part.write_bytes(data)
            if target.exists():
                shutil.copymode(target, part)
    except OSError as error:
        raise AudioError(f"{path} cannot be written: {error.strerror}") from None


def encode(audio: Audio, rate: int, kind: str) -> bytes:
    """Encode without clipping, with a comment that the speech is synthetic."""
    if not np.isfinite(audio).all():
        raise AudioError("the audio holds NaN or infinite samples; nothing was written: check the model")
    memory = BytesIO()
    subtype = {"WAV": "PCM_16", "FLAC": "PCM_16"}.get(kind)
    limited = peak_limit(audio)
    try:
        with soundfile.SoundFile(memory, "w", rate, 1, subtype=subtype, format=kind) as file:
            file.comment, file.software = provenance()
            for start in range(0, len(limited), BLOCK):  # one long write overflows Vorbis's stack
                file.write(limited[start : start + BLOCK])
    except soundfile.LibsndfileError as error:
        raise AudioError(f"{kind} at {rate} Hz cannot be written: {error.error_string} Use .wav") from None
    return memory.getvalue()


def provenance() -> tuple[str, str]:
    """The comment of every file, that its speech is synthetic, and the program that made it."""
    maker = f"valle2 {version('valle2')}"
    return f"Synthetic speech made by {maker}", maker


def peak_limit(audio: Audio) -> Audio:
    """The audio, scaled as a whole if its peak is beyond full scale."""
    peak = float(np.abs(audio).max(initial=0.0))
    return audio / np.float32(peak) if peak > 1.0 else audio


def faded(audio: Audio, rate: int, *, first: bool = True, last: bool = True) -> Audio:
    """A copy with ramps of 5 ms, so that joined sentences do not click.

    Args:
        first, last: does the audio hold the beginning, and the end, of its sentence?
    """
    out: Audio = audio.copy()
    size = min(int(FADE_SECONDS * rate), len(out) // 2)
    ramp = np.linspace(0, 1, size, dtype=np.float32)
    if first:
        out[:size] *= ramp
    if last:
        out[len(out) - size :] *= ramp[::-1]
    return out


def silence(seconds: float, rate: int) -> Audio:
    """(N,) float32 zeros. rate: Hz."""
    return np.zeros(int(seconds * rate), np.float32)


def join(pieces: Sequence[Audio]) -> Audio:
    """Pieces end to end."""
    return np.concatenate(pieces) if pieces else np.zeros(0, np.float32)


def stream_header(rate: int) -> bytes:
    """The header of a 16-bit mono WAV of unknown length, which players read until the stream ends."""
    comment, software = (text.encode() + b"\0" * (2 - len(text) % 2) for text in provenance())
    fmt = struct.pack("<HHIIHH", 1, 1, rate, rate * BYTES_PER_SAMPLE, BYTES_PER_SAMPLE, 8 * BYTES_PER_SAMPLE)
    info = b"INFO" + chunk(b"ICMT", comment) + chunk(b"ISFT", software)
    head = b"WAVE" + chunk(b"fmt ", fmt) + chunk(b"LIST", info)
    return b"RIFF" + struct.pack("<I", UNKNOWN) + head + b"data" + struct.pack("<I", UNKNOWN)


def chunk(name: bytes, data: bytes) -> bytes:
    """A RIFF chunk. data: an even number of bytes."""
    return name + struct.pack("<I", len(data)) + data


def pcm16(audio: Audio) -> bytes:
    """(N,) float32 as little-endian 16-bit samples: rounded as in libsndfile, clipped at full scale."""
    return np.clip(np.floor(audio * 32768), -32768, 32767).astype("<i2").tobytes()
