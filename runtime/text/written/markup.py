"""HTML, Markdown and invisible characters: what is not spoken goes, what is meant stays."""

from __future__ import annotations

import html
import re
import unicodedata

from valle2.runtime.text.written import Rule, apply
from valle2.runtime.text.written.vocabulary import listed

TAGS = """
a abbr address article aside b blockquote body br button caption center cite code dd del details div
dl dt em figcaption figure font footer form h1 h2 h3 h4 h5 h6 head header hr html i img input ins
kbd label li link main mark meta nav ol option p pre q s samp script section select small span
strike strong style sub summary sup table tbody td tfoot th thead title tr tt u ul var video
"""
TAG = re.compile(rf"</?(?:{'|'.join(TAGS.split())})(?:\s[^<>]{{0,300}})?\s?/?>|<!--[^<>]{{0,300}}-->", re.I)
INLINE = listed("a abbr b cite code del em font i ins kbd mark q s small span strike strong sub sup tt u var")
ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z]\w{1,30});", re.A)
SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
RULES: tuple[Rule, ...] = (
    (re.compile(r"^[ \t]{0,8}[-*+][ \t]\[[ xX]\][ \t]", re.M), ""),
    (re.compile(r"^[ \t]{0,3}(?:```|~~~)[\w+#-]{0,30}", re.M), " "),
    (re.compile(r"^[ \t]{0,3}#{1,6}[ \t]+", re.M), ""),
    (re.compile(r"^[ \t]{0,3}>[ \t]+(?=\S)", re.M), ""),
    (re.compile(r"!?\[([^\[\]\n]{0,300})\]\([^()\s]{0,500}(?:\s\"[^\"\n]{0,200}\")?\)"), r"\1"),
    (re.compile(r"\[([^\[\]\n]{0,300})\]\[[^\[\]\n]{0,100}\]"), r"\1"),
    (re.compile(r"<((?:https?://|mailto:)[^<>\s]{1,500})>", re.I), r"\1"),
    (TAG, lambda match: "" if tag_name(match[0]) in INLINE else " "),
    (ENTITY, lambda match: html.unescape(match[0])),
    (re.compile(r"\((\d{3})\)[\s-]?(?=\d{3}[-.\s]\d{4})"), r"\1-"),
    (re.compile(r"[™®℠]"), ""),
    (re.compile(r"№\s?"), "number "),
    (re.compile(r"[⁰¹²³⁴-⁹⁺⁻]{1,12}"), lambda match: f"^{match[0].translate(SUPERSCRIPTS)}"),
    (re.compile(r"(?<=\d)(?=[¼½¾⅐-⅞])"), " and "),
    (re.compile(r"″|′′|''(?=\s|$)"), '"'),
    (re.compile("′"), "'"),
    (re.compile(r"(?<=[\d\s])−(?=\s)"), " minus "),
    (re.compile(r"(?<=\s)−|^−"), " minus "),
)


def plain(text: str) -> str:
    """The text without markup and invisible characters; control characters become spaces."""
    return "".join(map(visible, apply(RULES, text)))


def tag_name(tag: str) -> str:
    """`</b>` -> "b"."""
    return re.sub(r"[</>]", " ", tag).split()[0].lower() if tag[1] != "!" else ""


def visible(character: str) -> str:
    """The character; nothing for an invisible one, and a space for a control character."""
    if character.isprintable():
        return character
    category = unicodedata.category(character)
    return "" if category == "Cf" else " " if category == "Cc" else character
