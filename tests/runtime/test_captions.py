"""Caption files: their times, lines, escapes, and files that cannot be written."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from valle2.runtime.captions import LINE, check_captions, cues, srt, vtt, write_captions
from valle2.runtime.errors import AudioError
from valle2.runtime.types import Word


def spoken(text: str, seconds: float = 0.3, start: float = 0.0) -> list[Word]:
    """Words one after the other, each as long as the others."""
    return [
        Word(word, start + index * seconds, start + (index + 1) * seconds)
        for index, word in enumerate(text.split())
    ]


def lines(words: list[Word]) -> list[str]:
    return [" ".join(word.text for word in cue) for cue in cues(words)]


def test_srt() -> None:
    words = [Word("Hello", 0.0, 0.5), Word("there.", 0.5, 1.0), Word("Bye", 3661.2345, 3662.9999)]
    assert srt(words) == (
        "1\n00:00:00,000 --> 00:00:01,000\nHello there.\n\n2\n01:01:01,234 --> 01:01:03,000\nBye\n"
    )


def test_vtt_escapes_what_would_be_markup() -> None:
    words = spoken("a<b> R&D --> x")
    assert vtt(words) == ("WEBVTT\n\n00:00:00.000 --> 00:00:01.200\na&lt;b&gt; R&amp;D --&gt; x\n")
    assert srt(words).count("-->") == 1  # the line of times alone


@pytest.mark.parametrize("text", ["one two three four five six seven eight nine ten eleven twelve " * 9])
def test_lines_are_short_and_lose_no_word(text: str) -> None:
    found = lines(spoken(text))
    assert max(map(len, found)) <= LINE and min(map(len, found[:-1])) > LINE - 8
    assert " ".join(found).split() == text.split()


def test_a_long_word_has_a_line_of_its_own() -> None:
    word = "a" * 60
    assert lines(spoken(f"see {word} there")) == ["see", word, "there"]


def test_a_sentence_or_a_pause_ends_a_line() -> None:
    assert lines(spoken('He said "no." Then left… all')) == ['He said "no."', "Then left…", "all"]
    assert lines([*spoken("one two"), *spoken("three", start=1.2)]) == ["one two", "three"]


@pytest.mark.parametrize("words", [[], spoken("one. two. three.")])
def test_every_format_has_every_cue_in_order(words: list[Word], tmp_path: Path) -> None:
    times = re.compile(r"\d\d:\d\d:\d\d[,.]\d{3} --> \d\d:\d\d:\d\d[,.]\d{3}")
    for suffix in (".srt", ".vtt", ".JSON"):
        path = tmp_path / f"captions{suffix}"
        path.write_text("earlier")
        write_captions(str(path), words)
        text = path.read_text(encoding="utf-8")
        if suffix == ".JSON":
            expected = [{"word": w.text, "start": round(w.start, 3), "end": round(w.end, 3)} for w in words]
            assert json.loads(text) == {"words": expected}
        else:
            assert len(times.findall(text)) == len(words)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("x.txt", r"unknown caption type; expected a name ending in \.srt, \.vtt, \.json"),
        ("x", "unknown caption type"),
        ("none/x.srt", "does not exist; make it with"),
        ("folder.srt", "is a folder"),
    ],
)
def test_a_file_that_cannot_be_written(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "folder.srt").mkdir()
    with pytest.raises(AudioError, match=message):
        check_captions(str(tmp_path / name))
    with pytest.raises(AudioError, match=message):
        write_captions(str(tmp_path / name), [])
    assert [path.name for path in tmp_path.iterdir()] == ["folder.srt"]
