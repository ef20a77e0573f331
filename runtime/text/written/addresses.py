"""Web and mail addresses, file names, IP addresses and versions: what has dots inside."""

from __future__ import annotations

import re

from valle2.runtime.text.numerals import cardinal, digits
from valle2.runtime.text.written import Rule
from valle2.runtime.text.written.pieces import expression
from valle2.runtime.text.written.vocabulary import COUNTRY_WORDS, DOMAINS, EXTENSIONS, SAID

OPENING, CLOSING = "\"'<*~_", ".,!?;:'\">*~"
SCHEME = re.compile(r"(?:https?|ftp)://|mailto:", re.I)
MAIL = re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+", re.A)
HOST = re.compile(r"(?P<host>[\w-]+(?:\.[\w-]+)+)(?P<port>:\d{1,5})?(?P<path>[/?#]\S*)?", re.A)
LOCAL = re.compile(r"localhost(?P<port>:\d{1,5})?(?P<path>/\S*)?", re.A | re.I)
IP = re.compile(r"(\d{1,3}(?:\.\d{1,3}){3})(?:/(\d{1,2})|:(\d{1,5}))?", re.A)
THOUSANDS = re.compile(r"\d{1,3}(?:\.\d{3}){2}", re.A)
DATE = re.compile(r"\d{1,2}\.\d{1,2}\.\d{2}(?:\d{2})?", re.A)
PHONE = re.compile(r"\d{3}\.\d{3}\.\d{4}", re.A)
VERSION = re.compile(r"[vV]?(\d+(?:\.\d+){2,})(-?[A-Za-z]+)?\.?(\d*)", re.A)
SHORT_VERSION = re.compile(r"[vV](\d+(?:\.\d+)?)", re.A)
FILE = re.compile(r"(?P<stem>(?:[\w~-]*[/\\])*[\w-]*(?:\.[\w-]+)*)\.(?P<ending>[A-Za-z]\w{1,5})", re.A)
PATH = re.compile(r"(?:~|[A-Za-z]:|\.{1,2})?(?:[/\\][\w.-]+){2,}[/\\]?", re.A)
MARKS = {
    ".": " dot ", "/": " slash ", "\\": " backslash ", "-": " dash ", "_": " underscore ", "@": " at ",
    ":": " colon ", "?": " question mark ", "=": " equals ", "&": " and ", "#": " hash ", "~": " tilde ",
    "+": " plus ", "%": " percent ",
}  # fmt: skip
INSIDE = re.compile(r"[.@/\\:]")
"""Marks of which every address, file name and number with dots has one."""
LONGEST = 500
"""Characters of a token that is looked at."""


def read(match: re.Match[str]) -> str:
    """A token between spaces, in words if it is an address, a file or a version."""
    token = match[0]
    if len(token) > LONGEST or (not INSIDE.search(token) and token[0] not in "vV"):
        return token
    core = token.lstrip(OPENING)
    before = token[: len(token) - len(core)]
    core = core.rstrip(CLOSING)
    if not INSIDE.search(core) and core[:1] not in ("v", "V"):
        return token
    after = token[len(before) + len(core) :]
    spoken = address(core) or numbers(core) or file(core)
    return f"{before}{spoken}{after}" if spoken else token


def address(core: str) -> str:
    """The words of a web or mail address, or nothing if it is none."""
    rest = SCHEME.sub("", core, count=1) if ":" in core else core
    if "@" in rest and MAIL.fullmatch(rest):
        name, _, host = rest.partition("@")
        return f"{marked(name)} at {dotted(host)}"
    host_begins = rest[:4].lower() == "www."
    web = rest != core or host_begins
    rest = rest[4:] if host_begins else rest
    found = LOCAL.fullmatch(rest) or HOST.fullmatch(rest)
    if found is None:
        return marked(rest.rstrip("/")) if web and rest else ""
    host = found.groupdict().get("host") or "localhost"
    last = host.rpartition(".")[2]
    local = host == "localhost" and (found["port"] or found["path"])
    known = last.lower() in DOMAINS and (last.islower() or host.isupper())
    if last.lower() in COUNTRY_WORDS and not found["path"] and host.count(".") < 2:
        known = False
    if not (web or local or known) or (found["path"] and not web and last in EXTENSIONS - DOMAINS):
        return ""
    port = f" colon {digits(found['port'][1:])}" if found["port"] else ""
    path = (found["path"] or "").rstrip("/")
    spoken = ip(host) if IP.fullmatch(host) else dotted(host)
    return spoken + port + (marked(path) if path else "")


def numbers(core: str) -> str:
    """The words of an IP address or a version, or nothing if it is neither."""
    if core.count(".") < 2 and core[:1] not in ("v", "V"):
        return ""
    if THOUSANDS.fullmatch(core):
        return cardinal(int(core.replace(".", "")))
    found = IP.fullmatch(core)
    if found:
        net = f" slash {cardinal(int(found[2]))}" if found[2] else ""
        return ip(found[1]) + net + (f" colon {digits(found[3])}" if found[3] else "")
    found = None if DATE.fullmatch(core) or PHONE.fullmatch(core) else VERSION.fullmatch(core)
    if found:
        more = (found[2] or "").lstrip("-")
        parts = " point ".join(cardinal(int(part[:15])) for part in found[1].split("."))
        version = "version " if core[0] in "vV" else ""
        return f"{version}{parts} {more} {found[3]}".strip()
    found = SHORT_VERSION.fullmatch(core)
    return f"version {found[1]}" if found else ""


def file(core: str) -> str:
    """The words of a file's name or path, or nothing if it is none."""
    found = FILE.fullmatch(core)
    last = found["ending"] if found else ""
    if found is None or last.lower() not in EXTENSIONS or not (last.islower() or last.isupper()):
        return marked(core.rstrip("/\\")) if PATH.fullmatch(core) else ""
    cut = max(found["stem"].rfind(slash) for slash in "/\\") + 1
    folder, name = found["stem"][:cut], re.sub(r"[-_]", " ", found["stem"][cut:]).replace(".", " dot ")
    return f"{marked(folder)} {name} dot {ending(last)}".strip()


def ip(host: str) -> str:
    """192.168.0.1 in words."""
    return " dot ".join(cardinal(int(part)) for part in host.split("."))


def dotted(host: str) -> str:
    """A host's name in words; its last parts are read or spelt."""
    *names, last = host.split(".")
    if not names:
        return marked(last)
    said = [marked(name) for name in names]
    if names and names[-1] in SAID and len(names) > 1:
        said[-1] = ending(names[-1])
    return " dot ".join([*said, ending(last)])


def ending(last: str) -> str:
    """The last part of a name: a word, or letters."""
    return SAID.get(last.lower()) or " ".join(last.upper())


def marked(text: str) -> str:
    """Text of an address in words: its marks are named, an ending of a file is spelt."""
    head, dot, last = text.rpartition(".")
    tail = f" dot {ending(last)}" if dot and last in EXTENSIONS else ""
    return "".join(MARKS.get(c, c) for c in (head if tail else text)) + tail


RULES: tuple[Rule, ...] = (
    Rule(
        expression(rf"(?<!\S)(?:[vV]\S+|[^\s.@/\\:]*(?:[@/\\]\S*|[.:]\S*[^\s{re.escape(CLOSING)}]\S*))"), read
    ),
    Rule(expression(r"https?://(?:www\.)?|\bwww\.", re.I), " ", "./", "HWhw"),
)
