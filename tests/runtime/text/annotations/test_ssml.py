"""SSML: what is said, with which pauses and speeds, what is refused, and in which time."""

from __future__ import annotations

import time

import pytest

from valle2.runtime.errors import TextError
from valle2.runtime.text.annotations.say_as import KINDS, say_as
from valle2.runtime.text.annotations.ssml import (
    MAX_BREAKS,
    MAX_DEPTH,
    Passage,
    is_ssml,
    may_become_ssml,
    read_ssml,
)


def read(body: str) -> list[tuple[str, float | None, float]]:
    """The passages of a body: text, pause and speed. A phoneme becomes word/ipa."""
    found, _, _ = read_ssml(f"<speak>{body}</speak>", spelled)
    return [(passage.text, passage.pause, passage.speed) for passage in found]


def spelled(word: str, phonemes: str) -> str:
    return f"{word}/{phonemes}"


def warnings(body: str) -> list[str]:
    return read_ssml(f"<speak>{body}</speak>", spelled)[2]


@pytest.mark.parametrize(
    "text",
    [
        "<speak>hi</speak>",
        "\n  <speak version='1.1' xml:lang='en'>hi</speak>",
        "\ufeff<speak>hi</speak>",
        "<?xml version='1.0' encoding='UTF-8'?>\n<speak>hi</speak>",
        "<!-- a note --><speak>hi</speak>",
        "<speak/>",
        "<speak",
        "<!DOCTYPE speak><speak/>",
    ],
)
def test_ssml_begins_with_its_root(text: str) -> None:
    assert is_ssml(text)
    assert all(may_become_ssml(text[:end]) for end in range(len(text)))


@pytest.mark.parametrize(
    "text", ["hi <speak>", "<speaker>", "< speak>", "if x < 5", "<3", "a<b>c", "<s>hi</s>"]
)
def test_other_text_is_no_ssml(text: str) -> None:
    assert not is_ssml(text)


def test_text_that_cannot_be_ssml_is_not_waited_for() -> None:
    assert not may_become_ssml("Hello") and not may_become_ssml("<b") and not may_become_ssml("<speaker")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("Hello there.", [("Hello there.", None, 1.0)]),
        ("Hello <break time='500ms'/> there.", [("Hello", None, 1.0), ("there.", 0.5, 1.0)]),
        ("a <break time='1.5s'/> b", [("a", None, 1.0), ("b", 1.5, 1.0)]),
        ("a <break time='.25 S'/> b", [("a", None, 1.0), ("b", 0.25, 1.0)]),
        ("a <break time='0s'/> b <break strength='none'/> c", [("a b c", None, 1.0)]),
        ("a <break/> b", [("a", None, 1.0), ("b", 0.75, 1.0)]),
        ("a <break strength='weak'/> b", [("a", None, 1.0), ("b", 0.5, 1.0)]),
        ("a <break strength='weak' time='2s'/> b", [("a", None, 1.0), ("b", 2.0, 1.0)]),
        ("a <break time='1s'/><break time='2s'/> b", [("a", None, 1.0), ("b", 3.0, 1.0)]),
        ("<break time='1s'/> a", [("a", 1.0, 1.0)]),
        ("One\n  two.", [("One two.", None, 1.0)]),
        ("<p>One</p><p>two</p>", [("One\n\n\n\ntwo", None, 1.0)]),
        ("<p><s>One</s><s>two</s></p>", [("One\n\n\n\ntwo", None, 1.0)]),
        ("<paragraph>a</paragraph>", [("a", None, 1.0)]),
        ("<sub alias='World Wide Web'>WWW</sub> here", [("World Wide Web here", None, 1.0)]),
        ("a <phoneme alphabet='ipa' ph='təˈmɑ'>tom</phoneme>", [("a tom/təˈmɑ", None, 1.0)]),
        ("<phoneme ph='təˈmɑ'/>", [("təˈmɑ/təˈmɑ", None, 1.0)]),
        ("<say-as interpret-as='characters'>SQL</say-as>", [("S Q L", None, 1.0)]),
        ("x &lt; 5 &amp; y", [("x < 5 & y", None, 1.0)]),
        ("<![CDATA[a < b]]>", [("a < b", None, 1.0)]),
        ("a &lt;b&gt; c &lt;/b&gt;", [("a < b> c < /b>", None, 1.0)]),
        ("a<!-- no -->b", [("ab", None, 1.0)]),
        ("<emphasis level='strong'>very</emphasis> good", [("very good", None, 1.0)]),
        ("<audio src='x.wav'>a bell<desc>noise</desc></audio>", [("a bell", None, 1.0)]),
        ("<metadata>secret</metadata>a", [("a", None, 1.0)]),
        ("<voice name='x'><lang xml:lang='de'>hallo</lang></voice>", [("hallo", None, 1.0)]),
        ("", []),
        (" <p> </p> ", []),
    ],
)
def test_what_is_read(body: str, expected: list[tuple[str, float | None, float]]) -> None:
    assert read(body) == expected


