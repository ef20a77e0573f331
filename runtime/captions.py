"""Captions: words with their times as SRT, WebVTT or JSON.

A cue is one line of at most `LINE` characters. It ends where a sentence ends or before a pause, too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from valle2.engine.bundle.files import replacing_file
from valle2.runtime.audio.io import check_target
from valle2.runtime.errors import AudioError
from valle2.runtime.types import Word

LINE = 42
"""Characters of a line, the usual limit of subtitles. A longer word has a line of its own."""
PAUSE_SECONDS = 0.5
"""A silence between two words that ends a cue."""
SENTENCE_ENDS = ".?!…"
CLOSING = "\"'”’)]"
FORMATS = (".srt", ".vtt", ".json")
VTT_ESCAPES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})


def check_captions(path: str) -> None:
    """Refuse a caption file that cannot be written, before work is done for it.

    Raises:
        AudioError: unknown suffix, or the file cannot be written.
    """
    check_target(path, FORMATS, "caption")


def write_captions(path: str, words: Sequence[Word]) -> None:
    """Write the words in the format of the suffix: .srt, .vtt or .json.

    Raises:
        AudioError: the file cannot be written. An earlier file there is unchanged.
    """
    check_captions(path)
    write = {".srt": srt, ".vtt": vtt, ".json": json_words}[Path(path).suffix.lower()]
    try:
        with replacing_file(Path(os.path.realpath(path))) as part:  # a link stays one
            part.write_text(write(words), encoding="utf-8", newline="\n")
    except OSError as error:
        raise AudioError(f"{path} cannot be written: {error.strerror}") from None


def srt(words: Sequence[Word]) -> str:
    """SubRip. It has no escapes, so an arrow in a word, which would be read as one of times, is shortened."""
    parts = [
        f"{number}\n{clock(cue[0].start, ',')} --> {clock(cue[-1].end, ',')}\n"
        f"{line_of(cue).replace('-->', '->')}\n"
        for number, cue in enumerate(cues(words), 1)
    ]
    return "\n".join(parts)


def vtt(words: Sequence[Word]) -> str:
    """WebVTT."""
    parts = [
        f"{clock(cue[0].start, '.')} --> {clock(cue[-1].end, '.')}\n{line_of(cue).translate(VTT_ESCAPES)}\n"
        for cue in cues(words)
    ]
    return "\n".join(["WEBVTT\n", *parts])


def json_words(words: Iterable[Word]) -> str:
    """`{"words": [{"word", "start", "end"}]}`, times in seconds."""
    return json.dumps({"words": [described(word) for word in words]}, ensure_ascii=False, indent=1) + "\n"


def described(word: Word) -> dict[str, str | float]:
    """A word as JSON has it, with times in seconds to the millisecond."""
    return {"word": word.text, "start": round(word.start, 3), "end": round(word.end, 3)}


def cues(words: Iterable[Word]) -> list[list[Word]]:
    """The words by lines."""
    found: list[list[Word]] = []
    for word in words:
        if found and continues(found[-1], word):
            found[-1].append(word)
        else:
            found.append([word])
    return found


def continues(cue: Sequence[Word], word: Word) -> bool:
    """Does a word stand in the same cue as those before it?"""
    ended = cue[-1].text.rstrip(CLOSING).endswith(tuple(SENTENCE_ENDS))
    fits = len(line_of([*cue, word])) <= LINE
    return fits and not ended and word.start - cue[-1].end < PAUSE_SECONDS


def line_of(cue: Iterable[Word]) -> str:
    """The words of a cue on one line."""
    return " ".join(" ".join(word.text.split()) for word in cue)


def clock(seconds: float, point: str) -> str:
    """Hours, minutes, seconds and milliseconds: "00:01:02.345"."""
    milliseconds = round(seconds * 1000)
    minutes, rest = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}{point}{rest % 1000:03}"
