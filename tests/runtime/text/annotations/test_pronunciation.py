"""Pronunciations of users: the IPA, inline, in lexicons, and with every kind of front end."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from valle2.runtime.errors import LexiconError, TextError
from valle2.runtime.text.annotations.lexicon import (
    MAX_ENTRIES,
    WordFinder,
    check_lexicon,
    read_lexicon,
)
from valle2.runtime.text.annotations.pronunciation import (
    MAX_SOUNDS,
    Inventory,
    Spellings,
    readable,
    sounds_in,
    word_of,
)
from valle2.runtime.text.base import FrontEnd
from valle2.runtime.text.families import AmphionFrontEnd, LifeitengFrontEnd, VallexFrontEnd, lifeiteng_table
from valle2.runtime.text.front_end import load_front_end
from valle2.runtime.text.normalise import normalise
from valle2.runtime.types import Phones

DEMO = Path(__file__).resolve().parents[4] / "runtime" / "models" / "demo"
SYMBOL_FILE = "<eps> 0\n_ 1\nk 2\nˈæ 3\nt 4\nɹ 5\nə 6\nð 7\n. 8\nz 9\nɪ 10\n"


@pytest.fixture(scope="module")
def demo() -> FrontEnd:
    """The front end of the embedded model."""
    return load_front_end(DEMO, {"kind": "phonemes", "max_tokens": 80})


@pytest.fixture(scope="module")
def known(demo: FrontEnd) -> Inventory:
    found = demo.inventory()
    assert found
    return found


def phonemes(front: FrontEnd, text: str, **lexicon: str) -> str:
    """The phonemes of all sentences."""
    finders = [front.finder(lexicon)] if lexicon else []
    return " ".join(sentence.phonemes for sentence in front.spoken(text, finders).sentences)


# -- the IPA ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ipa", "ours"),
    [
        ("ljuːbˈljɑːnə", "ljubljˈɑnə"),
        ("/həˈloʊ/", "həlˈO"),
        ("həlˈO", "həlˈO"),
        ("kˈOkəɹO", "kˈOkəɹO"),
        ("ˈt͡ʃɜːr.mən", "ʧˈɜɹmən"),
        ("ˈdʒɔɪ", "ʤˈY"),
        ("ɡreɪt", "ɡɹAt"),
        ("'lɪs", "lˈɪs"),
        ("ˈbʌtn̩", "bˈʌtᵊn"),
        ("bɛd bed", "bɛd bɛd"),
        ("ˌnjuː ˈjɔːk", "njˌu jˈɔk"),
        ("təˈmɑːtəʊ", "təmˈɑtəʊ"),
        ("str", "stɹ"),
        ("ˈs", "s"),
    ],
)
def test_the_ipa_is_read(known: Inventory, ipa: str, ours: str) -> None:
    assert known.read(ipa, "word") == ours


@pytest.mark.parametrize(
    ("ipa", "named"),
    [
        ("ʘǃa", "'ʘ', 'ǃ'"),
        ("bɑx", "'x'"),
        ("你", "'你'"),
        ("a5", "'5'"),
        ("ˈ", "no phonemes"),
        ("...", "no phonemes"),
        ("//", "no phonemes"),
        ("ə" * (MAX_SOUNDS + 1), "at most"),
    ],
)
def test_phonemes_that_the_model_lacks_are_named(known: Inventory, ipa: str, named: str) -> None:
    with pytest.raises(LexiconError, match=named) as error:
        known.read(ipa, "Word")
    assert "Word" in str(error.value) and "\n" not in str(error.value)
    if "'" in named:
        assert "ʃ" in str(error.value), "it lists what is known"


@pytest.mark.parametrize("sounds", ["həlˈO", "a", "nˌu jˈɔɹk", "ʤ" * 64])
@pytest.mark.parametrize("salt", [0, 1, 255])
def test_a_word_of_letters_carries_the_sounds(sounds: str, salt: int) -> None:
    word = word_of(sounds, salt)
    assert word.isascii() and word.isalpha() and word.islower()
    for form in (word, word.capitalize(), word.upper()):
        assert sounds_in(form) == sounds
        assert (
            normalise(f"I said {form}'s, {form}-like and {form}.")
            == f"I said {form}'s, {form}-like and {form}."
        )


@pytest.mark.parametrize("word", ["", "qx", "qxq", "qxaq", "qxaaxaaaaaaaaaq", "hello", "qxaax", "qxzzxq"])
def test_other_words_carry_none(word: str) -> None:
    assert sounds_in(word) == ""


def test_words_that_sound_alike_keep_their_spelling() -> None:
    spellings = Spellings()
    text = " ".join(spellings.add(word, "kˈʌləɹ") for word in ("colour", "color", "Color"))
    assert spellings.readable(text) == "colour color Color"
    assert readable(word_of("həlˈO")) == "/həlˈO/"


# -- inline -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[Ljubljana](/ljuːbˈljɑːnə/)", "ljubljˈɑnə."),
        ("See [Ljubljana](/ljuːbˈljɑːnə/)'s dog.", "sˈi ljubljˈɑnəz dˈɔɡ."),
        ("The [apple](/ˈæpᵊl/).", "ði ˈæpᵊl."),
        ("([Ljubljana](/ljuːbˈljɑːnə/)), yes", "ljubljˈɑnə, jˈɛs."),
        ("[New York](/nˌu jˈɔɹk/)!", "nˌu jˈɔɹk!"),
        ("[lead](/lid/) and [lead](/lɛd/)", "lid ænd lɛd."),
        ("**[x](/həlˈO/)**", "həlˈO."),
        ("[MOSKVA](/mɑskvˈɑ/)", "mɑskvˈɑ."),
        ("[你好](/niˈhaʊ/) world", "nihˈW wˈɜɹld."),
    ],
)
def test_a_pronunciation_in_the_text(demo: FrontEnd, text: str, expected: str) -> None:
    assert phonemes(demo, text) == expected


def test_a_pronunciation_shows_the_word_as_it_was_written(demo: FrontEnd) -> None:
    (found,) = demo.spoken("Dr. [Ljubljana](/ljuːbˈljɑːnə/) [color](/kˈʌləɹ/).").sentences
    assert found.text == "Dr. Ljubljana color." and found.spoken == "doctor Ljubljana color."
    assert list(demo.encode(Phones(found.phonemes))) == list(found.ids)


def test_an_abbreviation_before_a_pronunciation_ends_no_sentence(demo: FrontEnd) -> None:
    assert len(demo.spoken("Meet Dr. [Nguyen](/ˈwɪn/). He is in.").sentences) == 2


@pytest.mark.parametrize(
    "link", ["[guide](/docs/)", "[guide](/about/)", "[guide](/a/b/)", "[guide](/x)", "[guide](x/)"]
)
def test_a_link_to_a_path_stays_a_link(demo: FrontEnd, link: str) -> None:
    assert phonemes(demo, f"See {link} now.") == "sˈi ɡˈId nˈW."


def test_a_path_that_may_be_meant_as_phonemes_is_reported(demo: FrontEnd) -> None:
    (warning,) = demo.spoken("[loch](/lox/)").warnings
    assert "/lox/" in warning and "'x'" in warning


def test_unknown_phonemes_are_an_error(demo: FrontEnd) -> None:
    with pytest.raises(LexiconError, match=r"'ʘ'.*expected some of: .*ʃ"):
        demo.spoken("[x](/ʘə/)")


def test_a_pronunciation_is_never_cut(demo: FrontEnd) -> None:
    with pytest.raises(TextError, match=r"'/ə{64}/.*longer than the model's"):
        list(demo.sentences(demo.script(f"[x](/{'ə' * 64}/)"), 20))


# -- lexicons ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "text", "found"),
    [
        ("data", "data", True),
        ("data", "Data, DATA", True),
        ("data", "database", False),
        ("data", "metadata", False),
        ("data", "data's", True),
        ("data", "data-driven", True),
        ("data", "big-data", True),
        ("data", "data_x", False),
        ("data", "data2", False),
        ("Ljubljana", "Ljubljana", True),
        ("Ljubljana", "LJUBLJANA", True),
        ("Ljubljana", "ljubljana", False),
        ("US", "US", True),
        ("US", "us", False),
        ("can", "can't", False),
        ("can", "can’t", False),
        ("can", "can’s", True),
        ("s", "it's", False),
        ("a", "a.m.", False),
        ("amp", "&amp;", False),
        ("New York", "in New York", True),
        ("New York", "in New\nYork", True),
        ("New York", "New Yorker", False),
        ("C++", "C++ is", True),
        ("C++", "C is", False),
        ("Node.js", "Node.js.", True),
        ("你好", "你好 world", True),
        ("naïve", "Naïve", True),
    ],
)
def test_where_an_entry_is_found(known: Inventory, word: str, text: str, found: bool) -> None:
    out = WordFinder({word: "həlˈO"}, known).replace(text, Spellings())
    assert (word_of("həlˈO") in out.lower()) is found


def test_the_longest_entry_and_then_the_most_capitals_win(known: Inventory) -> None:
    lexicon = {"new": "ˈA", "New": "ˈO", "new york": "ˈI", "New York": "ˈW", "NEW YORK": "ˈY"}
    finder = WordFinder(lexicon, known)
    found = [finder.replace(text, Spellings()) for text in ("new", "New", "new york", "New York", "NEW YORK")]
    assert [sounds_in(word) for word in found] == ["ˈA", "ˈO", "ˈI", "ˈW", "ˈY"]


def test_a_lexicon_wins_over_the_models_own(demo: FrontEnd) -> None:
    assert phonemes(demo, "The data and SQL.", data="ˈdɑːtə", SQL="ˈsiːkwəl") == "ðə dˈɑtə ænd sˈikwəl."
    first, second = demo.finder({"data": "ˈeɪ"}), demo.finder({"data": "ˈoʊ", "fox": "ˈaɪ"})
    assert demo.spoken("data fox", [first, second]).sentences[0].phonemes == "ˈA ˈI."


def test_a_lexicon_does_not_touch_markup(demo: FrontEnd) -> None:
    lexicon = {"b": "ˈoʊ", "amp": "ˈoʊ", "href": "ˈoʊ", "nbsp": "ˈoʊ"}
    text = "<b>very</b> <a href='x'>good</a> &amp; nice&nbsp;dogs"
    assert phonemes(demo, text, **lexicon) == phonemes(demo, text)


def test_the_text_shows_the_words_of_the_lexicon(demo: FrontEnd) -> None:
    (found,) = demo.spoken("SQL's fun.", [demo.finder({"SQL": "ˈsiːkwəl"})]).sentences
    assert (found.text, found.spoken) == ("SQL's fun.", "SQL's fun.")


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        (["x"], "expected an object"),
        ("x", "expected an object"),
        ({"x": 1}, "'x'.*1"),
        ({1: "x"}, "1"),
        ({"": "ə"}, "no letter"),
        ({"-": "ə"}, "no letter"),
        ({"x": ""}, "no phonemes"),
        ({"x": "//"}, "no phonemes"),
        ({"x" * 101: "ə"}, "101 characters"),
        ({"x": "ə" * 201}, "201 characters"),
        ({"x\x00": "ə"}, "control"),
        ({"x": "ə\n"}, "control"),
        ({"x y": "ə", "x  y": "ə"}, "twice"),
        ({f"w{index}": "ə" for index in range(MAX_ENTRIES + 1)}, "at most"),
    ],
)
def test_a_malformed_lexicon_is_refused(entries: object, said: str) -> None:
    with pytest.raises(LexiconError, match=said) as error:
        check_lexicon(entries)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize(
    "text",
    [
        "# mine\nLjubljana\tljuːbˈljɑːnə\n\nNew  York\t/nˌu jˈɔɹk/\n",
        "\ufeffLjubljana\tljuːbˈljɑːnə\r\nNew York\t/nˌu jˈɔɹk/",
        '{"Ljubljana": "ljuːbˈljɑːnə",\n "New York": "/nˌu jˈɔɹk/"}',
    ],
)
def test_a_lexicon_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "words").write_text(text, encoding="utf-8", newline="")
    assert read_lexicon(tmp_path / "words") == {"Ljubljana": "ljuːbˈljɑːnə", "New York": "/nˌu jˈɔɹk/"}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"a\t\xc9\x99\nb\n", "line 2: .*tab"),
        (b"a\t\xc9\x99\nb\t\n", "line 2: .*no phonemes"),
        (b"a\tx\ty\n", "line 1: .*2 tabs"),
        (b"\n#\na\t\xc9\x99\na\t\xc9\x99\n", "line 4: .*twice"),
        (b"a\t\xff\n", "line 1: not UTF-8"),
        (b"a\tb\n\xff", "line 2: not UTF-8"),
        (b'{"a": "b",\n "c" "d"}', "line 2: not JSON"),
        (b'{"a": "b",\n "c": 1}', "line 2: .*1"),
        (b'{"a": "b",\n "a": "c"}', "twice"),
        (b'["a"]', "expected an object"),
        (b"[" * 5000, "line 1|nested"),
        (b"a" * (2 * 2**20 + 1), "larger"),
        (
            "\n".join(f"w{index}\tə" for index in range(MAX_ENTRIES + 1)).encode(),
            f"line {MAX_ENTRIES + 1}: more",
        ),
    ],
)
def test_a_mistake_in_a_file_is_named_with_its_line(tmp_path: Path, data: bytes, said: str) -> None:
    (tmp_path / "words.tsv").write_bytes(data)
    with pytest.raises(LexiconError, match=f"words.tsv.*{said}") as error:
        read_lexicon(tmp_path / "words.tsv")
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize("name", ["missing", ".", "a\0b"])
def test_a_file_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    with pytest.raises(LexiconError, match="cannot be read"):
        read_lexicon(tmp_path / name)


def test_a_lexicon_with_unknown_phonemes_names_its_word(demo: FrontEnd) -> None:
    with pytest.raises(LexiconError, match=r"'Bach'.*'x'"):
        demo.finder({"fox": "fˈɑks", "Bach": "bɑːx"})


def test_a_large_lexicon_takes_little_time(demo: FrontEnd) -> None:
    lexicon = {"a" * length: "ə" for length in range(1, 90)} | {f"word {index}": "ə" for index in range(5000)}
    finder, text = demo.finder(lexicon), "a word 5 aaa a " * 6000
    began = time.process_time()
    finder.replace(text, Spellings())
    assert time.process_time() - began < 2.0


# -- other models -----------------------------------------------------------------------------------


def test_every_family_with_phones_takes_pronunciations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("valle2.runtime.text.families.find_spec", lambda name: None)
    text = "[Kat](/kˈætɹə/)."
    assert phonemes(VallexFrontEnd(), text) == "ˈkætɹə."
    assert phonemes(LifeitengFrontEnd(lifeiteng_table(SYMBOL_FILE)), text) == "k ˈæ t ɹ ə ."
    assert phonemes(AmphionFrontEnd(), text) == "<BOS> KB AE1I TI RI AH0E <EOS>"
    with pytest.raises(LexiconError, match="'x'"):
        VallexFrontEnd().spoken("[Bach](/bɑːx/)")


def test_a_familys_own_package_is_not_asked_for_a_pronunciation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("valle2.runtime.text.families.find_spec", lambda name: True)
    assert phonemes(VallexFrontEnd(), "[Kat](/kˈætɹə/).") == "ˈkætɹə."
    assert phonemes(AmphionFrontEnd(), "[Kat](/kˈætɹə/).") == "<BOS> KB AE1I TI RI AH0E <EOS>"
