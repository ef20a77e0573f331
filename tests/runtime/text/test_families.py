"""Text and phones of the imported families: known ids, packages as doubles, our lexicon in their phones."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from valle2.engine.errors import ManifestError
from valle2.runtime import Phones
from valle2.runtime.errors import PromptError, TextError
from valle2.runtime.text import english
from valle2.runtime.text.base import FrontEnd
from valle2.runtime.text.families import (
    AmphionFrontEnd,
    VallexFrontEnd,
    amphion_symbols,
    amphion_table,
    amphion_text,
    lifeiteng_table,
    vallex_ids,
    vallex_text,
)
from valle2.runtime.text.front_end import KINDS, front_end_of, load_front_end
from valle2.runtime.text.phonemes import Pronouncer
from valle2.runtime.text.table import parse_table

SENTENCE = "DH IH1 S | IH1 Z | AH0 | T EH1 S T | S EH1 N T AH0 N S"
IDS = "5 73 118 175 219 116 214 219 28 219 180 82 179 181 219 174 82 149 185 30 149 175 6"
SYMBOL_FILE = "<eps> 0\n_ 1\na 2\nb 3\n! 4\nʃ 5\nh 6\nə 7\nl 8\nˈoʊ 9\nð 10\nɛ 11\nɹ 12\n. 13\n"
PACKAGES = ("eng_to_ipa", "g2p_en")


@pytest.fixture
def no_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without the extra `text`."""
    monkeypatch.setattr("valle2.runtime.text.families.find_spec", lambda name: None)


def ids_of(numbers: str) -> list[int]:
    return [int(number) for number in numbers.split()]


# -- known ids --------------------------------------------------------------------------------------


def test_vall_e_x_characters() -> None:
    assert vallex_ids("!aˈ↓é").tolist() == [5, 18, 62, 69, 0]
    assert vallex_ids("`a_").tolist() == [17, 18, 16]


def test_amphions_table_and_its_test_sentence() -> None:
    table = amphion_table()
    assert len(table) == 220 and table["|"] == 219 and table["ZE"] == 214 and table["AO1"] == 40
    phones = "<BOS> DHB IH1I SE | IH1B ZE | AH0B | TB EH1I SI TE | SB EH1I NI TI AH0I NI SE <EOS>"
    assert AmphionFrontEnd().encode_phones(phones).tolist() == ids_of(IDS)


def test_amphions_phones_get_their_places() -> None:
    assert AmphionFrontEnd().ids_of(amphion_symbols(SENTENCE)).tolist() == ids_of(IDS)
    assert AmphionFrontEnd().encode_phones(SENTENCE).tolist() == ids_of(IDS)


def test_the_numbers_of_a_symbol_file_are_not_the_ids(tmp_path: Path) -> None:
    table = lifeiteng_table("<eps> 0\n_ 1\na 2\nb 3\n! 4\nʃ 5\n")
    assert [table[symbol] for symbol in "!_abʃ"] == [3, 5, 6, 7, 8] and table["<eps>"] == 4
    for bad in ("hello", "", "a b c\nd"):
        with pytest.raises(TextError, match="no symbol table"):
            lifeiteng_table(bad)
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "symbols.txt").write_bytes(b"\xff")
    with pytest.raises(ManifestError, match=r"text/symbols\.txt does not load"):
        load_front_end(tmp_path, {"kind": "lifeiteng"}, ["text/symbols.txt"])


# -- the families' packages -------------------------------------------------------------------------


