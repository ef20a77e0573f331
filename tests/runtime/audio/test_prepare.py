"""Prompts made of recordings as people send them: levels, ends, channels, headers, faults, warnings."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from numpy.typing import NDArray

from valle2.runtime import Valle2
from valle2.runtime.audio.checks import bandwidth, check_transcript
from valle2.runtime.audio.containers import repaired
from valle2.runtime.audio.io import MAX_SAMPLES, read_recording
from valle2.runtime.audio.levels import frame_levels, silence_level
from valle2.runtime.audio.prepare import LEVEL, LONGEST_END, PAUSE_SECONDS, Prepared, prepare
from valle2.runtime.errors import PromptError

Floats = NDArray[np.float64]
RATE = 24000


@pytest.fixture(scope="module")
def demo() -> Valle2:
    return Valle2.load("demo", threads=1)


@pytest.fixture(scope="module")
def voice(demo: Valle2) -> Floats:
    """Speech of a person as far as the embedded model goes, 3.4 s, without silence at its ends."""
    made = demo.need_codec().decode(demo.voice("elm").codes).astype(np.float64)
    return prepared(made / np.abs(made).max() / 2).audio.astype(np.float64)[
        int(0.1 * RATE) : -int(0.1 * RATE)
    ]


def noise(seconds: float, level: float, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).normal(0, level, int(seconds * RATE))


def wav(sound: Floats, rate: int = RATE, subtype: str = "DOUBLE", kind: str = "WAV") -> bytes:
    memory = BytesIO()
    soundfile.write(memory, sound, rate, subtype=subtype, format=kind)
    return memory.getvalue()


def prepared(sound: Floats, rate: int = RATE, **more: str) -> Prepared:
    return prepare(read_recording(wav(sound, rate, **more), 0.5, 60), RATE, 0.5, 20)


def around(voice: Floats, seconds: float, level: float) -> Floats:
    """The voice between two stretches of noise, with the noise under it too."""
    silence = np.zeros(int(seconds * RATE))
    whole = np.concatenate([silence, voice, silence])
    return np.asarray(whole + noise(len(whole) / RATE, level)[: len(whole)] if level else whole)


@pytest.mark.parametrize("gain", [0, -30, -50, -70, 30, 90])
def test_gain_changes_no_code(demo: Valle2, voice: Floats, gain: float) -> None:
    expected = demo.prompt(wav(voice), "some words that are said").codes
    found = demo.prompt(wav(voice * 10 ** (gain / 20)), "some words that are said").codes
    assert len(found) == len(expected) and (found == expected).mean() > 0.99


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE"])
def test_sample_formats_change_nothing(voice: Floats, subtype: str) -> None:
    assert np.abs(prepared(voice, subtype=subtype).audio - prepared(voice).audio).max() < 1e-3


def test_the_range_of_16_bits_as_floats(voice: Floats) -> None:
    assert np.abs(prepared(voice * 32768, subtype="FLOAT").audio - prepared(voice).audio).max() < 1e-3


def test_the_speech_has_the_level_that_models_know(voice: Floats) -> None:
    found = prepared(around(0.01 * voice, 3, 0)).audio
    assert 0.7 * LEVEL < found.std() < 1.3 * LEVEL and np.abs(found).max() <= 1


@pytest.mark.parametrize("level", [0, 1e-4, 1e-3, 3e-3])
@pytest.mark.parametrize("seconds", [0.3, 2, 8])
def test_silence_and_faint_noise_at_the_ends_are_cut(voice: Floats, level: float, seconds: float) -> None:
    """levels: from digital silence up to 30 dB below the speech."""
    found = prepared(around(voice, seconds, level)).audio
    natural = LONGEST_END if seconds <= LONGEST_END else 0.0
    assert len(voice) / RATE - 0.15 < len(found) / RATE < len(voice) / RATE + 0.3 + natural


def test_a_clean_recording_keeps_its_natural_ends(voice: Floats) -> None:
    """Sentences end with half a second of silence where models learn from them."""
    sound = np.r_[np.zeros(RATE // 10), voice, np.zeros(RATE // 2)]
    found, cut = prepared(sound).audio, prepared(np.r_[sound, np.zeros(RATE)]).audio
    assert len(found) == len(sound) and len(cut) < len(voice) + RATE // 4
    inner = slice(RATE // 5, -RATE // 5)
    assert np.corrcoef(found[inner], sound[inner])[0, 1] > 0.9999, "the level alone has changed"


def cut_off(voice: Floats) -> list[Floats]:
    """The speech up to three places inside words: after 0.1 s without a quiet frame."""
    levels = frame_levels(voice, RATE)
    loud = levels > silence_level(levels) + 8
    ends = [end for end in range(50, len(loud)) if loud[end - 5 : end].all()]
    return [voice[: end * RATE // 50] for end in ends[:: len(ends) // 3]][:3]


@pytest.mark.parametrize("rate", [8000, RATE, 44_100])
@pytest.mark.parametrize("noise", [0.0, 1e-3])
@pytest.mark.parametrize("silent", [0.0, 0.04])
def test_a_pause_follows_speech_that_is_cut_off(
    voice: Floats, rate: int, noise: float, silent: float
) -> None:
    """A recording may stop inside a word. The models' training sentences end with a pause."""
    for speech in cut_off(voice):
        part = np.r_[speech, np.zeros(int(silent * RATE))]
        part = part + np.random.default_rng(0).normal(0, noise, len(part))
        found = prepared(soxr.resample(part, RATE, rate), rate)
        assert abs(len(found.audio) - len(part) - PAUSE_SECONDS * RATE) <= 0.02 * RATE
        pause = found.audio[-int(PAUSE_SECONDS * RATE) :]
        assert not pause.any() and np.abs(found.audio[: -len(pause)]).max() > LEVEL
        assert found.speech_seconds < len(speech) / RATE + 0.05, "the pause is no speech"


