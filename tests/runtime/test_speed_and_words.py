"""Speed and times of words through the model: `synthesize`, `stream` and `say`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.listen import ENOUGH, share_heard
from valle2.benchmarks.quality.judges import Judges
from valle2.runtime import Prompt, Request, Settings, Valle2
from valle2.runtime.cli.main import main
from valle2.runtime.errors import ModelError, SettingsError
from valle2.runtime.tts import PAUSE_SECONDS

TEXT = "On Jan. 5, 2024 it cost $5. The quick brown fox jumps over the lazy dog."
SHORT = Settings(max_frames=60, seed=2)


@pytest.fixture(scope="module")
def demo() -> Valle2:
    return Valle2.load("demo")


# -- speed ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("speed", [0.25, 0.5, 0.8, 1.5, 2.0, 4.0])
def test_speed_changes_the_length_of_speech_and_pauses(tts: Valle2, voice: Prompt, speed: float) -> None:
    usual = tts.synthesize("hello. there.", voice, SHORT)
    made = tts.synthesize("hello. there.", voice, SHORT, speed=speed)
    assert abs(len(made.audio) * speed / len(usual.audio) - 1) < 0.01
    assert np.array_equal(made.codes, usual.codes) and made.finish_reason == usual.finish_reason
    pause = int(PAUSE_SECONDS / speed * made.sample_rate)
    quiet = np.convolve(np.abs(made.audio) == 0, np.ones(pause, int), "valid")
    assert quiet.max() == pause


def test_speed_1_leaves_the_samples_alone(tts: Valle2, voice: Prompt) -> None:
    usual = tts.synthesize("hello there. the fox", voice, SHORT)
    for speed in (1, 1.0, float(np.float32(1))):
        assert np.array_equal(
            tts.synthesize("hello there. the fox", voice, SHORT, speed=speed).audio, usual.audio
        )


@pytest.mark.parametrize("speed", [0.6, 1.7])
def test_a_stream_of_whole_sentences_is_what_synthesize_gives(
    tts: Valle2, voice: Prompt, speed: float
) -> None:
    with tts.stream("hello. there.", voice, SHORT, first_chunk_seconds=0, speed=speed) as stream:
        pieces = np.concatenate(list(stream))
    assert np.array_equal(pieces, tts.synthesize("hello. there.", voice, SHORT, speed=speed).audio)


@pytest.mark.parametrize("speed", [0.6, 4.0])
def test_a_stream_has_the_same_length_and_no_clicks(demo: Valle2, speed: float) -> None:
    voice, text = demo.voice("elm"), "The lighthouse stood at the end of the road."
    usual = demo.synthesize(text, voice)
    with demo.stream(text, voice, speed=speed) as stream:
        pieces = list(stream)
    made = np.concatenate(pieces)
    assert len(pieces) > 2 and abs(len(made) * speed / len(usual.audio) - 1) < 0.01
    assert np.abs(np.diff(made)).max() < 1.3 * np.abs(np.diff(usual.audio)).max()


@pytest.mark.parametrize("speed", [0.24, 4.1, 0, -1, float("nan"), float("inf"), "2", None, True])
def test_a_speed_out_of_range(tts: Valle2, voice: Prompt, speed: object) -> None:
    with pytest.raises(SettingsError, match=r"speed is .+; expected a number from 0\.25 to 4"):
        tts.synthesize("hello", voice, speed=speed)  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="speed is"):
        Request("hello", voice, speed=speed)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("speed", [0.5, 0.75, 1.5, 2.0])
def test_the_words_are_heard_at_every_speed(demo: Valle2, speed: float) -> None:
    text = "The quick brown fox jumps over the lazy dog."
    speech = demo.synthesize(text, demo.voice("elm"), speed=speed)
    assert share_heard(Judges().transcribe(speech.audio, speech.sample_rate), text) >= ENOUGH


# -- words ------------------------------------------------------------------------------------------------


def test_every_written_word_has_its_time(demo: Valle2) -> None:
    voice = demo.voice("elm")
    speech = demo.synthesize(TEXT, voice, timestamps=True)
    assert " ".join(word.text for word in speech.words) == TEXT
    seconds = len(speech.audio) / speech.sample_rate
    times = [time for word in speech.words for time in (word.start, word.end)]
    assert times == sorted(times) and times[0] >= 0 and times[-1] <= seconds
    assert min(word.end - word.start for word in speech.words) > 0.01  # a frame at least
    plain = demo.synthesize(TEXT, voice)
    assert np.array_equal(plain.audio, speech.audio) and plain.words == ()


@pytest.mark.parametrize("speed", [1.0, 1.5])
def test_a_stream_gives_the_same_words(demo: Valle2, speed: float) -> None:
    """Up to the last word, words come before the end; times differ from the whole's by little."""
    voice, text = demo.voice("elm"), TEXT
    whole = demo.synthesize(text, voice, speed=speed, timestamps=True)
    with demo.stream(text, voice, speed=speed, timestamps=True) as stream:
        counts = [(len(stream.words), len(piece)) for piece in stream]
    assert [word.text for word in stream.words] == [word.text for word in whole.words]
    assert counts[len(counts) // 2][0] >= 3
    apart = [abs(a.start - b.start) for a, b in zip(stream.words, whole.words, strict=True)]
    assert np.median(apart) < 0.05 / speed
    assert stream.speech().words == stream.words


def test_the_times_are_those_that_whisper_hears(demo: Valle2) -> None:
    """whisper's own times are good to about 0.1 s."""
    text = "The quick brown fox jumps over the lazy dog."
    speech = demo.synthesize(text, demo.voice("elm"), timestamps=True)
    heard = [
        (word.strip(".").lower(), end) for word, end in Judges().word_ends(speech.audio, speech.sample_rate)
    ]
    ours = {word.text.strip(".").lower(): word.end for word in speech.words if word.text.lower() != "the"}
    apart = [abs(ours[word] - end) for word, end in heard if word in ours]
    assert len(apart) >= 5 and np.median(apart) < 0.15


def test_speech_that_was_cut_has_no_words_that_it_does_not_say(demo: Valle2) -> None:
    speech = demo.synthesize(TEXT, demo.voice("elm"), Settings(max_frames=60), timestamps=True)
    assert speech.finish_reason == "max_frames" and 1 <= len(speech.words) < len(TEXT.split())


def test_a_model_without_a_table_says_so(tts: Valle2, voice: Prompt) -> None:
    for ask in (tts.synthesize, tts.stream):
        with pytest.raises(ModelError, match=r"has no word times, because it has no text/alignment"):
            ask("hello", voice, timestamps=True)


# -- say --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [[], ["--stream"]])
def test_say_writes_captions(more: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, captions = str(tmp_path / "a.wav"), str(tmp_path / "a.json")
    text = "It cost $5, didn't it?"
    assert main(["say", text, "-o", out, "--captions", captions, "--speed", "2", "--json", *more]) == 0
    result = json.loads(capsys.readouterr().out)
    words = json.loads(Path(captions).read_text())["words"]
    assert result["captions"] == captions and [word["word"] for word in words] == text.split()
    assert words[-1]["end"] <= result["seconds"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--captions", "a.txt"], "unknown caption type"),
        (["--speed", "5"], "speed is 5.0; expected a number from 0.25 to 4"),
        (["--speed", "nan"], "speed is nan"),
    ],
)
def test_say_refuses_before_it_works(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Valle2, "load", lambda *_, **__: pytest.fail("the model was loaded"))
    assert main(["say", "hello", *arguments]) == 1
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_say_with_a_model_without_a_table(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, captions = tmp_path / "a.wav", tmp_path / "a.srt"
    assert main(["say", "hello", "--model", str(bundle), "-o", str(out), "--captions", str(captions)]) == 1
    assert "has no word times" in capsys.readouterr().err and not list(tmp_path.iterdir())
