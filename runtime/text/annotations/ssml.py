"""A subset of SSML 1.1: text that begins with `<speak>`.

Read: `p`, `s`, `break`, `say-as`, `sub`, `phoneme` (IPA), and `rate` of `prosody`. Other elements and
attributes are left out with a warning, and the text in them is spoken. Expat parses; a DOCTYPE, entities and
deep nesting are refused. A wrong value is an error that says its line and column.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import NoReturn
from xml.parsers import expat

from valle2.engine.bundle.untrusted import shown
from valle2.runtime.errors import TextError
from valle2.runtime.text.annotations.say_as import KINDS, say_as

START = re.compile(
    r"(?:<\?xml\s[^<>]{0,200}\?>\s{0,9})?(?:<!--[^<>]{0,1000}-->\s{0,9})?(?:<speak(?=[\s/>]|$)|<!DOCTYPE\s+speak\b)"
)
MAX_DEPTH, MAX_ELEMENTS = 32, 20_000
MAX_BREAK, MAX_BREAKS = 10.0, 120.0
"""Seconds of one break, and of all breaks of a text."""
SLOWEST, FASTEST = 0.25, 4.0
STRENGTHS = {"none": 0.0, "x-weak": 0.25, "weak": 0.5, "medium": 0.75, "strong": 1.0, "x-strong": 1.25}
"""Seconds of a break by its strength."""
RATES = {"x-slow": 0.5, "slow": 0.75, "medium": 1.0, "default": 1.0, "fast": 1.25, "x-fast": 1.5}
TIME = re.compile(r"\+?(\d{1,9}(?:\.\d{0,9})?|\.\d{1,9})\s?(ms|s)", re.I)
RATE = re.compile(r"([+-]?)(\d{1,6}(?:\.\d{0,9})?|\.\d{1,9})(%?)")
ENDED = re.compile(r"(?:[.!?…。！？:;][\"'”’)\]]*|\n)\s*$")
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "speak": ("version", "xml:lang", "xmlns", "xml:base", "xsi:schemaLocation", "xmlns:xsi", "onlangfailure"),
    "p": ("xml:id", "id"),
    "s": ("xml:id", "id"),
    "break": ("time", "strength"),
    "say-as": ("interpret-as", "format", "detail"),
    "sub": ("alias",),
    "phoneme": ("alphabet", "ph"),
    "prosody": ("rate",),
}
"""Attributes of each element that is read."""
NAMES = {"paragraph": "p", "sentence": "s"}
"""Older names of elements."""
TAG = re.compile(r"</?(?:break|emphasis|phoneme|prosody|say-as|speak|sub\s|voice)(?:\s[^<>]*)?/?>")
"""A tag of SSML in a text that is none."""
SILENT = frozenset(["desc", "metadata", "meta", "lexicon", "lookup", "title"])
"""Elements whose text is about the document and is not spoken."""
LEADING = re.compile(r"[.!?…]+(?=\s|$)")
"""A mark that ends the sentence of the passage before."""
SHOWN_WARNINGS = 8
Pronounce = Callable[[str, str], str]
"""A word and its IPA -> the word that carries them through the text; see `pronunciation.Spellings`."""


@dataclass(frozen=True, slots=True)
class Passage:
    """Text that is spoken at one speed.

    Args:
        text: plain text, or `Phones`.
        pause: seconds of silence before it; None for the usual pause between two sentences.
        speed: how many times as fast as usual, 0.25 to 4.
    """

    text: str
    pause: float | None = None
    speed: float = 1.0


@dataclass(slots=True)
class Element:
    """An open element. speed: of the text in it. captured: its text, if the element reads it as a whole."""

    name: str
    attributes: Mapping[str, str]
    speed: float
    silent: bool = False
    captured: list[str] | None = None


@dataclass(slots=True)
class Reader:
    """Collects passages while expat parses.

    Args:
        pronounce: makes the word of a `phoneme`.
        skipped: lines before the text, and columns before it in its first line.
    """

    pronounce: Pronounce
    skipped: tuple[int, int]
    parser: expat.XMLParserType = field(default_factory=lambda: expat.ParserCreate("utf-8"))
    passages: list[Passage] = field(default_factory=list)
    warnings: dict[str, None] = field(default_factory=dict)
    open: list[Element] = field(default_factory=list)
    text: list[str] = field(default_factory=list)
    pause: float | None = None
    breaks: float = 0.0
    speed: float = 1.0
    elements: int = 0

    def read(self, text: str) -> None:
        """Parse a whole document."""
        parser = self.parser
        parser.buffer_text = True
        parser.StartElementHandler = self.start
        parser.EndElementHandler = self.end
        parser.CharacterDataHandler = self.characters
        parser.StartDoctypeDeclHandler = lambda *_: self.refuse("a DOCTYPE is not allowed; remove it")
        parser.EntityDeclHandler = lambda *_: self.refuse("entities cannot be declared; write the text")
        try:
            parser.Parse(text.encode("utf-8"), True)
        except UnicodeEncodeError:
            raise TextError("the SSML contains half of a surrogate pair; send valid Unicode") from None
        except expat.ExpatError as error:
            reason = expat.errors.messages.get(error.code, "not well-formed")
            raise TextError(
                f"the SSML is malformed at {self.place(error.lineno, error.offset)}: {reason}; "
                "close every element, write & as &amp;, and use no entities of HTML"
            ) from None
        self.finish_passage()

    def place(self, line: int, column: int) -> str:
        """A position of the text as it was given. line: from 1. column: from 0."""
        lines, columns = self.skipped
        return f"line {line + lines}, column {column + 1 + (columns if line == 1 else 0)}"

    def refuse(self, problem: str) -> NoReturn:
        """Raise the error for what begins at the parser's position."""
        where = self.place(self.parser.CurrentLineNumber, self.parser.CurrentColumnNumber)
        raise TextError(f"the SSML at {where}: {problem}")

    # -- events ---------------------------------------------------------------------------------

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        """An element begins."""
        self.elements += 1
        name = NAMES.get(tag, tag)
        if len(self.open) >= MAX_DEPTH:
            self.refuse(f"elements are nested more than {MAX_DEPTH} deep; expected fewer levels")
        if self.elements > MAX_ELEMENTS:
            self.refuse(f"more than {MAX_ELEMENTS} elements; split the text")
        outer = self.open[-1] if self.open else Element("", {}, 1.0)
        element = Element(name, attributes, outer.speed, outer.silent or name in SILENT, outer.captured)
        self.warn_of(name, attributes, first=not self.open)
        self.open.append(element)
        if outer.captured is not None:
            return
        if name in ("say-as", "sub", "phoneme"):
            element.captured = []
        elif name == "break":
            self.add_break(attributes)
        elif name == "prosody" and "rate" in attributes:
            element.speed = self.checked_speed(attributes["rate"], outer.speed)
            self.change_speed(element.speed)
        elif name in ("p", "s"):
            self.text.append("\n\n")

    def end(self, tag: str) -> None:
        """An element ends."""
        element = self.open.pop()
        outer = self.open[-1] if self.open else None
        if outer is not None and outer.captured is not None:
            return
        if element.captured is not None:
            if not element.silent:
                self.text.append(self.value_of(element, " ".join("".join(element.captured).split())))
        elif element.name == "prosody" and outer:
            self.change_speed(outer.speed)
        elif element.name in ("p", "s"):
            self.text.append("\n\n")

    def characters(self, data: str) -> None:
        """Text. Its line ends are spaces, as in every XML."""
        element = self.open[-1]
        if element.silent:
            return
        data = re.sub(r"<(?=[A-Za-z/!])", "< ", re.sub(r"\s+", " ", data))  # a written sign is no tag
        (self.text if element.captured is None else element.captured).append(data)

    # -- values ---------------------------------------------------------------------------------

    def value_of(self, element: Element, content: str) -> str:
        """What is said for a `say-as`, `sub` or `phoneme`."""
        given = element.attributes
        if element.name == "sub":
            alias = " ".join(given.get("alias", "").split())
            if not alias:
                self.refuse('sub has no alias; expected the words to say, such as alias="World Wide Web"')
            return alias
        if element.name == "phoneme":
            return self.phoneme(given, content)
        kind = given.get("interpret-as", "").strip().lower()
        if kind not in KINDS:
            if not kind:
                self.refuse("say-as has no interpret-as; expected one of: " + ", ".join(KINDS))
            self.warn(f"say-as interpret-as={shown(kind)} is ignored; known are {', '.join(KINDS)}")
            return content
        spoken = say_as(kind, given.get("format", ""), content)
        if spoken is None:
            self.warn(f"{shown(content)} is read as written, because it is no {kind}")
        return content if spoken is None else spoken

    def phoneme(self, given: Mapping[str, str], content: str) -> str:
        """The word of a `phoneme`."""
        phonemes, alphabet = given.get("ph", ""), given.get("alphabet", "ipa").strip().lower()
        if not phonemes.strip():
            self.refuse('phoneme has no ph; expected IPA, such as ph="təˈmɑːtoʊ"')
        if alphabet != "ipa":
            self.warn(f"phoneme alphabet={shown(alphabet)} is ignored; expected ipa")
            return content
        try:
            return self.pronounce(content or phonemes, phonemes)
        except TextError as error:
            self.refuse(str(error))

    def add_break(self, given: Mapping[str, str]) -> None:
        """A pause: the next passage begins after it. One of no length does nothing."""
        seconds = STRENGTHS["medium"]
        if "strength" in given:
            strength = given["strength"].strip().lower()
            if strength not in STRENGTHS:
                self.refuse(f"the break's strength is {shown(strength)}; expected {', '.join(STRENGTHS)}")
            seconds = STRENGTHS[strength]
        if "time" in given:
            found = TIME.fullmatch(given["time"].strip())
            if not found:
                self.refuse(f"the break's time is {shown(given['time'])}; expected such as 500ms or 1.5s")
            seconds = float(found[1]) / (1000 if found[2].lower() == "ms" else 1)
        if seconds > MAX_BREAK:
            self.refuse(f"a break of {seconds:g} s; expected at most {MAX_BREAK:g} s")
        self.breaks += seconds
        if self.breaks > MAX_BREAKS:
            self.refuse(f"breaks of more than {MAX_BREAKS:g} s in all; expected fewer or shorter ones")
        if seconds:
            self.finish_passage()
            self.pause = (self.pause or 0.0) + seconds

    def checked_speed(self, rate: str, outer: float) -> float:
        """The speed of a `prosody`, relative to the text around it."""
        text = rate.strip().lower()
        factor, found = RATES.get(text), RATE.fullmatch(text)
        if factor is None and found and (found[3] or not found[1]):
            share = float(found[2]) / (100 if found[3] else 1)
            factor = {"+": 1 + share, "-": 1 - share, "": share}[found[1]]
        if factor is None:
            names = ", ".join(RATES)
            self.refuse(f"the rate is {shown(rate)}; expected {names}, or a percentage such as 80% or +20%")
        if not SLOWEST <= factor * outer <= FASTEST:
            self.refuse(
                f"the rate {shown(rate)} makes speech {max(0.0, factor * outer):g} times as fast; "
                f"expected {SLOWEST:g} to {FASTEST:g} times"
            )
        return factor * outer

    # -- passages -------------------------------------------------------------------------------

    def change_speed(self, speed: float) -> None:
        """The text from here on has another speed. Within a sentence no pause is made."""
        if speed != self.speed:
            before = "".join(self.text)
            self.finish_passage()
            if before.strip() and not ENDED.search(before):
                self.pause = 0.0
            self.speed = speed

    def finish_passage(self) -> None:
        """Close the passage that is open. What holds only spaces is left out; its pause is the next one's."""
        text = re.sub(" {2,}", " ", "".join(self.text)).strip()
        self.text.clear()
        mark = LEADING.match(text)
        if mark and self.passages and not self.pause:
            last = self.passages[-1]
            self.passages[-1] = replace(last, text=last.text + mark[0])
            text, self.pause = text[mark.end() :].lstrip(), None
        if text:
            self.passages.append(Passage(text, self.pause, self.speed))
            self.pause = None

    # -- warnings -------------------------------------------------------------------------------

    def warn_of(self, name: str, attributes: Mapping[str, str], first: bool) -> None:
        """Warn of an element or of attributes that are not read."""
        if first:
            return
        if name not in ATTRIBUTES or name == "speak":
            effect = "its text is not spoken" if name in SILENT else "its text is spoken"
            self.warn(f"the SSML element {shown(name)} is ignored; {effect}")
            return
        for attribute in attributes:
            if attribute not in ATTRIBUTES[name]:
                self.warn(f"the attribute {shown(attribute)} of the SSML element {shown(name)} is ignored")

    def warn(self, text: str) -> None:
        """Add a warning once."""
        self.warnings[text] = None


