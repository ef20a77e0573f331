"""Which ids belong to which word: written forms, marks, phones, and sentences that were cut."""

from __future__ import annotations

from itertools import pairwise

import pytest

from valle2.runtime import Phones, Valle2
from valle2.runtime.text.word_spans import WrittenText, shared_places, spans_of, spoken_words, written_words
from valle2.runtime.types import WordSpan

CASES = {
    "It costs $5 today.": [("It", 1), ("costs", 1), ("$5", 2), ("today.", 1)],
    "Open 24/7!": [("Open", 1), ("24/7!", 3)],
    "Dr. Smith left.": [("Dr.", 1), ("Smith", 1), ("left.", 1)],
    "On Jan. 5, 2024 we met.": [("On", 1), ("Jan. 5,", 2), ("2024", 3), ("we", 1), ("met.", 1)],
    "BBC News": [("BBC", 1), ("News", 1)],
    "“Quoted” words… (here)": [("“Quoted”", 1), ("words…", 1), ("(here)", 1)],
    "a dash — and 5 & 6": [("a", 1), ("dash", 1), ("and", 1), ("5", 1), ("&", 1), ("6", 1)],
    "<b>Hello</b> [bye](http://x.y)": [("Hello", 1), ("bye", 1)],
    "3.14 and 50% of 2,000 km": [("3.14", 4), ("and", 1), ("50%", 2), ("of", 1), ("2,000", 2), ("km", 1)],
    "'tis co-op rock'n'roll": [("'tis", 1), ("co-op", 1), ("rock'n'roll", 1)],
    "no no no 5 5 5": [("no", 1), ("no", 1), ("no", 1), ("5", 1), ("5", 1), ("5", 1)],
    "...": [],
}


@pytest.mark.parametrize("text", CASES)
def test_written_words(text: str) -> None:
    assert written_words(text, spoken_words(text)) == CASES[text]


@pytest.mark.parametrize("text", [*CASES, "x = 3 < 4 😀 #tag user@example.com 1,234.5 kg", "Ünïcödé naïve"])
def test_every_spoken_word_belongs_to_one_written_word(text: str) -> None:
    spoken = spoken_words(text)
    assert sum(count for _, count in written_words(text, spoken)) == len(spoken)


def test_spans_and_places() -> None:
    assert spans_of(list(" ab, c."), frozenset(" ,.")) == [(1, 3), (5, 6)]
    assert spans_of([], frozenset()) == []
    assert shared_places(["a", "x", "c"], ["a", "y", "z", "c"]) == {0: 0, 1: 1, 2: 3, 3: 4}


def test_a_full_stop_that_only_the_cut_has_put_there() -> None:
    text = WrittenText("One, two three. Four")
    cut = [("One.",), ("two.",), ("three.",), ("Four.",)]
    restored = [text.restore([WordSpan(word, 0, 1) for word in words]) for words in cut]
    assert [[word.text for word in words] for words in restored] == [["One,"], ["two"], ["three."], ["Four"]]
    assert WrittenText("other").restore([WordSpan("One.", 0, 1)])[0].text == "One."


@pytest.mark.parametrize("text", ["hello there", "It costs $5, or £6!", "B B C", "Xyzzy plugh."])
def test_the_ids_of_each_word_are_its_sounds(demo_front: Valle2, text: str) -> None:
    front = demo_front.front
    assert front
    for encoded in front.encode_request("hello.", text, 400):
        words = front.words_of(encoded)
        assert words and " ".join(word.text for word in words).rstrip(".") == text.rstrip(".")
        assert words[0].start > encoded.prompt_length  # the gap after the transcript belongs to no word
        for before, after in pairwise(words):
            assert before.end < after.start
        sounds = {front.symbols[int(i)] for word in words for i in encoded.ids[word.start : word.end]}
        assert not sounds & set(",.?!;:")


def test_phones_are_their_own_words(demo_front: Valle2) -> None:
    front = demo_front.front
    assert front
    (encoded,) = front.encode_request("hello.", Phones("həlˈO ðˈɛɹ."), 400)
    assert [word.text for word in front.words_of(encoded)] == ["həlˈO", "ðˈɛɹ"]


@pytest.fixture(scope="module")
def demo_front() -> Valle2:
    return Valle2.load("demo", slots=1)
