"""Normalisation, pronunciation, sentences, and what cannot be spoken."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from valle2.engine.errors import ManifestError, Valle2Error
from valle2.runtime.errors import TextError
from valle2.runtime.text.annotations.script import MAX_CHARACTERS
from valle2.runtime.text.front_end import load_front_end
from valle2.runtime.text.letter_rules import LetterRules, letter_groups, one_stress
from valle2.runtime.text.normalise import normalise
from valle2.runtime.text.numerals import cardinal, ordinal, year
from valle2.runtime.text.phonemes import Pronouncer
from valle2.runtime.text.sentences import SentenceSplitter, sentences, split_sentences
from valle2.runtime.text.tokenizer import TextFrontEnd
from valle2.runtime.text.written.memo import forget

LEXICON = {
    "cat": "kˈæt",
    "dog": "dˈɔɡ",
    "fox": "fˈɑks",
    "said": "sˈɛd",
    "hello": "həlˈO",
    "there": "ðɛɹ\tpause=ðˈɛɹ",
    "make": "mˈAk",
    "stop": "stˈɑp",
    "carry": "kˈæɹi",
    "wait": "wˈAt",
    "happy": "hˈæpi",
    "apple": "ˈæpᵊl",
    "record": "ɹˈɛkəɹd\tVERB=ɹəkˈɔɹd",
    "it": "ɪt",
    "used": "jˈuzd\tto=jˈust",
    "he": "hi",
    "the": "ði",
    "to": "tu",
    "b": "bˈi",
    "c": "sˈi",
    "x": "ˈɛks",
}
SYMBOLS = [*" ,.?!;:ˈˌ", *"AIOWYTabdefhijklmnpstuvwzæðŋɐɑɔəɛɜɡɪɹʃʊʌʒʤʧθᵊᵻ"]
EMOJI = "\U0001f600\U0001f680"
UNSPEAKABLE = ["", "www.", "   ", "...", "?!", "-", EMOJI, "你好世界", "Привет", "\x00\x01", "\u200b"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle's text folder with a tiny lexicon."""
    out = tmp_path_factory.mktemp("phonemes")
    (out / "text").mkdir()
    lines = [f"{word}\t{entry}" for word, entry in LEXICON.items()]
    (out / "text" / "lexicon.tsv").write_text("\n".join(lines), encoding="utf-8")
    tokenizer = Tokenizer(models.WordLevel({s: i for i, s in enumerate(SYMBOLS)}, unk_token="<none>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.save(str(out / "text" / "tokenizer.json"))
    return out


@pytest.fixture(scope="module")
def phonemes(folder: Path) -> TextFrontEnd:
    return TextFrontEnd.load(folder, {"kind": "phonemes", "max_tokens": 60})


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> TextFrontEnd:
    tokenizer = Tokenizer(models.BPE(unk_token="<none>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=60, show_progress=False, special_tokens=["<none>"])
    tokenizer.train_from_iterator(["hello there fox five"] * 3, trainer)
    out = tmp_path_factory.mktemp("bpe")
    (out / "text").mkdir()
    tokenizer.save(str(out / "text" / "tokenizer.json"))
    return TextFrontEnd.load(out, {"kind": "bpe"})


@pytest.fixture(params=["phonemes", "bpe"])
def front(request: pytest.FixtureRequest) -> TextFrontEnd:
    """Both kinds, one after the other."""
    found: TextFrontEnd = request.getfixturevalue(request.param)
    return found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Dr. Smith paid $3.50.", "doctor Smith paid three dollars and fifty cents."),
        ("1,250 people", "one thousand two hundred fifty people"),
        ("in 1999, 2005 and 1066", "in nineteen ninety nine, two thousand five and ten sixty six"),
        ("the 1990s and 80s", "the nineteen nineties and eighties"),
        ("the 21st of May", "the twenty first of May"),
        ("December 25, 2024", "December twenty fifth, twenty twenty four"),
        ("at 10:05 or 7:00", "at ten oh five or seven o'clock"),
        ("7:30 a.m. or 5:30pm", "seven thirty A M or five thirty P M"),
        ("3.14 and 50%", "three point one four and fifty percent"),
        ("pages 10-20 or 3–4", "pages ten to twenty or three to four"),
        ("-5 degrees", "minus five degrees"),
        ("20°C", "twenty degrees Celsius"),
        ("It took 5 min. See fig. 2.", "It took five minutes. See figure two."),
        ("1/2, 3/4 and 2½", "one half, three quarters and two and one half"),
        ("£1, €0.99, $2 million", "one pound, ninety nine cents, two million dollars"),
        ("5 km at 60 mph, 1 kg", "five kilometers at sixty miles per hour, one kilogram"),
        ("6 ft, 10 kWh", "six feet, ten kilowatt hours"),
        ("007", "zero zero seven"),
        ("F-16 and 3D", "F sixteen and three D"),
        ("the BBC's PCs, NASA", "the B B C's P C's, NASA"),
        ("the U.S. Army", "the U S Army"),
        ("THE BIG DOG RAN", "the big dog ran"),
        ("a BIG dog", "a BIG dog"),
        ("Mr. & Mrs. Fox vs. St. Paul", "mister and missus Fox versus saint Paul"),
        ("Main St.", "Main street."),
        ("$0.05 and $0", "five cents and zero dollars"),
        ("e.g. this, i.e. that, etc.", "for example this, that is that, et cetera."),
        ("No. I won't. See No. 5.", "No. I won't. See number five."),
        ("café — naïve Straße", "cafe, naive Strasse"),
        ("it’s “fine”…", "it's fine."),
        ("well-known - yes--no", "well-known, yes, no"),
        ("(as here) so", "as here, so"),
        (f"smile {EMOJI} now", "smile now"),
        ("a\x00b\tc\nd", "a b c d"),
        ("see www.example.com", "see example dot com"),
        ("你好", ""),
        ("!!!", "!"),
        ("What?!?! So…! Who?, he said", "What? So! Who? he said"),
        ("a:;,b ,. c;. d?.", "a: b. c. d?"),
        ("She lives in the U.S.", "She lives in the U S."),
        ("Is it the U.S.?", "Is it the U S?"),
        ("a Ph.D. (at 5 p.m.)", "a P H D, at five P M."),
        ("“and so on, etc.”", "and so on, et cetera."),
        ("by Jones et al. **", "by Jones et al."),
        ("the U.S., and", "the U S, and"),
        ("0", "zero"),
        ("1000000", "one million"),
    ],
)
def test_normalise(text: str, expected: str) -> None:
    assert normalise(text) == expected


@pytest.mark.parametrize(
    "end", ["", ".", ",.", ";.", ",", ",!", '."', ".”)", ',"', '",".', " —.", "…", ":", "?!"]
)
@pytest.mark.parametrize("word", ["up", "the U.S", "a Ph.D", "5 p.m", "etc", "10 kg", "a.com", "et al", "Dr"])
def test_every_sentence_ends_with_one_mark(phonemes: TextFrontEnd, word: str, end: str) -> None:
    """Whatever it ends with: the model has learnt from the mark where to end."""
    for piece in phonemes.split(f"The fox, {word}{end}"):
        assert re.search(r"[a-z][.?!]$", phonemes.normalised(piece), re.I), piece
        before, last = (SYMBOLS[index] for index in phonemes.encode(piece)[-2:])
        assert last in ".?!"
        assert before not in " ,.?!;:"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (cardinal(0), "zero"),
        (cardinal(110), "one hundred ten"),
        (cardinal(12_000_001), "twelve million one"),
        (cardinal(10**15), "one" + " zero" * 15),
        (ordinal(12), "twelfth"),
        (ordinal(40), "fortieth"),
        (ordinal(103), "one hundred third"),
        (year(1900), "nineteen hundred"),
        (year(1905), "nineteen oh five"),
        (year(2024), "twenty twenty four"),
    ],
)
def test_numerals(words: str, expected: str) -> None:
    assert words == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the cat", "ðə kˈæt"),
        ("the apple.", "ði ˈæpᵊl."),
        ("to cat, to apple, to", "tə kˈæt, tʊ ˈæpᵊl, tu"),
        ("a cat in the fox in.", "ɐ kˈæt ɪn ðə fˈɑks ˈɪn."),
        ("cats, dogs, foxes", "kˈæts, dˈɔɡz, fˈɑksᵻz"),
        ("cat's dogs'", "kˈæts dˈɔɡz"),
        ("making carries carried", "mˈAkɪŋ kˈæɹiz kˈæɹid"),
        ("stopped waited waiting", "stˈɑpt wˈATᵻd wˈATɪŋ"),
        ("catdog", "kˈætdˌɔɡ"),
        ("cat-dog", "kˌætdˈɔɡ"),
        ("there fox, there", "ðɛɹ fˈɑks, ðˈɛɹ"),
        ("to record the record", "tə ɹəkˈɔɹd ðə ɹˈɛkəɹd"),
        ("he used to, he used it", "hi jˈust tu, hi jˈuzd ɪt"),
        ("He said IT", "hˌi sˈɛd ˈɪt"),
        ("the B B C's cat", "ðə bˌibˌisˈiz kˈæt"),
        ("zib", "zˈɪb"),
        ("xcb", "ˌɛkssˌibˈi"),
        ("'hello'", "həlˈO"),
    ],
)
def test_pronounce(text: str, expected: str) -> None:
    assert Pronouncer(LEXICON)(text) == expected


