"""HTML, Markdown and invisible characters: what is not spoken goes, what is meant stays."""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Sequence

from valle2.runtime.text.written import Rule, RuleSet
from valle2.runtime.text.written.memo import Kept
from valle2.runtime.text.written.pieces import END, expression
from valle2.runtime.text.written.vocabulary import listed

TAGS = """
a abbr address article aside b blockquote body br break button caption center cite code dd del details div
dl dt em emphasis figcaption figure font footer form h1 h2 h3 h4 h5 h6 head header hr html i img input ins
kbd label li link main mark meta nav ol option p phoneme pre prosody q s samp say-as script section select
small span speak strike strong style sub summary sup table tbody td tfoot th thead title tr tt u ul var video
voice
"""
TAG = re.compile(rf"</?(?:{'|'.join(TAGS.split())})(?:\s[^<>]*)?/?>", re.I)
MARKED = re.compile(r"[<\[`*|#=_~•‣◦▪]|^[ \t]{0,8}(?:[-+>]|\d{1,3}[.)])", re.M)
"""Where there is none of these, there is no markup of blocks."""
SIGN = re.compile(r"[\[`~#>&(']")
"""In ASCII, where there is none of these, no sign is written otherwise."""
INLINE = listed("a abbr b cite code del em font i ins kbd mark q s small span strike strong sub sup tt u var")
BLOCKS = listed("""
article aside blockquote body caption center dd details div dl dt figcaption figure footer form h1 h2 h3 h4 h5
h6 head header hr html li main nav ol option p pre section select summary table tbody tfoot thead title tr ul
""")
"""Tags that stand around what is spoken by itself."""
UNSPOKEN = re.compile(r"<(script|style)(?:\s[^<>]*)?>", re.I)
ALT = re.compile(r"\salt\s?=\s?(?:\"([^\"<>]*)\"|'([^'<>]*)')", re.I)
ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z]\w{1,30});", re.A)
SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻", "0123456789+-")
LINK = Rule(
    re.compile(
        r"!?\[([^\[\]\n]{0,300})\]"
        r"\([ \t]{0,3}(?:<[^<>\n]{0,500}>|(?:[^()\s<]|\([^()\s]{0,100}\)){0,500})"
        r"(?:\s{1,3}(?:\"[^\"\n]{0,200}\"|'[^'\n]{0,200}'))?[ \t]{0,3}\)"
    ),
    r"\1",
    "[ ] ( )",
)
FENCE_OPTIONS = r"(?:[ \t]{1,3}(?:[\w-]{1,30}=[^\s`]{1,100}|\{[^{}\n]{0,100}\})){0,5}"
NUMBERED = re.compile(r"^[ \t]{0,8}(\d{1,3})[.)][ \t]+(?=\S)", re.M)
ITEM = re.compile(r"^[ \t]{0,8}[-*+•‣◦▪][ \t]+(?:\[[ xX]\][ \t]+)?(?=\S)", re.M)
ROW = re.compile(r"^[ \t]{0,3}\|([^\n]*)\|[ \t]*$", re.M)