def test_a_pause_that_is_there_stays(voice: Floats) -> None:
    for speech in cut_off(voice):
        for silent in (0.15, 0.3):
            sound = np.r_[speech, np.zeros(int(silent * RATE))]
            assert len(prepared(sound).audio) <= len(sound)


FAULTS: dict[str, Callable[[Floats], Floats]] = {
    "a click at the start": lambda x: np.r_[0.0, 0.9, -0.9, np.zeros(RATE), x],
    "a knock at the end": lambda x: np.r_[x, np.zeros(RATE), knock(), np.zeros(RATE // 2)],
    "both": lambda x: np.r_[knock(), np.zeros(RATE), x, np.zeros(RATE), 0.9, -0.9],
    "hum": lambda x: x_and(x, np.sin(2 * np.pi * 50 * np.arange(len(x) + 4 * RATE) / RATE) * 0.02),
    "offset": lambda x: x_and(x, np.full(len(x) + 4 * RATE, 0.2)),
    "drift": lambda x: x_and(x, np.linspace(-0.2, 0.2, len(x) + 4 * RATE)),
}


def knock() -> Floats:
    t = np.arange(int(0.1 * RATE)) / RATE
    return np.asarray(0.9 * np.sin(2 * np.pi * 180 * t) * np.exp(-60 * t))


def x_and(voice: Floats, other: Floats) -> Floats:
    return np.asarray(np.r_[np.zeros(2 * RATE), voice, np.zeros(2 * RATE)] + other)


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_not_speech_at_the_ends_is_cut(voice: Floats, fault: str) -> None:
    expected, found = prepared(voice), prepared(FAULTS[fault](voice))
    assert abs(found.speech_seconds - expected.speech_seconds) < 0.15
    shorter = min(len(found.audio), len(expected.audio))
    assert (
        shorter / RATE > expected.speech_seconds and abs(found.audio.std() / expected.audio.std() - 1) < 0.15
    )
    assert abs(found.audio.mean()) < 0.01


@pytest.mark.parametrize("other", [1.0, -1.0, -0.9, -1.1, -0.8, 0.0, 0.3])
def test_two_channels_are_never_cancelled(voice: Floats, other: float) -> None:
    """other: the second channel beside the first."""
    found = prepared(np.stack([voice, other * voice], axis=1)).audio
    assert np.corrcoef(np.abs(found), np.abs(prepared(voice).audio))[0, 1] > 0.98


def test_a_click_does_not_set_the_level(voice: Floats) -> None:
    clicked = voice * 0.05
    clicked[RATE] = 1.0
    assert abs(prepared(clicked).audio.std() / prepared(voice).audio.std() - 1) < 0.1


def header_with(content: bytes, riff: int, data: int) -> bytes:
    changed = bytearray(content)
    at = content.index(b"data") + 4
    struct.pack_into("<I", changed, 4, riff)
    struct.pack_into("<I", changed, at, data)
    return bytes(changed)


@pytest.mark.parametrize("riff", [0, 36, 0xFFFFFFFF, 2**31])
@pytest.mark.parametrize("data", [0, 2, 1000, 0x7FFFFFFF, 0xFFFFFFFF])
@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT", "ULAW", "PCM_U8"])
def test_a_stream_with_wrong_sizes_is_read_to_its_end(
    voice: Floats, riff: int, data: int, subtype: str
) -> None:
    content = wav(voice, subtype=subtype)
    found = read_recording(header_with(content, riff, data), 0.5, 60).samples
    assert np.array_equal(found, read_recording(content, 0.5, 60).samples)


@pytest.mark.parametrize("kind", ["WAV", "WAVEX", "RF64"])
@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_U8", "PCM_24", "ULAW", "ALAW"])
def test_the_kinds_of_wav(voice: Floats, kind: str, subtype: str) -> None:
    found = read_recording(wav(voice, subtype=subtype, kind=kind), 0.5, 60).samples[:, 0]
    assert len(found) == len(voice) and np.corrcoef(found, voice)[0, 1] > 0.99


def test_an_rf64_stream_whose_size_was_never_written(voice: Floats) -> None:
    content = bytearray(wav(voice, subtype="PCM_16", kind="RF64"))
    at = content.index(b"ds64")
    content[at + 8 : at + 32] = bytes(24)
    assert len(read_recording(bytes(content), 0.5, 60).samples) == len(voice)


def test_chunks_after_the_samples_are_no_samples(voice: Floats) -> None:
    content = wav(voice, subtype="PCM_16") + b"LIST" + struct.pack("<I", 8) + b"INFOabcd"
    file = BytesIO(content)
    assert repaired(file) is file
    assert len(read_recording(content, 0.5, 60).samples) == len(voice)


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (b"\x00\x00\x00\x20ftypM4A ", "MP4"),
        (b"\x1aE\xdf\xa3", "WebM"),
        (b"\xff\xf1P\x80", "AAC"),
        (b"#!AMR\n", "AMR"),
    ],
)
def test_formats_that_are_not_read_are_named_with_a_remedy(start: bytes, kind: str) -> None:
    with pytest.raises(PromptError, match=rf"is {kind}.*ffmpeg -i"):
        read_recording(start + bytes(100), 0.5, 20)