def test_the_most_specific_letter_rule_wins() -> None:
    rules = LetterRules({">c": "k", ">ce": "s", ">e": "", ">a": "æ", "#>a": "ˈA", ">n": "n"})
    assert rules("ace") == "ˈAs"
    assert rules("can") == "kˈæn"
    assert rules("ñ") == ""


@pytest.mark.parametrize(
    ("sounds", "expected"), [("kæt", "kˈæt"), ("ˌæpˈæˈæ", "ˌæpˈæˌæ"), ("kˌæ", "kˈæ"), ("s", "s")]
)
def test_one_stress(sounds: str, expected: str) -> None:
    assert one_stress(sounds) == expected


def test_learnt_rules_are_used_when_they_are_there(folder: Path, tmp_path: Path) -> None:
    assert letter_groups("zib") == "zˈɪb"
    (tmp_path / "text").mkdir()
    for name in ("lexicon.tsv", "tokenizer.json"):
        (tmp_path / "text" / name).write_bytes((folder / "text" / name).read_bytes())
    (tmp_path / "text" / "letters.tsv").write_text(">z\tz\n>i\tI\n>b\tb\n", encoding="utf-8")
    assert TextFrontEnd.load(tmp_path, {"kind": "phonemes"}).prepare("zib") == "zˈIb"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Mr. Fox ran. Did he? Yes!\n\nNew line", ["Mr. Fox ran.", "Did he?", "Yes!", "New line"]),
        ("J. R. Fox said e.g. this etc. The end.", ["J. R. Fox said e.g. this etc.", "The end."]),
        ("The U.S. Army came. It left... and went.", ["The U.S. Army came.", "It left... and went."]),
        ('He said "Yes." She ran.', ['He said "Yes."', "She ran."]),
        ("Pi is 3.14 here. So do I. He", ["Pi is 3.14 here.", "So do I.", "He"]),
        ("See No. 5 there. No. I won't.", ["See No. 5 there.", "No.", "I won't."]),
        ("Mix 3 oz. of rum. See fig. 2 and p. 3.", ["Mix 3 oz. of rum.", "See fig. 2 and p. 3."]),
        ("On Mon. and Tue. we rest. In Jan. 5 came.", ["On Mon. and Tue. we rest.", "In Jan. 5 came."]),
        ("It is 5 in. He is 6.", ["It is 5 in.", "He is 6."]),
        ("She has a Ph.D. in law. A Ph.D. Yes.", ["She has a Ph.D. in law.", "A Ph.D.", "Yes."]),
        ("It ended at 5 p.m. She left at 6 p.m. sharp.", ["It ended at 5 p.m.", "She left at 6 p.m. sharp."]),
        ("a line\nthat goes on\nNext one", ["a line that goes on", "Next one"]),
        ("a part\n\nanother part\n \nlast", ["a part", "another part", "last"]),
        ("One.\n---\nTwo.\n<br>\n```\n", ["One.", "Two."]),
        (f"... !! {EMOJI}", []),
        ("", []),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50])
