"""Lexicons of users: words and their phonemes, from a file or a request.

An entry is found as a whole word of the text as it is written. A capital letter of an entry must be a capital
in the text; a small letter matches either. Longer entries win over shorter ones, and then more capitals.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from valle2.engine.bundle.untrusted import parse_json, read_bounded, shown
from valle2.runtime.errors import LexiconError
from valle2.runtime.text.annotations.pronunciation import Inventory, Spellings

MAX_FILE = 2 * 2**20
MAX_ENTRIES = 20_000
MAX_WORD, MAX_PHONEMES = 100, 200
"""Bytes of a lexicon's file, its entries, and the characters of a word and of its phonemes."""
EXPECTED = "expected a word, a tab and its phonemes, such as Ljubljana<TAB>ljuːbˈljɑːnə"
POSSESSIVE = re.compile(r"['’][sS](?![\w])")
TOKEN = re.compile(r"\w+|[^\w\s]")


def check_lexicon(entries: Any) -> dict[str, str]:
    """A lexicon as a dict of words and phonemes, both stripped.

    Args:
        entries: a mapping of words to phonemes, as a request or a JSON file gives it.

    Raises:
        LexiconError: not such a mapping, too many entries, or an entry that is malformed.
    """
    if not isinstance(entries, Mapping):
        raise LexiconError(
            f'the lexicon is {shown(entries)}; expected an object such as {{"Ljubljana": "ljuːbˈljɑːnə"}}'
        )
    if len(entries) > MAX_ENTRIES:
        raise LexiconError(f"the lexicon has {len(entries)} entries; expected at most {MAX_ENTRIES}")
    found: dict[str, str] = {}
    for word, phonemes in entries.items():
        problem = problem_of(word, phonemes)
        if problem:
            raise LexiconError(f"the lexicon's entry {shown(word)}: {problem}")
        key = " ".join(word.split())
        if key in found:
            raise LexiconError(f"the lexicon's entry {shown(word)} is given twice; keep one of them")
        found[key] = phonemes.strip()
    return found


def problem_of(word: Any, phonemes: Any) -> str:
    """What is wrong with an entry; an empty string if nothing is."""
    if not isinstance(word, str) or not isinstance(phonemes, str):
        return f"the phonemes are {shown(phonemes)}; expected text such as 'ljuːbˈljɑːnə'"
    if not any(letter.isalnum() for letter in word):
        return "the word holds no letter; expected a word or several"
    if len(word) > MAX_WORD:
        return f"the word has {len(word)} characters; expected at most {MAX_WORD}"
    if not phonemes.strip().strip("/"):
        return "it has no phonemes; expected IPA such as ljuːbˈljɑːnə"
    if len(phonemes) > MAX_PHONEMES:
        return f"it has {len(phonemes)} characters of phonemes; expected at most {MAX_PHONEMES}"
    return "" if (word + phonemes).isprintable() else "it holds control characters; remove them"


def read_lexicon(path: str | Path) -> dict[str, str]:
    """Read a lexicon: lines of word, tab, phonemes; or a JSON object of words and phonemes.

    Empty lines and those that begin with `#` are left out.

    Raises:
        LexiconError: the file cannot be read, or an entry is malformed; the message names its line.
    """
    try:
        data = read_bounded(Path(path), MAX_FILE)
    except (OSError, ValueError) as error:
        raise LexiconError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise LexiconError(f"{path}, line {line}: not UTF-8 text; convert the file first") from None
    entries = json_entries(path, text) if text.lstrip().startswith(("{", "[")) else tab_entries(path, text)
    found: dict[str, str] = {}
    for line, word, phonemes in entries:
        problem = problem_of(word, phonemes)
        key = " ".join(word.split())
        if not problem and key in found:
            problem = f"{shown(key)} is given twice; keep one of the two"
        if problem:
            raise LexiconError(f"{path}, line {line}: {problem}")
        found[key] = phonemes.strip()
        if len(found) > MAX_ENTRIES:
            raise LexiconError(f"{path}, line {line}: more than {MAX_ENTRIES} entries; split the lexicon")
    return found


