"""How phones are written where each is one character, as in the IPA.

Two forms are read. In the family's own form, "həlˈO ðˈɛɹ", a space is the gap between words. In the spaced
form, "h ə l ˈO | ð ˈɛ ɹ", spaces part the phones and `|` is the gap. A text is in the spaced form if each
group between spaces is a single phone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from valle2.runtime.types import Phones

PAIRS = "oʊ|əʊ|eɪ|aɪ|aʊ|ɔɪ|tʃ|dʒ|əɹ|ɜɹ|<\\d{1,7}>"
ONE_PHONE = re.compile(rf"[ˈˌ]?(?:{PAIRS}|.)[ːʰˈˌ]?[,.?!;:…]?|\|")
CHARACTER = re.compile(r"<\d{1,7}>|.")
BAR = "|"


@dataclass(frozen=True, slots=True)
class Notation:
    """Reads and writes phones of one character.

    Args:
        gap: the symbol between words. aliases: in the spaced form, what a group's phone is called here.
    """

    gap: str
    aliases: Mapping[str, str] = field(default_factory=dict)

    def parse(self, text: str, table: Mapping[str, int]) -> list[str]:
        """The symbols of a text of phones."""
        groups = text.split()
        if len(groups) > 1 and all(map(ONE_PHONE.fullmatch, groups)):
            return [symbol for group in groups for symbol in self.group(group, table)]
        return CHARACTER.findall(self.gap.join(groups))

    def group(self, group: str, table: Mapping[str, int]) -> list[str]:
        """The symbols of one group of the spaced form."""
        if group == BAR and group not in table:
            return [self.gap]
        for written, symbol in self.aliases.items():
            if symbol in table and (len(written) > 1 or written not in table):
                group = group.replace(written, symbol)
        return CHARACTER.findall(group)

    def write(self, ids: Iterable[int], symbols: Mapping[int, str]) -> Phones:
        """Ids as phones in the family's own form."""
        return Phones("".join(symbols.get(int(index), f"<{index}>") for index in ids))