@pytest.mark.parametrize(
    "text",
    [
        "Mr. Fox ran. Did he? Yes!\n\nNew line",
        "J. R. Fox said e.g. this etc. The end.",
        'The U.S. Army came. It left... and went. He said "Yes." etc. \n 好。Good.',
        "Dr. Smith lives here. On Main St. \nNo. 5",
        "See No. 5, 3 oz. of it. On Mon. and\nTue. at 5 p.m. She\n\nleft  \n  then. No.\n \n5",
    ],
)
def test_sentences_of_a_stream_are_those_of_the_whole_text(text: str, size: int) -> None:
    splitter, found = SentenceSplitter(), []
    for start in range(0, len(text), size):
        found += splitter.feed(text[start : start + size])
    assert [*found, *splitter.flush()] == sentences(text)
    assert splitter.flush() == []


def test_a_sentence_of_a_stream_comes_as_soon_as_its_end_is_certain() -> None:
    splitter = SentenceSplitter()
    assert splitter.feed("Hello there. ") == ["Hello there."]
    assert splitter.feed("Dr. ") == []
    assert splitter.feed("Smith lives here, etc. ") == []
    assert splitter.feed("He") == ["Dr. Smith lives here, etc."]
    assert splitter.feed(" left.") == []
    assert splitter.flush() == ["He left."]


