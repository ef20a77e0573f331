"""A text as passages: what is reported, what is spoken, and in which time."""

from __future__ import annotations

import time
from contextlib import suppress

import pytest

from tests.runtime.text.annotations.test_pronunciation import demo as demo
from valle2.runtime.errors import LexiconError, TextError
from valle2.runtime.text.annotations.script import MAX_CHARACTERS
from valle2.runtime.text.annotations.unread import unread_runs, unread_warning
from valle2.runtime.text.base import FrontEnd, IdsFrontEnd
from valle2.runtime.text.normalise import normalise
from valle2.runtime.text.written.markup import plain, without_blocks
from valle2.runtime.types import Phones


@pytest.mark.parametrize(
    ("text", "runs"),
    [
        ("你好 world", ["'你好'"]),
        ("你好world", ["'你好'"]),
        ("Привет, мир! Hello.", ["'Привет, мир'"]),
        ("Привет мир, hello", ["'Привет мир'"]),
        ("γειά σου world", ["'γειά σου'"]),
        ("مرحبا world", ["'مرحبا'"]),
        ("नमस्ते world", ["'नमस्ते'"]),
        ("안녕 and こんにちは", ["'안녕'", "'こんにちは'"]),
        ("Wрong", ["'р' in 'Wрong'"]),
        ("nice \U0001f600", ["'\U0001f600'"]),
        ("family \U0001f468\u200d\U0001f469\u200d\U0001f467 ok", ["'\U0001f468\U0001f469\U0001f467'"]),
        ("★ and ✓ and ♥", ["'★'", "'✓'", "'♥'"]),
        ("Ωμέγα 5 Ω", ["'Ωμέγα'"]),
        ("你 你 你 a 你", ["'你 你 你'", "'你'"]),
        ("\ue000 x", ["''"]),
    ],
)
def test_what_is_left_out_is_shown(text: str, runs: list[str]) -> None:
    assert unread_runs(text) == runs


@pytest.mark.parametrize(
    "text",
    [
        "hello",
        "café naïve Straße Łódź Þór Æsir øre",
        "“Quotes” — dashes… ‘single’ «guillemets»",
        "€5, £5, ¥5, ₹5, 5 ¢",
        "5 Ω, 3 μm, 2 µg, 20 °C, 10 ‰",
        "½ and ¾, x², 10⁶, H₂O",
        "a → b, ±5, 3 × 4, 6 ÷ 2, ≤ 5, ≈ 5, ∞",
        "© ® ™ № 5 § 5",
        "• one\n• two",
        "ＦＵＬＬ width １２",
        "٣ items",
        "zero\u200bwidth\u00ad, no\u00a0break",
        "ﬁne ligature",
    ],
)
def test_what_is_spoken_is_not_reported(text: str) -> None:
    assert unread_warning(text) == []


def test_a_warning_is_short() -> None:
    (warning,) = unread_warning(" a ".join(chr(0x4E00 + index) for index in range(100)))
    assert "and 95 more" in warning and len(warning) < 200
    (warning,) = unread_warning("你" * 100_000 + " hello")
    assert len(warning) < 200 and "…" in warning


@pytest.mark.parametrize(
    "text", ["你好", "Привет", "\U0001f600", "<speak>你好</speak>", "<speak/>", "<b></b>"]
)
def test_if_nothing_is_left_it_is_an_error(demo: FrontEnd, text: str) -> None:
    with pytest.raises(TextError, match="nothing that can be spoken"):
        demo.spoken(text)


def test_warnings_come_with_the_result(demo: FrontEnd) -> None:
    found = demo.spoken("你好 world")
    assert found.warnings == ("left out, because only Latin letters are read: '你好'",)
    assert [sentence.spoken for sentence in found.sentences] == ["world."]
    assert demo.spoken("hello").warnings == ()
    assert demo.spoken("<b>hello</b> &copy; [x](http://例え.jp)").warnings == ()


@pytest.mark.parametrize(
    "text",
    [
        "Hello <break time='1s'/> there.",
        "Hello <prosody rate='slow'>there</prosody>.",
        "Hello <voice name='x'>there.</voice></speak>",
    ],
)
def test_ssml_outside_of_its_root_is_not_read_out(demo: FrontEnd, text: str) -> None:
    found = demo.spoken(text)
    (warning,) = found.warnings
    assert "begins with <speak>" in warning and [each.spoken for each in found.sentences] == ["Hello there."]


def test_phones_are_read_as_they_are(demo: FrontEnd) -> None:
    found = demo.spoken(Phones("hˈW nˈW."))
    assert (
        found.warnings == () and found.sentences[0].phonemes == "hˈW nˈW." and not found.sentences[0].spoken
    )


def test_pauses_and_speeds_reach_the_sentences(demo: FrontEnd) -> None:
    script = demo.script(
        "<speak>One. Two.<break time='1s'/>...<break time='2s'/> Three"
        "<prosody rate='fast'>four. Five.</prosody></speak>"
    )
    found = [(passage.text, passage.pause, passage.speed) for passage in demo.sentences(script)]
    assert found == [
        ("One.", None, 1.0),
        ("Two.", None, 1.0),
        ("Three.", 3.0, 1.0),
        ("four.", 0.0, 1.25),
        ("Five.", None, 1.25),
    ]


def test_a_passage_without_words_leaves_its_pause(demo: FrontEnd) -> None:
    script = demo.script("<speak>One.<break time='1s'/>你好<break time='2s'/>Two.</speak>")
    assert [(each.text, each.pause) for each in demo.sentences(script)] == [("One.", None), ("Two.", 3.0)]