def test_amphions_text(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []

    def phones(text: str) -> list[str]:
        heard.append(text)
        return [" " if phone == "|" else phone for phone in SENTENCE.split()]

    monkeypatch.setitem(sys.modules, "g2p_en", SimpleNamespace(G2p=lambda: phones))
    assert amphion_text("This is a “test”-sentence!").tolist() == ids_of(IDS)
    assert heard == ["this is a test sentence"]


def test_vall_e_xs_english(monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"hello, little girl": "hɛˈloʊ, ˈlɪtəl gərl", "church judge!": "ʧərʧ ʤəʤ!", "zyx": "zyx*"}
    monkeypatch.setitem(sys.modules, "eng_to_ipa", SimpleNamespace(convert=said.__getitem__))
    assert vallex_text("Hello, little girl").tolist() == vallex_ids("hɛˈloʊ,_ˈlɪtəɫ_gəɹɫ.").tolist()
    assert vallex_text("Church judge!").tolist() == vallex_ids("tʃəɹtʃ_dʒədʒ!").tolist()
    with pytest.raises(TextError, match="no pronunciation of zyx"):
        vallex_text("zyx")
    with pytest.raises(TextError, match="nothing that can be spoken"):
        vallex_text("...")


@pytest.mark.parametrize(("speak", "package"), [(amphion_text, "g2p_en"), (vallex_text, "eng_to_ipa")])
def test_an_absent_package_names_the_extra(
    speak: Callable[[str], object], package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(TextError, match=r"pip install 'valle2\[text\]'"):
        speak("hello")


def test_g2p_en_without_its_data_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(text: str) -> list[str]:
        raise LookupError("Resource cmudict not found")

    monkeypatch.setitem(sys.modules, "g2p_en", SimpleNamespace(G2p=lambda: missing))
    with pytest.raises(TextError, match=r"python -m nltk\.downloader .*, or pass phones"):
        amphion_text("hello")


@pytest.mark.parametrize("front", [VallexFrontEnd, AmphionFrontEnd])
def test_an_installed_package_reads_the_text(
    front: Callable[[], FrontEnd], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "eng_to_ipa", SimpleNamespace(convert=lambda text: "hɛˈloʊ"))
    monkeypatch.setitem(sys.modules, "g2p_en", SimpleNamespace(G2p=lambda: lambda text: ["HH", "EH2"]))
    found = front()
    assert found.warnings == ()
    assert found.phones(found.encode("hello")) in ("hɛˈloʊ.", "<BOS> HHB EH2E <EOS>")


# -- our lexicon in their phones --------------------------------------------------------------------


@pytest.fixture
def lexicon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tiny lexicon in the place of the embedded model's."""
    entries = {"hello": "həlˈO", "there": "ðɛɹ", "little": "lˈɪTᵊl", "girl": "ɡˈɜɹl", "astray": "əstɹˈA"}
    lines = [f"{word}\t{sounds}".encode() for word, sounds in entries.items()]
    made = Pronouncer(parse_table(b"\n".join(lines)))
    monkeypatch.setattr(english, "pronouncer", lambda: made)


def test_words_in_arpabet_and_in_the_ipa_of_others(lexicon: None) -> None:
    assert english.arpabet("həlˈO") == ["HH", "AH0", "L", "OW1"]
    assert english.arpabet("ɡˈɜɹl") == ["G", "ER1", "L"]
    assert english.arpabet("ɪz") == ["IH1", "Z"] and english.arpabet("ðə") == ["DH", "AH0"]
    assert english.vallex_ipa("həlˈO") == "həˈloʊ" and english.vallex_ipa("kˈæt") == "kæt"
    assert english.vallex_ipa("əstɹˈA") == "əˈstɹeɪ" and english.vallex_ipa("sˈɪstəɹ") == "ˈsɪstəɹ"
    assert english.espeak_phones("lˈɪTᵊl") == ["l", "ˈɪ", "ɾ", "ə", "l"]


def test_every_sound_of_the_embedded_lexicon_has_a_phone_of_each_family() -> None:
    lexicon = english.pronouncer().lexicon
    sounds = {c for entry in lexicon.values() for form in entry.split("\t") for c in form.split("=")[-1]}
    assert sounds - {"ˈ", "ˌ"} <= set(english.SETS)
    names = {symbol[:-1] for symbol in amphion_table()} | {s[:-2] for s in amphion_table()}
    assert {row[english.ARPABET] for row in english.SETS.values()} <= names
    assert 0 not in vallex_ids("".join(row[english.VALLEX] for row in english.SETS.values()))


def test_text_without_a_package_is_read_by_our_lexicon(no_packages: None, lexicon: None) -> None:
    vallex, amphion = VallexFrontEnd(), AmphionFrontEnd()
    assert vallex.phones(vallex.encode("Hello there, little girl")) == "həˈloʊ_ðɛɹ,_ˈlɪtəɫ_gəɹɫ."
    assert amphion.phones(amphion.encode("Hello, girl.")) == "<BOS> HHB AH0I LI OW1E | GB ER1I LE <EOS>"
    for front, package in ((vallex, "eng_to_ipa"), (amphion, "g2p_en")):
        (warning,) = front.warnings
        assert f"{package} is not installed" in warning and "pip install 'valle2[text]'" in warning


def lifeiteng(folder: Path) -> FrontEnd:
    (folder / "text").mkdir(exist_ok=True)
    (folder / "text" / "symbols.txt").write_text(SYMBOL_FILE, encoding="utf-8")
    return load_front_end(folder, {"kind": "lifeiteng"}, ["text/symbols.txt"])


def test_lifeitengs_text_takes_the_form_that_the_table_has(tmp_path: Path, lexicon: None) -> None:
    front = lifeiteng(tmp_path)
    assert front.phones(front.encode("Hello there.")) == "h ə l ˈoʊ _ ð ɛ ɹ ."
    with pytest.raises(TextError, match="unknown phone 'ɡ'; this model has"):
        front.encode("girl")


# -- phones -----------------------------------------------------------------------------------------


def test_phones_of_one_character_in_two_forms() -> None:
    front = VallexFrontEnd()
    for same in ("hɛˈloʊ_wəɹld", "hɛˈloʊ wəɹld", "h ɛ ˈl oʊ | w əɹ l d", "h ɛ ˈl oʊ _ w əɹ l d"):
        assert front.encode_phones(same).tolist() == vallex_ids("hɛˈloʊ_wəɹld").tolist()
    assert front.encode_phones("h ɛ l oʊ").tolist() == vallex_ids("hɛloʊ").tolist()
    assert front.encode_phones("ɡ <0> r").tolist() == [vallex_ids("g")[0], 0, vallex_ids("ɹ")[0]]


@pytest.mark.parametrize("kind", ["vallex", "amphion", "lifeiteng", "supervoice", "ids"])
def test_ids_can_be_written_for_every_family(kind: str, tmp_path: Path) -> None:
    front = load_front_end(tmp_path, {"kind": kind}, [])
    assert front.encode(Phones("<3> <17> <5>")).tolist() == [3, 17, 5]
    again = front.phones([3, 17, 5])
    assert isinstance(again, Phones) and front.encode(again).tolist() == [3, 17, 5]


@pytest.mark.parametrize(
    ("kind", "phones", "message"),
    [
        ("vallex", "hɛ€", "unknown phone '€'; this model has ! # .* and ids written as <17>"),
        ("vallex", " ", "holds no phones; expected symbols such as !"),
        ("amphion", "HH XX", "unknown phone 'XX'; this model has AA0 .* between words"),
        ("amphion", "<BOS> HH <EOS>", "unknown phone 'HH'; this model has ! , "),
        ("lifeiteng", "h", "unknown phone 'h'; this model has <pad> <bos> <eos>, and ids"),
        ("ids", "h", "unknown phone 'h'; this model has ids written as <17>"),
    ],
)
def test_an_unknown_phone_is_named(kind: str, phones: str, message: str, tmp_path: Path) -> None:
    front = load_front_end(tmp_path, {"kind": kind}, [])
    with pytest.raises(TextError, match=message):
        front.encode(Phones(phones))


def test_text_of_a_model_without_symbols_names_the_way_out(tmp_path: Path) -> None:
    for kind, message in (("ids", "--phones"), ("lifeiteng", "--text unique_text_tokens.k2symbols")):
        with pytest.raises(TextError, match=message):
            load_front_end(tmp_path, {"kind": kind}, []).encode("hello")


def test_languages_of_vall_e_x(no_packages: None, lexicon: None) -> None:
    front = VallexFrontEnd()
    phones = Phones("[ZH]ni↓[ZH][EN]hɛ[EN]")
    (pair,) = front.encode_request(phones, "hello", 99)
    assert pair.ids.tolist() == [*vallex_ids("ni↓hɛ"), *vallex_ids("həˈloʊ.")]
    assert pair.languages is not None
    assert pair.languages.tolist() == [1, 1, 1, 0, 0] + [0] * 7 and pair.prompt_length == 5
    assert front.phones(vallex_ids("ni↓"), "zh") == "[ZH]ni↓[ZH]"


def test_transcript_and_text_of_the_others(tmp_path: Path, lexicon: None, no_packages: None) -> None:
    (pair,) = AmphionFrontEnd().encode_request("hello", Phones("G ER1 L"), 99)
    phones = AmphionFrontEnd().phones(pair.ids)
    assert phones == "<BOS> HHB AH0I LI OW1E <EOS> <BOS> GB ER1I LE <EOS>" and pair.prompt_length == 6
    front = lifeiteng(tmp_path)
    (pair,) = front.encode_request(Phones("h ə"), Phones("l|ˈoʊ"), 99)
    assert front.phones(pair.ids) == "h ə _ l ˈoʊ" and pair.prompt_length == 2 and pair.languages is None


def test_each_line_of_phones_is_an_utterance(tmp_path: Path) -> None:
    front = load_front_end(tmp_path, {"kind": "ids"}, [])
    pairs = list(front.encode_request(Phones("<1>"), Phones("<2> <3>\n\n<4>\n"), 5))
    assert [pair.ids.tolist() for pair in pairs] == [[1, 2, 3], [1, 4]]
    with pytest.raises(TextError, match="a line of 2 phones; expected at most 1: break the line"):
        list(front.encode_request(Phones("<1>"), Phones("<2> <3>"), 2))
    with pytest.raises(PromptError, match="use a shorter prompt"):
        list(front.encode_request(Phones("<1>"), Phones("<2>"), 1))


# -- manifests --------------------------------------------------------------------------------------


def test_a_bundle_of_before_takes_its_familys_front_end(tmp_path: Path) -> None:
    entry = {"kind": "ids"}
    assert isinstance(front_end_of(tmp_path, entry, {"family": "vallex"}, []), VallexFrontEnd)
    plain = front_end_of(tmp_path, entry, {}, [])
    assert plain is not None and not plain.table
    assert front_end_of(tmp_path, {"kind": "bpe"}, {}, []) is None


def test_the_manifest_knows_every_kind() -> None:
    from valle2.engine.bundle.schema import TEXT_KINDS

    assert set(KINDS) == set(TEXT_KINDS)