def test_long_sentences_are_cut_at_clauses_before_words() -> None:
    text = "one two three four, five six seven eight"
    assert [*split_sentences(text, 20, 20, len)] == ["one two three four,", "five six seven eight"]
    words = ["one two", "three", "four,", "five six", "seven", "eight"]
    assert [*split_sentences(text, 10, 10, len)] == words


def test_a_long_word_may_be_longer_than_a_sentence_and_is_cut_at_the_models_limit() -> None:
    assert [*split_sentences("one onetwothree two", 10, 12, len)] == ["one", "onetwothree", "two"]
    assert [*split_sentences("one onetwothree two", 8, 10, len)] == ["one", "onetw", "othree", "two"]
    assert [*split_sentences("a" * 40, 8, 10, len)] == ["a" * 10] * 4
    with pytest.raises(TextError, match="'a' is longer than the model's 0 tokens"):
        list(split_sentences("a", 0, 0, len))


def test_a_sentence_is_no_longer_than_the_model_knows(phonemes: TextFrontEnd) -> None:
    text = "hello there fox " * 12
    pieces = phonemes.split(text, 400)
    assert len(pieces) > 1 and all(len(phonemes.encode(piece)) <= phonemes.max_tokens for piece in pieces)
    assert re.findall(r"\w+", " ".join(pieces)) == text.split()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hello there", ["hello there."]),
        ("hello there, ", ["hello there."]),
        ("hello -", ["hello."]),
        ('he said "go." there', ['he said "go."', "there."]),
        ("hello? there!", ["hello?", "there!"]),
        ("hello there\u2026", ["hello there\u2026"]),
    ],
)
def test_what_is_spoken_ends_with_a_mark(phonemes: TextFrontEnd, text: str, expected: list[str]) -> None:
    assert phonemes.split(text) == expected


def test_split_keeps_every_word_and_the_limit(front: TextFrontEnd) -> None:
    text = "hello there fox, " * 40
    pieces = front.split(text, 30)
    assert re.findall(r"\w+", " ".join(pieces)) == re.findall(r"\w+", text)
    assert all(len(front.encode(piece)) <= 30 for piece in pieces)


@pytest.mark.parametrize("text", ["The fox said hello there. " * 400, "fox hello " * 1000, "fox, " * 2000])
def test_ten_thousand_characters(front: TextFrontEnd, text: str) -> None:
    pieces = front.split(text[:10_000])
    assert re.findall(r"\w+", " ".join(pieces)) == re.findall(r"\w+", text[:10_000])
    assert all(len(front.encode(piece)) <= front.max_tokens for piece in pieces)


@pytest.mark.parametrize("text", UNSPEAKABLE)
def test_nothing_to_speak(front: TextFrontEnd, text: str) -> None:
    for refused in (front.split, front.encode):
        with pytest.raises(TextError, match="nothing that can be spoken; expected words in Latin"):
            refused(text)


def test_what_cannot_be_read_is_left_out(phonemes: TextFrontEnd) -> None:
    assert phonemes.prepare(f"hello 你好 \x07{EMOJI} fox") == "həlˈO fˈɑks"