def test_a_phoneme_in_ssml(demo: FrontEnd) -> None:
    text = "<speak>See <phoneme alphabet='ipa' ph='ljuːbˈljɑːnə'>Ljubljana</phoneme>.</speak>"
    (found,) = demo.spoken(text).sentences
    assert found.text == "See Ljubljana." and found.phonemes == "sˈi ljubljˈɑnə."
    with pytest.raises(TextError, match=r"line 1, column 26: .*'ʘ'"):
        demo.spoken("<speak><phoneme ph='ʘə'>x</phoneme></speak>")


def test_a_model_of_letters_takes_no_pronunciations() -> None:
    front = IdsFrontEnd({"a": 1})
    for text in ("[x](/həlˈO/)", "<speak><phoneme ph='həlˈO'>x</phoneme></speak>"):
        with pytest.raises(TextError, match="reads letters and no phonemes"):
            front.script(text)
    with pytest.raises(LexiconError, match="reads letters and no phonemes"):
        front.finder({"x": "ə"})
    assert front.script("[guide](/docs/)").passages[0].text == "guide"


def test_line_ends_of_every_system_are_equal(demo: FrontEnd) -> None:
    texts = ["One\n\nTwo\nthree.", "One\r\n\r\nTwo\r\nthree.", "One\r\rTwo\rthree."]
    assert len({demo.spoken(text) for text in texts}) == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("if x < 5", "if x less than five"),
        ("<3", "less than three"),
        ("a<b>c", "ac"),
        ("a&lt;b&gt;c", "a less than b greater than c"),
        ("x > 5 and y <= 3", "x greater than five and y less than or equal to three"),
        ("mail <me@x.com> now", "mail me at x dot com now"),
        ("[![a cat](x.png)](http://x.com)", "a cat"),
        ('[the wiki](http://x.com/a_(b) "t")', "the wiki"),
        ("[guide](<a b>)", "guide"),
        ("[a][1]\n\n[1]: http://x.com 'T'", "a"),
        ("word[^1].\n\n[^1]: A note.", "word. A note."),
        ("in**cred**ible", "incredible"),
        ("a ==marked== word", "a marked word"),
        ("Title\n=====\n\ntext", "Title text"),
        ("Title\n---\n\ntext", "Title text"),
        ("# Use C#\nbody", "Use C sharp body"),
        ("## Head ##", "Head"),
        ("```py title=x\nx = 1\n```", "x equals one"),
        ("- [x] done\n- [ ] to do", "done to do"),
        ("[guide]( http://x.com ) now", "guide now"),
        ("- 5 apples\n- 3 pears", "five apples three pears"),
        ("one\n\n* * *\n\ntwo", "one two"),
        ("> quote\n> more", "quote more"),
        ("<!-- a\nlong\nnote -->hi", "hi"),
        ("<script>if (a < b) {}</script>hi<style>p{}</style>", "hi"),
        ("<img src='x' alt='a cat'> here", "a cat here"),
        (f"<img src='data:{'x' * 5000}' alt='a cat'> here", "a cat here"),
        ("&lt;b&gt; &#65; &#x42; &copy;", "less than b greater than A B copyright"),
    ],
)
def test_markup_is_read_as_it_is_meant(text: str, expected: str) -> None:
    said = normalise(text).replace(",", "").replace(" .", ".")
    assert " ".join(said.split()) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<p>One</p><p>two</p>", ["One.", "two."]),
        ("<ul><li>one</li><li>two</li></ul>", ["one.", "two."]),
        ("* one\n* two", ["one.", "two."]),
        ("1. one\n2. two", ["1, one.", "2, two."]),
        ("# Head\nbody", ["Head.", "body."]),
        ("| a | b |\n|---|:-:|\n| c | d |", ["a ,  b.", "c ,  d."]),
        ("[One. Two.](http://x.com) Three.", ["One.", "Two.", "Three."]),
        ("Head\n====\nbody", ["Head.", "body."]),
    ],
)
def test_a_block_is_a_sentence(demo: FrontEnd, text: str, expected: list[str]) -> None:
    assert [sentence.text for sentence in demo.spoken(text).sentences] == expected


SPACED = "< & [ ]( * **a ` `a | = ==a _ ~ > ![ [^1] &amp; &# qx qxaa 你 Ω e\u0301 "
SPACED += "[(/ ] <b> <!-- --> <script> ( [a]( [a](b( | |a"
MARKS = (
    "# |- |- a\n||\n|> |[a]: /\n|\U0001f600 |<a href='|<b |<!-- |<script |[a](/|a\n|a\r|1. a\n|"
    "```|``` {|``` a=|[a](/x/)|[a](/ˈɛks/) |<speak>|<?xml |/)|<!DOCTYPE |\x00|| a|#"
)
HOSTILE = [*SPACED.split(), *filter(None, MARKS.split("|"))]
"""Each is repeated until the text is full."""


@pytest.mark.parametrize("piece", HOSTILE)
def test_hostile_markup_takes_time_by_its_length(demo: FrontEnd, piece: str) -> None:
    """4,096 characters in less than 50 ms and 100,000 in time that grows with the length."""
    for length, most in ((4096, 0.05), (MAX_CHARACTERS, 1.5)):
        text = (piece * length)[: length - 6] + " hello"
        assert min(seconds(demo, text) for _ in range(2)) < most


def seconds(front: FrontEnd, text: str) -> float:
    """CPU time to read a text."""
    began = time.process_time()
    with suppress(TextError):
        front.script(text)
    return time.process_time() - began


def test_markup_taken_off_twice_is_the_same() -> None:
    for text in ("a&lt;b&gt;c", "<p>One</p>", "[a](b)", "# Head", "* a\n* b", "&amp;lt;"):
        once = without_blocks(text)
        assert plain(without_blocks(once)).split() == plain(once).split()