@pytest.mark.parametrize(
    ("rate", "speed"),
    [
        ("x-slow", 0.5),
        ("slow", 0.75),
        ("medium", 1.0),
        ("default", 1.0),
        ("fast", 1.25),
        ("x-fast", 1.5),
        ("80%", 0.8),
        ("200%", 2.0),
        ("+20%", 1.2),
        ("-20%", 0.8),
        ("1.5", 1.5),
        ("25%", 0.25),
        ("400%", 4.0),
        (" FAST ", 1.25),
    ],
)
def test_a_rate_is_a_speed(rate: str, speed: float) -> None:
    ((_, _, found),) = read(f"<prosody rate='{rate}'>Hello.</prosody>")
    assert found == pytest.approx(speed)


def test_a_change_of_rate_inside_a_sentence_makes_no_pause() -> None:
    assert read("I am <prosody rate='slow'>very</prosody> tired.") == [
        ("I am", None, 1.0),
        ("very", 0.0, 0.75),
        ("tired.", 0.0, 1.0),
    ]


def test_a_change_of_rate_between_sentences_keeps_the_usual_pause() -> None:
    expected = [("One.", None, 1.0), ("Two.", None, 0.75), ("Three.", None, 1.0)]
    assert read("One. <prosody rate='slow'>Two.</prosody> Three.") == expected
    assert read("One. <prosody rate='slow'>Two</prosody>. Three.") == expected


def test_rates_multiply_and_a_rate_without_effect_splits_nothing() -> None:
    nested = "<prosody rate='50%'>a <prosody rate='50%'>b</prosody></prosody>"
    assert [speed for _, _, speed in read(nested)] == [0.5, 0.25]
    assert read("a <prosody rate='medium'>b</prosody> c") == [("a b c", None, 1.0)]


def test_a_break_at_the_end_is_kept() -> None:
    passages, end, _ = read_ssml("<speak>Hello.<break time='2s'/></speak>", spelled)
    assert passages == [Passage("Hello.")] and end == 2.0


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ("<emphasis>a</emphasis>", "emphasis"),
        ("<voice name='x'>a</voice>", "voice"),
        ("<audio src='x'>a</audio>", "audio"),
        ("<amazon:effect name='whispered'>a</amazon:effect>", "amazon:effect"),
        ("<mark name='x'/>a", "mark"),
        ("<prosody pitch='high'>a</prosody>", "pitch"),
        ("<prosody volume='loud' rate='fast'>a</prosody>", "volume"),
        ("<phoneme alphabet='x-sampa' ph='t@'>a</phoneme>", "x-sampa"),
        ("<say-as interpret-as='mood'>a</say-as>", "mood"),
        ("<say-as interpret-as='date'>a</say-as>", ""),
        ("<say-as interpret-as='cardinal'>many</say-as>", "many"),
    ],
)
def test_what_is_not_read_is_named_and_its_text_spoken(body: str, named: str) -> None:
    assert [text for text, _, _ in read(body)] in (["a"], ["many"])
    if named:
        (warning,) = warnings(body)
        assert named in warning