def test_too_much(front: TextFrontEnd) -> None:
    assert issubclass(TextError, Valle2Error)
    pieces = front.split("bo" * 100, 50)
    assert len(pieces) > 1 and all(len(front.encode(piece)) <= 50 for piece in pieces)
    assert "".join(re.findall(r"\w+", "".join(pieces))) == "bo" * 100
    with pytest.raises(TextError, match=f"expected at most {MAX_CHARACTERS}"):
        front.encode("a" * (MAX_CHARACTERS + 1))


@pytest.mark.parametrize(
    "text", ["1", "$1", "$", ",", ".", "-", "'", "- ", "Mr. ", "A.", "a\n", "(", "1-", "1,"]
)
def test_no_text_takes_long_or_fails_otherwise(phonemes: TextFrontEnd, text: str) -> None:
    """Rules that look far back would take minutes here."""
    try:
        assert phonemes.encode(text * (5_000 // len(text))).size
    except TextError as error:
        assert "nothing that can be spoken" in str(error)


REPEATED = [
    "etc. ", "Dr. ", "St. ", "e.g. ", "a.b.", "A.", "I. ", "a.m. ", "BBC ", "Mr. X ", "1,", "111,", "9",
    "1.", "1/", "1:1 ", "1-2 ", "$1,111,", "5 km ", "1st ", "90s ", "Jan 5 ", "½", "°C", "(", "''",
    "'s ", "- -", ", ", "...", ".'", "http://", "é", "ab ", "bcdf ", "a b ", "x", "\n", "<", "<b>",
    "<a ", "&a", "&amp;", "[a](", "![", "a@b.", "a.b/", "/a", "1-1-", "5-", "Henry VIII ", "Chapter X",
    "III", "x^2 ", "10^", "5'", "24/7 ", "$5-", "12:", "1:1:1", "aB", "5 km-", "Mon-", "\n ", "`",
    "v1.", "1.1", "555-", "+1 ", "5 million ", "gave 1/2 ", "a 5 m ", "²", "5°",
]  # fmt: skip


def seconds(work: Callable[[str], object], text: str) -> float:
    """The least processor time of several runs."""
    found = []
    for _ in range(5):
        forget()
        began = time.process_time()
        with suppress(TextError):
            work(text)
        found.append(time.process_time() - began)
    return min(found)


def fed(text: str) -> None:
    """A stream of single characters."""
    splitter = SentenceSplitter()
    for character in text:
        splitter.feed(character)
    splitter.flush()


@pytest.mark.parametrize("piece", REPEATED)
def test_text_is_prepared_in_linear_time(phonemes: TextFrontEnd, piece: str) -> None:
    """Four times the text takes four times as long; what is quadratic takes sixteen times as long."""
    short, long = ((piece * 4096)[:length] for length in (1024, 4096))
    for work in (normalise, sentences, fed, phonemes.split):
        assert seconds(work, long) < 9 * seconds(work, short) + 2e-3


def test_encoding(phonemes: TextFrontEnd, bpe: TextFrontEnd) -> None:
    ids = phonemes.encode("Hello there")
    assert ids.dtype == "int64"
    assert "".join(SYMBOLS[i] for i in ids) == "həlˈO ðˈɛɹ"
    assert ids.tolist() == phonemes.encode("hello \n there").tolist()
    assert phonemes.vocab_size == len(SYMBOLS)
    assert len(bpe.encode("hello there")) == 2
    assert bpe.encode("5").tolist() == bpe.encode("five").tolist()
    assert 2 < bpe.vocab_size <= 60


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"kind": "runes"}, "unknown text front end 'runes'; expected bpe, phonemes, vallex"),
        ({}, "unknown text front end None"),
        ({"kind": "phonemes", "max_tokens": 0}, "max_tokens of the text front end is 0; expected"),
    ],
)
def test_bad_manifest_entries(folder: Path, entry: dict[str, object], message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        load_front_end(folder, entry)


@pytest.mark.parametrize("kind", ["bpe", "phonemes"])
def test_missing_files(tmp_path: Path, kind: str) -> None:
    with pytest.raises(ManifestError, match="does not load"):
        TextFrontEnd.load(tmp_path, {"kind": kind})
