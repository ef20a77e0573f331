"""Several pieces of text as one string, so that a rule is applied once and not once for each piece.

`END` stands between two pieces. To an expression of `expression` each piece is a text of its own: no match
reaches over `END`, and `^` and `$` match beside it.
"""

from __future__ import annotations

import re

END = "\x01"
"""A control character: `markup.plain` leaves none in a text. It is neither a space nor part of a word."""
OUTSIDE = {".": rf"[^\n{END}]", "$": f"(?:$|(?={END}))", "^": f"(?:^|(?<={END}))"}
"""What stands for a character of an expression outside its sets."""
ESCAPED = {"S": rf"[^\s{END}]", "W": rf"[^\w{END}]", "D": rf"[^\d{END}]"}
"""What stands for an escaped letter outside the sets."""
ITEM = re.compile(r"\\(?P<escaped>.)|(?P<set>\[\^?\]?(?:\\.|[^\]\\])*\])|(?P<other>.)", re.S)


def expression(pattern: str, flags: int = 0) -> re.Pattern[str]:
    """Compile an expression that reads each piece as a text of its own."""
    return re.compile(ITEM.sub(within, pattern), flags)


def within(item: re.Match[str]) -> str:
    """One item of an expression, so that it does not match `END`."""
    if item["escaped"]:
        return ESCAPED.get(item["escaped"], item[0])
    if item["set"]:
        return f"[^{END}{item[0][2:]}" if item[0].startswith("[^") else item[0]
    return OUTSIDE.get(item[0], item[0])


def before(match: re.Match[str], length: int) -> str:
    """At most so many characters of the piece before a match."""
    start = match.start()
    return match.string[max(0, start - length) : start].rpartition(END)[2]


def after(match: re.Match[str], length: int, group: str | int = 0) -> str:
    """At most so many characters of the piece after a match, or after one of its groups."""
    end = match.end(group)
    return match.string[end : end + length].partition(END)[0]