def test_warnings_are_few() -> None:
    many = warnings("".join(f"<x{index}/>" for index in range(50)) + "a")
    assert len(many) == 9 and "42 more" in many[-1]


@pytest.mark.parametrize(
    ("text", "line", "column", "said"),
    [
        ("<speak>a", 1, 9, "no element"),
        ("<speak>a & b</speak>", 1, 11, "well-formed"),
        ("<speak>\n<b>x</speak>", 2, 7, "mismatched"),
        ("\n\n  <speak>\n <break time='soon'/></speak>", 4, 2, "soon"),
        ("  <speak><break time='1h'/></speak>", 1, 10, "1h"),
        ("<speak>a</speak>b", 1, 17, "junk"),
        ("<speak>&nbsp;</speak>", 1, 8, "entity"),
        ("<speak>\x01</speak>", 1, 8, "well-formed"),
        ("<speak><break time='10.1s'/>a</speak>", 1, 8, "10.1 s"),
        ("<speak><break time='-1s'/>a</speak>", 1, 8, "-1s"),
        ("<speak><break time='nan'/>a</speak>", 1, 8, "nan"),
        ("<speak><break strength='huge'/>a</speak>", 1, 8, "huge"),
        ("<speak><prosody rate='401%'>a</prosody></speak>", 1, 8, "401%"),
        ("<speak><prosody rate='24%'>a</prosody></speak>", 1, 8, "24%"),
        ("<speak><prosody rate='-100%'>a</prosody></speak>", 1, 8, "-100%"),
        ("<speak><prosody rate='quick'>a</prosody></speak>", 1, 8, "quick"),
        ("<speak><prosody rate=''>a</prosody></speak>", 1, 8, "''"),
        ("<speak><sub>a</sub></speak>", 1, 14, "alias"),
        ("<speak><say-as>a</say-as></speak>", 1, 17, "interpret-as"),
        ("<speak><phoneme>a</phoneme></speak>", 1, 18, "ph"),
        ("<!DOCTYPE speak [<!ENTITY a 'b'>]><speak>&a;</speak>", 1, 17, "DOCTYPE"),
        ("<?xml version='1.0'?><!DOCTYPE speak SYSTEM 'file:///etc/passwd'><speak/>", 1, 65, "DOCTYPE"),
    ],
)
def test_a_mistake_is_named_with_its_place(text: str, line: int, column: int, said: str) -> None:
    with pytest.raises(TextError, match=f"line {line}, column {column}:.*{said}"):
        read_ssml(text, spelled)