def test_opus_is_read(voice: Floats) -> None:
    found = read_recording(wav(voice, subtype="OPUS", kind="OGG"), 0.5, 60)
    assert abs(len(found.samples) / found.rate - len(voice) / RATE) < 0.1


def test_many_channels_are_refused_before_they_are_decoded() -> None:
    content = wav(np.zeros((2 * RATE, 3)) + 0.1, subtype="PCM_16")
    with pytest.raises(PromptError, match="has 3 channels; expected 1 or 2"):
        read_recording(content, 0.5, 20)
    long = wav(np.zeros(MAX_SAMPLES + 1), 384000, subtype="PCM_U8")
    with pytest.raises(PromptError, match="samples; expected up to"):
        read_recording(long, 0.5, 90)


def test_a_long_recording_counts_its_speech_alone(demo: Valle2, voice: Floats) -> None:
    assert len(demo.prompt(wav(around(voice, 20, 0), subtype="PCM_16"), "some words here").codes) < 75 * 5
    with pytest.raises(PromptError, match=r"lasts 75\.\d\d s; expected 0\.5 to 60 s"):
        demo.prompt(wav(np.resize(voice, 75 * RATE + 100), subtype="PCM_16"), "some words here")
    with pytest.raises(PromptError, match=r"the speech in .* lasts 2\d\.\d\d s; expected 0\.5 to 13\.65"):
        demo.prompt(wav(np.resize(voice, 25 * RATE), subtype="PCM_16"), "some words here")
    with pytest.raises(PromptError, match=r"the speech in .* lasts 0\.\d\d s"):
        demo.prompt(wav(around(voice[: RATE // 5], 2, 0)), "hi")


WARNED: dict[str, tuple[Callable[[Floats], Floats], str]] = {
    "noisy": (lambda x: x + noise(len(x) / RATE + 1, 0.03)[: len(x)], "dB above the noise"),
    "clipped": (lambda x: np.clip(x, -0.15, 0.15), "is clipped"),
    "mostly silent": (lambda x: np.r_[x[:RATE], np.zeros(8 * RATE), x[RATE:]], "is mostly silent"),
    "telephone": (lambda x: narrow(x, 8000), r"no sound above [34]\.\d kHz"),
    "16 kHz": (lambda x: narrow(x, 16000), r"no sound above [78]\.\d kHz"),
    "noise": (lambda x: noise(3, 0.1), "no speech was found"),
    "tone": (lambda x: np.sin(np.arange(3 * RATE) / 20.0), "no speech was found"),
}


def narrow(voice: Floats, rate: int) -> Floats:
    return np.asarray(soxr.resample(soxr.resample(voice, RATE, rate), rate, RATE))


@pytest.mark.parametrize("fault", WARNED)
def test_a_poor_recording_has_a_reason(voice: Floats, fault: str) -> None:
    change, message = WARNED[fault]
    found = prepared(change(voice)).warnings
    assert any(re.search(message, warning) for warning in found), found


def test_a_good_recording_has_no_warning(demo: Valle2, voice: Floats) -> None:
    prompt = demo.prompt(wav(around(voice, 1, 1e-4)), demo.voice("elm").transcript)
    assert prompt.warnings == ()


@pytest.mark.parametrize(
    ("transcript", "seconds", "message"),
    [
        ("Hello there, my good old friend.", 2.0, ""),
        ("Hello there, my good old friend. " * 4, 2.0, "longer than can be said"),
        ("Hello.", 5.0, "too short for"),
        ("\u4f60\u597d\u4e16\u754c\u4f60\u597d", 1.5, ""),
    ],
)
def test_a_transcript_that_does_not_fit(transcript: str, seconds: float, message: str) -> None:
    (found,) = check_transcript("x", transcript, seconds) or ("",)
    assert message in found and bool(found) == bool(message)


def test_bandwidth_is_measured_in_half_kilohertz(voice: Floats) -> None:
    assert bandwidth(prepared(voice).audio, RATE) >= 9000
    assert 7000 <= bandwidth(prepared(narrow(voice, 16000)).audio, RATE) <= 8000


@pytest.mark.parametrize("rate", [8000, 16000])
def test_the_empty_band_is_filled_for_a_model_with_wide_voices(voice: Floats, rate: int) -> None:
    recording = read_recording(wav(narrow(voice, rate)), 0.5, 60)
    plain, wide = (prepare(recording, RATE, 0.5, 20, wide=wide).audio for wide in (False, True))
    assert bandwidth(plain, RATE) <= rate / 2 and bandwidth(wide, RATE) > 9000
    assert np.corrcoef(plain, wide)[0, 1] > 0.95, "the speech itself stays"
    again = prepare(recording, RATE, 0.5, 20, wide=True).audio
    assert np.array_equal(wide, again)
    full = read_recording(wav(voice), 0.5, 60)
    same, other = (prepare(full, RATE, 0.5, 20, wide=wide).audio for wide in (False, True))
    assert np.array_equal(same, other), "a recording with the full band stays as it is"


def test_the_voices_of_a_model_say_whether_it_is_wide(demo: Valle2) -> None:
    assert demo.has_wide_voices


def test_silence_has_no_prompt() -> None:
    for level in (0.0, 5e-5):
        with pytest.raises(PromptError, match="is silent"):
            prepared(np.full(RATE, level))


@pytest.mark.parametrize("rate", [8000, RATE, 192_000])
def test_an_offset_is_silent(rate: int) -> None:
    """Such a recording was an IndexError, which the server answered with 500."""
    count = 2 * rate
    both = np.stack([np.full(count, 0.5), np.full(count, -0.5)], axis=1)
    for sound in (np.full(count, 0.5), both, 0.5 + 1e-6 * np.sin(np.arange(count))):
        with pytest.raises(PromptError, match="is silent"):
            prepared(sound, rate)


def test_samples_whose_squares_overflow(voice: Floats) -> None:
    loudest = np.abs(voice).max()
    for peak in (3e38, 1e30, 5e9):
        with pytest.raises(PromptError, match="samples up to"):
            prepared(voice / loudest * peak)
    assert np.array_equal(prepared(voice / loudest * 2.0**31).audio, prepared(voice / loudest).audio)


def test_what_is_not_finite(tmp_path: Path, voice: Floats) -> None:
    for bad in (np.nan, np.inf, 1e300):
        sound = voice.copy()
        sound[5000] = bad
        with pytest.raises(PromptError, match="NaN or infinite"):
            prepared(sound)
