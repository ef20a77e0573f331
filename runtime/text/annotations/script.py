"""A request's text as passages of plain text, with pauses, speeds and pronunciations."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from valle2.runtime.errors import LexiconError, TextError
from valle2.runtime.text.annotations.lexicon import WordFinder
from valle2.runtime.text.annotations.pronunciation import INLINE, Inventory, Spellings
from valle2.runtime.text.annotations.ssml import TAG, Passage, is_ssml, read_ssml
from valle2.runtime.text.annotations.unread import cut, unread_warning
from valle2.runtime.text.written import markup
from valle2.runtime.types import Phones

MAX_CHARACTERS = 100_000
LINE_END = re.compile(r"\r\n?|[\x85\u2028\u2029]")


@dataclass(frozen=True, slots=True)
class Script:
    """What a text asks for.

    Args:
        source: the text as it was given. passages: in their order.
        end_pause: seconds of silence after the last one.
        spellings: the words that stand for pronunciations. warnings: what is not spoken as it was written.
    """

    source: str
    passages: tuple[Passage, ...]
    end_pause: float = 0.0
    spellings: Spellings = field(default_factory=Spellings)
    warnings: tuple[str, ...] = ()


def read_script(
    text: str,
    inventory: Callable[[], Inventory | None],
    lexicons: Sequence[WordFinder] = (),
    only_latin: bool = True,
) -> Script:
    """Read a text: SSML if it begins with `<speak`, else plain text with Markdown, HTML and pronunciations.

    Args:
        text: plain text, SSML or `Phones`, which stay as they are.
        inventory: gives the phonemes of the model, or None if it has none; called if they are needed.
        lexicons: the first one wins. only_latin: other scripts are left out and reported.

    Raises:
        TextError: it is too long, or its SSML cannot be read.
        LexiconError: a pronunciation has phonemes that the model does not have.
    """
    if isinstance(text, Phones):
        return Script(text, (Passage(text),))
    if len(text) > MAX_CHARACTERS:
        raise TextError(f"the text has {len(text)} characters; expected at most {MAX_CHARACTERS}: split it")
    spellings, warnings, end_pause = Spellings(), dict[str, None](), 0.0

    def pronounce(word: str, phonemes: str) -> str:
        return spellings.add(word, need(inventory()).read(phonemes, word))

    def inline(match: re.Match[str]) -> str:
        known = inventory() if match[2].isascii() else None
        unknown = known.unknown_in(match[2]) if known else ()
        if match[2].isascii() and (known is None or unknown):
            if unknown:
                names = ", ".join(map(repr, unknown))
                warnings[f"{match[0]!r} is read as a link, because this model has no phoneme {names}"] = None
            return match[1]
        return pronounce(match[1], match[2])

    passages, found = [Passage(LINE_END.sub("\n", text))], list[str]()
    tag = TAG.search(text)
    if tag and not is_ssml(text):
        warnings[f"{cut(tag[0])} is ignored: SSML is read only in a text that begins with <speak>"] = None
    if is_ssml(text):
        passages, end_pause, found = read_ssml(text, pronounce)
    warnings.update(dict.fromkeys(found))
    read = []
    for passage in passages:
        plain = markup.without_blocks(INLINE.sub(inline, passage.text))
        for lexicon in lexicons:
            plain = lexicon.replace(plain, spellings)
        read.append(replace(passage, text=plain))
    if only_latin:
        warnings.update(dict.fromkeys(unread_warning("\n".join(markup.plain(each.text) for each in read))))
    return Script(text, tuple(read), end_pause, spellings, tuple(warnings))


def need(inventory: Inventory | None) -> Inventory:
    """The model's phonemes.

    Raises:
        LexiconError: the model reads letters.
    """
    if inventory is None:
        raise LexiconError(
            "this model reads letters and no phonemes, so it takes no pronunciations; "
            "spell the word as it sounds"
        )
    return inventory