def tab_entries(path: str | Path, text: str) -> list[tuple[int, str, Any]]:
    """Line number, word and phonemes of each line."""
    found: list[tuple[int, str, Any]] = []
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), 1):
        if not line.strip() or line.startswith("#"):
            continue
        word, tab, phonemes = line.partition("\t")
        if not tab or "\t" in phonemes.strip():
            raise LexiconError(
                f"{path}, line {number}: {shown(line)} has {line.count(chr(9))} tabs; {EXPECTED}"
            )
        found.append((number, word, phonemes))
    return found


def json_entries(path: str | Path, text: str) -> list[tuple[int, str, Any]]:
    """Line number, word and phonemes of each entry of an object."""
    try:
        json.loads(text)
    except json.JSONDecodeError as error:
        raise LexiconError(f"{path}, line {error.lineno}: not JSON: {error.msg}") from None
    except (RecursionError, ValueError):
        pass  # parse_json says it better
    try:
        values = parse_json(text.encode())
    except ValueError as error:
        raise LexiconError(f"{path}: {error}") from None
    if not isinstance(values, dict):
        raise LexiconError(f"{path}, line 1: {shown(values)}; expected an object of words and phonemes")
    found: list[tuple[int, str, Any]] = []
    position = 0
    for word, phonemes in values.items():
        # the object keeps the order of the text, so that each key is searched for once
        begin = max(
            text.find(json.dumps(word), position), text.find(json.dumps(word, ensure_ascii=False), position)
        )
        position = max(begin, position)
        found.append((text.count("\n", 0, position) + 1, word, phonemes))
    return found


class WordFinder:
    """Finds the words of a lexicon in a text.

    Args:
        entries: of `check_lexicon`. inventory: the model's phonemes.

    Raises:
        LexiconError: an entry has phonemes that the model does not have.
    """

    def __init__(self, entries: Mapping[str, str], inventory: Inventory) -> None:
        self.entries: dict[str, list[tuple[str, str]]] = {}
        lengths: dict[str, set[int]] = {}
        for word, phonemes in entries.items():
            key = small(word)
            self.entries.setdefault(key, []).append((word, inventory.read(phonemes, word)))
            lengths.setdefault(TOKEN.findall(key)[0], set()).add(len(key))
        for forms in self.entries.values():
            forms.sort(key=lambda form: -sum(map(str.isupper, form[0])))
        self.lengths = {first: sorted(found, reverse=True) for first, found in lengths.items()}
        """Of the entries that begin with a token, longest first."""

    def replace(self, text: str, spellings: Spellings) -> str:
        """The text with each of the lexicon's words as a word of plain letters that spells its phonemes."""
        folded, out, done = small(text), [], 0
        for token in TOKEN.finditer(folded):
            start, lengths = token.start(), self.lengths.get(token[0])
            if lengths is None or start < done or not starts_word(text, start):
                continue
            found = self.at(text, folded, start, lengths)
            if found:
                end = start + found[0]
                out += [text[done:start], spellings.add(text[start:end], found[1])]
                done = end
        return "".join([*out, text[done:]])

    def at(self, text: str, folded: str, index: int, lengths: Sequence[int]) -> tuple[int, str] | None:
        """The length and the phonemes of the longest entry that stands at an index, or None."""
        for length in lengths:
            forms = self.entries.get(folded[index : index + length], ())
            if forms and ends_word(text, index, index + length):
                for word, sounds in forms:
                    written = text[index : index + length]
                    if all(a == b or not a.isupper() for a, b in zip(word, written, strict=True)):
                        return length, sounds
        return None


def small(text: str) -> str:
    """Lower case, one character for one, and each space as a plain one."""
    return "".join(
        " " if letter.isspace() else low if len(low := letter.lower()) == 1 else letter for letter in text
    )


def starts_word(text: str, index: int) -> bool:
    """Does no word go on to the left of an index? An apostrophe between letters is inside a word."""
    before = text[index - 1 : index]
    if not before:
        return True
    if before in "'’.&":
        return not text[max(0, index - 2) : index - 1].isalnum() and before != "&"
    return not (before.isalnum() or before == "_")


def ends_word(text: str, start: int, end: int) -> bool:
    """Does no word go on to the right of an index? A possessive ending may follow."""
    after, following = text[end : end + 1], text[end + 1 : end + 2]
    if after in ("'", "’"):
        return not following.isalnum() or POSSESSIVE.match(text, end) is not None
    if after == "." and end - start == 1:  # "a" is no word in "a.m."
        return not following.isalnum()
    return not (after.isalnum() or after == "_")
