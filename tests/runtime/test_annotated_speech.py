"""Pauses, speeds, pronunciations and warnings from a text to the engine and to the speech."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from valle2.runtime import Request, Settings, SpokenText, Valle2, read_lexicon
from valle2.runtime.errors import LexiconError, TextError
from valle2.runtime.generation.engine import Sentence
from valle2.runtime.tts import PAUSE_SECONDS

SHORT = Settings(top_p=0.0, max_frames=8)


@pytest.fixture(scope="module")
def demo() -> Valle2:
    return Valle2.load("demo", threads=1)


def sentences(tts: Valle2, text: str, lexicon: dict[str, str] | None = None) -> tuple[Sentence, ...]:
    voice = tts.voice(tts.default_voice())
    return tts.encode(Request(text, voice, SHORT, lexicon=lexicon or {})).sentences


def test_a_break_is_silence(demo: Valle2) -> None:
    voice = demo.voice(demo.default_voice())
    plain = demo.synthesize("Hello. There.", voice, SHORT)
    text = '<speak><break time="300ms"/>Hello.<break time="500ms"/>There.<break time="250ms"/></speak>'
    paused = demo.synthesize(text, voice, SHORT)
    more = 0.3 + 0.5 - PAUSE_SECONDS + 0.25
    assert len(paused.audio) - len(plain.audio) == pytest.approx(more * demo.sample_rate, abs=3)
    assert not paused.audio[: int(0.29 * demo.sample_rate)].any()
    assert not paused.audio[-int(0.24 * demo.sample_rate) :].any()
    assert np.array_equal(paused.codes, plain.codes)


def test_a_rate_is_the_speed_of_its_sentences(demo: Valle2) -> None:
    text = "<speak>One. <break time='1s'/><prosody rate='50%'>Two. Three.</prosody> Four.</speak>"
    found = sentences(demo, text)
    assert [each.speed for each in found] == [1.0, 0.5, 0.5, 1.0]
    # the engine stretches a pause with its sentence: one second stays one second
    assert [each.pause / each.speed for each in found[1:2]] == [1.0]


def test_a_speed_multiplies_with_the_rates(demo: Valle2) -> None:
    voice = demo.voice(demo.default_voice())
    text = "<speak>One.<break time='1s'/><prosody rate='50%'>Two.</prosody><break time='1s'/></speak>"
    encoded = demo.encode(Request(text, voice, SHORT, speed=2.0))
    assert [each.speed for each in encoded.sentences] == [2.0, 1.0]
    assert [each.pause / each.speed for each in encoded.sentences] == [0.0, 0.5]
    assert encoded.end_pause == 0.5
    fastest = demo.encode(Request("<speak><prosody rate='400%'>One.</prosody></speak>", voice, speed=4.0))
    assert fastest.sentences[0].speed == 4.0


def test_a_pronunciation_of_several_words_is_one_word_of_the_times(demo: Valle2) -> None:
    front = demo.need_front()
    script = front.script("In [New York](/nˌu jˈɔɹk/) today.")
    (found,) = front.encode_request("Hello.", script, 200)
    spans = front.words_of(found)
    assert [script.spellings.readable(span.text) for span in spans] == ["In", "New York", "today."]
    assert all(one.end <= other.start for one, other in pairwise(spans))


def test_a_lexicon_of_the_request_wins_over_that_of_the_model(demo: Valle2, tmp_path: Path) -> None:
    (tmp_path / "words.tsv").write_text("SQL\tˈsiːkwəl\nfox\tˈeɪ\n", encoding="utf-8")
    usual = demo.spoken("SQL fox")
    demo.lexicon = read_lexicon(tmp_path / "words.tsv")
    try:
        assert demo.lexicon == {"SQL": "ˈsiːkwəl", "fox": "ˈeɪ"}
        assert demo.spoken("SQL fox").sentences[0].phonemes == "sˈikwəl ˈA."
        assert demo.spoken("SQL fox", {"SQL": "ˈaɪ"}).sentences[0].phonemes == "ˈI ˈA."
        with pytest.raises(LexiconError, match="'x'"):
            demo.lexicon = {"Bach": "bɑx"}
        assert demo.lexicon["SQL"] == "ˈsiːkwəl", "a lexicon that is refused changes nothing"
    finally:
        demo.lexicon = {}
    assert demo.spoken("SQL fox") == usual


def test_a_pronunciation_reaches_the_model(demo: Valle2) -> None:
    said = sentences(demo, "In Ljubljana.", {"Ljubljana": "ljuːbˈljɑːnə"})
    inline = sentences(demo, "In [Ljubljana](/ljuːbˈljɑːnə/).")
    usual = sentences(demo, "In Ljubljana.")
    assert np.array_equal(said[0].text.ids, inline[0].text.ids)
    assert not np.array_equal(said[0].text.ids, usual[0].text.ids)


def test_every_call_takes_a_lexicon(demo: Valle2) -> None:
    voice, lexicon = demo.voice(demo.default_voice()), {"fox": "ˈeɪ"}
    one = demo.synthesize("A fox.", voice, SHORT, lexicon=lexicon)
    with demo.stream("A fox.", voice, SHORT, first_chunk_seconds=0, lexicon=lexicon) as stream:
        assert np.array_equal(np.concatenate(list(stream)), one.audio)
    (batched,) = demo.synthesize_batch([Request("A fox.", voice, SHORT, lexicon=lexicon)])
    assert np.array_equal(batched.codes, one.codes)


def test_what_is_left_out_is_a_warning_of_the_speech(demo: Valle2) -> None:
    voice = demo.voice(demo.default_voice())
    (warning,) = demo.synthesize("你好 world", voice, SHORT).warnings
    assert "'你好'" in warning
    assert demo.synthesize("world", voice, SHORT).warnings == ()
    with pytest.raises(TextError, match="nothing that can be spoken"):
        demo.synthesize("你好", voice, SHORT)


def test_spoken_shows_what_is_said(demo: Valle2) -> None:
    found = demo.spoken("Dr. Fox paid $5. 你好")
    assert isinstance(found, SpokenText)
    (sentence,) = found.sentences
    assert sentence.spoken == "doctor Fox paid five dollars."
    assert list(sentence.ids) == list(demo.need_front().encode(sentence.text))
    assert len(found.warnings) == 1


def test_malformed_ssml_is_a_text_error(demo: Valle2) -> None:
    with pytest.raises(TextError, match="line 1, column"):
        demo.spoken("<speak>a")