def is_ssml(text: str) -> bool:
    """Does a text begin with `<speak`, spaces and an XML declaration aside?"""
    return START.match(text.lstrip("\ufeff \t\r\n")) is not None


def may_become_ssml(text: str) -> bool:
    """May a text whose beginning this is still begin with `<speak`? For text that arrives in pieces."""
    start = text.lstrip("\ufeff \t\r\n")
    return (
        not start
        or is_ssml(text)
        or "<speak".startswith(start)
        or any(start.startswith(other[: len(start)]) for other in ("<?xml", "<!--", "<!DOCTYPE"))
    )


def read_ssml(text: str, pronounce: Pronounce) -> tuple[list[Passage], float, list[str]]:
    """Read SSML.

    Args:
        pronounce: makes the word of a `phoneme`.

    Returns:
        The passages, the seconds of silence after the last one, and the warnings.

    Raises:
        TextError: the text is malformed or asks for something impossible; it says the line and the column.
    """
    start = text.lstrip("\ufeff \t\r\n")
    before = text[: len(text) - len(start)]
    reader = Reader(pronounce, (before.count("\n"), len(before) - before.rfind("\n") - 1))
    reader.read(start)
    warnings = list(reader.warnings)
    if len(warnings) > SHOWN_WARNINGS:
        warnings = [*warnings[:SHOWN_WARNINGS], f"and {len(warnings) - SHOWN_WARNINGS} more of SSML"]
    return reader.passages, reader.pause or 0.0, warnings