BLOCK_RULES: tuple[Rule, ...] = (
    Rule(
        re.compile(
            r"^[ \t]{0,3}\[[^\[\]^\n]{1,100}\]:[ \t]{0,3}<?(?:https?://|mailto:|www\.|[/#.])\S*[^\n]*$", re.M
        ),
        "",
        ": [ ]",
    ),
    Rule(re.compile(r"^[ \t]{0,3}\[\^[\w-]{1,30}\]:[ \t]*", re.M), "", ": [ ]"),
    Rule(re.compile(r"\[\^[\w-]{1,30}\]"), "", "[ ] ^"),
    Rule(re.compile(r"^[ \t]{0,3}(?:=[ \t]*){2,}$", re.M), "", "="),
    Rule(re.compile(r"^[ \t]{0,3}(?:(?:-[ \t]*){2,}|(?:\*[ \t]*){3,}|(?:_[ \t]*){3,})$", re.M), "", "*-_"),
    Rule(re.compile(rf"^[ \t]{{0,3}}(?:```|~~~)[\w+#-]{{0,30}}{FENCE_OPTIONS}", re.M), "\n", "`~"),
    Rule(re.compile(r"^[ \t]{0,3}(?:>[ \t]){1,9}(?=\S)", re.M), "", ">"),
    Rule(re.compile(r"^[ \t]{0,3}#{1,6}[ \t]+([^\n]*)", re.M), lambda match: f"{heading(match[1])}\n", "#"),
    Rule(re.compile(r"^(?=[^\n]*\|)[ \t]{0,3}[|:-][ \t|:-]*$", re.M), "", "|"),
    Rule(ROW, lambda match: f"{match[1].replace('|', ', ').strip(' ,')}\n", "|"),
    LINK,
    LINK,  # once more for an image in a link
    Rule(re.compile(r"\[([^\[\]\n]{0,300})\]\[[^\[\]\n]{0,100}\]"), r"\1", "[ ]"),
    Rule(re.compile(r"<((?:https?://|mailto:)[^<>\s]{1,500})>", re.I), r"\1", ": < > Tt"),
    Rule(re.compile(r"\*\*([A-Za-z][^*\n]{0,300})(?<=\S)\*\*"), r"\1", "*"),
    Rule(re.compile(r"==([^=\s](?:[^=\n]{0,300}[^=\s])?)=="), r"\1", "="),
    Rule(re.compile(r"(`{1,2})([^`\n]{1,300})\1"), r"\2", "`"),
    Rule(TAG, lambda match: said_for_tag(match[0]), "< >"),
)
"""Markup that reaches over lines and sentences."""
RULES: tuple[Rule, ...] = (
    Rule(expression(r"^[ \t]{0,8}[-*+][ \t]\[[ xX]\][ \t]", re.M), "", "[ ] *+-"),
    Rule(expression(r"^[ \t]{0,3}(?:```|~~~)[\w+#-]{0,30}", re.M), " ", "`~"),
    Rule(expression(r"^[ \t]{0,3}#{1,6}[ \t]+", re.M), "", "#"),
    Rule(expression(r"^[ \t]{0,3}>[ \t]+(?=\S)", re.M), "", ">"),
    Rule(ENTITY, lambda match: html.unescape(match[0]), "& ;"),
    Rule(expression(r"\((\d{3})\)[\s-]?(?=\d{3}[-.\s]\d{4})"), r"\1-", "( ) 0"),
    Rule(expression(r"[™®℠]"), "", "®℠™"),
    Rule(expression(r"№\s?"), "number ", "№"),
    Rule(
        expression(r"[⁰¹²³⁴-⁹⁺⁻]{1,12}"), lambda match: f"^{match[0].translate(SUPERSCRIPTS)}", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻"
    ),
    Rule(expression(r"(?<=\d)(?=[¼½¾⅐-⅞])"), " and ", "0 ¼½¾⅐⅑⅒⅓⅔⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"),
    Rule(expression(r"″|′′|''(?=\s|$)"), '"', "'′″"),
    Rule(re.compile("′"), "'", "′"),
    Rule(expression(r"(?<=[\d\s])−(?=\s)"), " minus ", "−"),
    Rule(expression(r"(?<=\s)−|^−"), " minus ", "−"),
)
BLOCKS_TO_TEXT, SIGNS_TO_TEXT = RuleSet(BLOCK_RULES), RuleSet(RULES)


def without_blocks(text: str) -> str:
    """The text without tags, links and the markup of blocks. An empty line is where a block ends.

    Entities stay, so that what they stand for is not read as markup if this is called again.
    """
    if not MARKED.search(text):
        return text
    text = without_unspoken(without_comments(text))
    for pattern, start in ((ITEM, "\n"), (NUMBERED, r"\n\1, ")):
        if len(pattern.findall(text)) > 1:
            text = pattern.sub(start, text)
    return BLOCKS_TO_TEXT.apply(text)


def without_comments(text: str) -> str:
    """The text without HTML comments."""
    parts = text.split("<!--")
    out = [parts[0]]
    for part in parts[1:]:
        _, end, after = part.partition("-->")
        out.append(after if end else f"<!--{part}")
    return "".join(out)


def without_unspoken(text: str) -> str:
    """The text without scripts and style sheets."""
    out, done, folded = [], 0, ""
    for match in UNSPOKEN.finditer(text):
        if match.start() < done:
            continue
        folded = folded or text.lower()
        end = folded.find(f"</{match[1].lower()}>", match.end())
        if end < 0:
            break
        out.append(text[done : match.start()])
        done = end + len(match[1]) + 3
    return "".join([*out, text[done:]])


def heading(text: str) -> str:
    """A heading without the signs that may close it."""
    plain = text.rstrip()
    closed = plain.rstrip("#")
    return closed if not closed or closed[-1].isspace() else plain


def said_for_tag(tag: str) -> str:
    """What stands in a tag's place: its alternative text, or a gap as wide as the tag's."""
    name = tag_name(tag)
    if name == "img":
        found = ALT.search(tag)
        return (found[1] or found[2] or "") if found else " "
    if name in BLOCKS:
        return "\n\n"
    if name in ("br", "td", "th"):
        return "\n" if name == "br" else ", " if tag.startswith("</") else ""
    return "" if name in INLINE else " "


def plain(text: str) -> str:
    """The text without markup and invisible characters; control characters become spaces."""
    return PLAIN(text)


def plain_together(texts: Sequence[str]) -> str:
    """`plain` of several texts, with `END` between them."""
    text = END.join([without_blocks(text).replace(END, " ") for text in texts])
    if not text.isascii() or SIGN.search(text):
        text = SIGNS_TO_TEXT.apply(text)
    if text.isprintable():
        return text
    seen = {ord(character): visible(character) for character in set(text) if not character.isprintable()}
    return text.translate(seen | {ord(END): END})


PLAIN = Kept(lambda text: plain_together([text]), lambda texts: plain_together(texts).split(END))
"""`plain`, which keeps its last results."""


def tag_name(tag: str) -> str:
    """`</b>` -> "b"."""
    return re.sub(r"[</>]", " ", tag).split()[0].lower() if tag[1] != "!" else ""


def visible(character: str) -> str:
    """What stands for a character that is not printable: a space for a control character, or nothing."""
    category = unicodedata.category(character)
    return "" if category == "Cf" else " " if category == "Cc" else character