def test_the_sum_of_breaks_is_bounded() -> None:
    breaks = int(MAX_BREAKS // 10)
    assert read("<break time='10s'/>" * breaks + "a") == [("a", MAX_BREAKS, 1.0)]
    with pytest.raises(TextError, match="breaks of more than"):
        read("<break time='10s'/>" * (breaks + 1) + "a")


def test_half_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(TextError, match="surrogate"):
        read("\ud800")


def test_depth_is_bounded() -> None:
    deep = MAX_DEPTH - 1
    assert read("<p>" * deep + "a" + "</p>" * deep)
    with pytest.raises(TextError, match="nested more than"):
        read("<p>" * 4096 + "a" + "</p>" * 4096)
    with pytest.raises(TextError, match="nested more than"):
        read("<sub alias='a'>" * 4096)


@pytest.mark.parametrize(
    "body",
    [
        "<p>" * 4096,
        "<s>a</s>" * 5000,
        "a<break time='1ms'/>" * 4000,
        "<prosody rate='fast'>a</prosody> " * 2500,
        "<x " + " ".join(f"a{index}='1'" for index in range(8000)) + "/>",
        "".join(f"<x{index}/>" for index in range(9000)),
        "<say-as interpret-as='digits'>1</say-as>" * 2300,
        "<say-as interpret-as='time'>" + "1:" * 40_000 + "</say-as>",
        "&amp;" * 19_000,
        "<speak>" * 10_000,
        "<" * 99_000,
        "]]>" * 30_000,
    ],
)
def test_hostile_ssml_takes_little_time(body: str) -> None:
    began = time.process_time()
    try:
        read(body)
    except TextError as error:
        assert "\n" not in str(error) and len(str(error)) < 300
    assert time.process_time() - began < 1.0


@pytest.mark.parametrize(
    ("kind", "layout", "value", "expected"),
    [
        ("characters", "", "SQL", "S Q L"),
        ("characters", "", "a1B2", "A, one, B, two"),
        ("spell-out", "", "x-y", "X, dash, Y"),
        ("verbatim", "", "42", "four two"),
        ("digits", "", "123-45", "one two three, four five"),
        ("digits", "", "abc", None),
        ("cardinal", "", "1999", "one thousand nine hundred ninety nine"),
        ("cardinal", "", "-1,234.5", "minus one thousand two hundred thirty four point five"),
        ("number", "", "007", "seven"),
        ("cardinal", "", "XIV", "fourteen"),
        ("cardinal", "", "some", None),
        ("ordinal", "", "5", "fifth"),
        ("ordinal", "", "21st", "twenty first"),
        ("ordinal", "", "XIV", "fourteenth"),
        ("ordinal", "", "x", None),
        ("date", "mdy", "12/25/2024", "December twenty fifth, twenty twenty four"),
        ("date", "dmy", "25.12.2024", "December twenty fifth, twenty twenty four"),
        ("date", "ymd", "2024-12-25", "December twenty fifth, twenty twenty four"),
        ("date", "yyyymmdd", "20241225", "December twenty fifth, twenty twenty four"),
        ("date", "dmy", "03/04/2024", "April third, twenty twenty four"),
        ("date", "md", "12/25", "December twenty fifth"),
        ("date", "my", "12/2024", "December twenty twenty four"),
        ("date", "y", "1984", "nineteen eighty four"),
        ("date", "mdy", "13/25/2024", None),
        ("date", "mdy", "1/2", None),
        ("date", "", "3 May 2024", "the third of May twenty twenty four"),
        ("time", "hms12", "2:30pm", "two thirty P M"),
        ("time", "hms24", "14:30", "fourteen thirty"),
        ("time", "", "14:30:05", "fourteen thirty oh five"),
        ("time", "", "3 p.m.", "three P M"),
        ("time", "", "1'21\"", "one minute and twenty one seconds"),
        ("time", "", "25:00", None),
        ("duration", "", "1:02:03", "one hour, two minutes and three seconds"),
        (
            "telephone",
            "",
            "+1 (800) 555-0199",
            "plus one, eight zero zero, five five five, zero one nine nine",
        ),
        ("telephone", "", "555-0199 x12", "five five five, zero one nine nine, extension one two"),
        ("telephone", "", "call me", None),
        ("fraction", "", "3/4", "three quarters"),
        ("fraction", "", "1+1/2", "one and one half"),
        ("currency", "", "$45.67", "forty five dollars and sixty seven cents"),
        ("unit", "", "5 km", "five kilometers"),
        ("unit", "", "5 ft.", "five feet"),
        ("date", "", "Jan. 5 in the U.S.", "January fifth in the U S"),
    ],
)
def test_say_as(kind: str, layout: str, value: str, expected: str | None) -> None:
    assert say_as(kind, layout, value) == expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "value", ["", " ", "x" * 5000, "9" * 200, "٣٤", "²", "0/0", "\U0001f600", "1" * 100 + "/2"]
)
def test_no_value_breaks_say_as(kind: str, value: str) -> None:
    say_as(kind, "mdy", value)
