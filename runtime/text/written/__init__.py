"""Rules from written to spoken English, a module for each kind of text. `normalise` applies them in order.

A rule is a regular expression and its replacement. Each takes time that grows with the length of the text and
no faster. It knows no model, no phonemes and no tokens.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, lru_cache, reduce
from operator import or_
from typing import NamedTuple

from valle2.runtime.text.written.pieces import END

Replacement = str | Callable[[re.Match[str]], str]
SETS = {"0": string.digits, "A-Z": string.ascii_uppercase}
"""How `Rule.needs` writes the sets of all digits and of all capitals."""
FREQUENT, USABLE = 10, 1024
"""Sets by which usable rules are looked up, and combinations of them for which the rules are kept."""
ALIKE = 100
"""Changed pieces above which each counts as having the characters of all of them."""
HINTED = 64
"""Characters above which a rule is searched by its hint first."""
DIGIT, GROUP = re.compile(r"\d"), re.compile(r"\\(\d)")


class Rule(NamedTuple):
    """A regular expression and its replacement.

    Args:
        needs: characters without which the expression cannot match: sets of characters with spaces between
            them. A text must have a character of each set. In a set, 0 stands for every digit; A-Z by itself
            stands for every capital.
        begins: characters with one of which each match begins, as in a set of an expression.
    """

    pattern: re.Pattern[str]
    replacement: Replacement
    needs: str = ""
    begins: str = ""


class Hint:
    """Says whether a rule matches in a long text, in a third of the time of a search in vain.

    `re` runs over characters that begin no match if an expression begins with a set of characters, but not
    if it begins by looking behind. So the set is matched first, and then the rule from one character before.
    """

    def __init__(self, rule: Rule) -> None:
        self.rule = rule

    def matches(self, text: str) -> bool:
        """May the rule match in a text?"""
        return not self.rule.begins or self.pattern.search(text) is not None

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """The rule after its first character. Made for the first long text."""
        pattern, flags = self.rule.pattern.pattern, self.rule.pattern.flags
        whole = f"(?i:{pattern})" if flags & re.I else pattern
        return re.compile(rf"[{self.rule.begins}](?<=(?={whole})[\s\S])")


class RuleSet:
    """Applies rules in order. It skips a rule whose `needs` the text does not meet.

    A short text meets the needs of few rules, and searching it with all of them would take most of the time.
    """

    def __init__(self, rules: Iterable[Rule]) -> None:
        listed = list(rules)
        sets = sorted({needed for rule in listed for needed in rule.needs.split()})
        bit = {needed: 1 << index for index, needed in enumerate(sets)}
        self.rules = [
            (
                index,
                rule.pattern,
                filled(rule.replacement),
                sum(map(bit.__getitem__, rule.needs.split())),
                Hint(rule),
            )
            for index, rule in enumerate(listed)
        ]
        """Index, pattern, replacement, the bits of the needed sets, and the hint."""
        often = Counter(needed for rule in listed for needed in rule.needs.split()).most_common(FREQUENT)
        self.frequent = sum(bit[needed] for needed, _ in often)
        """The bits of the sets that most rules need."""
        self.bits: dict[str, int] = {}
        """By character: the bits of the sets that it is in."""
        for needed in sets:
            for character in needed_characters(needed):
                self.bits[character] = self.bits.get(character, 0) | bit[needed]
        self.characters = frozenset(self.bits)
        self.digit = self.bits.get("0", 0)
        self.usable = lru_cache(USABLE)(self.find_usable)

    def apply_each(self, pieces: Sequence[str]) -> list[str]:
        """`apply` of several pieces. A rule reads all that meet its needs as one text, see `pieces`."""
        if len(pieces) == 1:
            return [self.apply(pieces[0])]
        texts, found = list(pieces), list(map(self.sets_in, pieces))
        for _, pattern, replacement, needed, hint in self.rules:
            chosen = [index for index, sets in enumerate(found) if needed & sets == needed]
            joined = END.join([texts[index] for index in chosen])
            if not joined or (len(joined) > HINTED and not hint.matches(joined)):
                continue
            changed = pattern.sub(replacement, joined)
            if changed is joined:
                continue
            new = [pair for pair in zip(chosen, changed.split(END), strict=True) if pair[1] != texts[pair[0]]]
            sets = self.sets_in("".join([text for _, text in new])) if len(new) > ALIKE else 0
            for index, text in new:
                texts[index], found[index] = text, sets or self.sets_in(text)
        return texts

    def apply(self, text: str) -> str:
        """The text after each rule in turn."""
        found, start = self.sets_in(text), 0
        while True:
            looked_up = found & self.frequent
            for index, pattern, replacement, needed, hint in self.usable(looked_up):
                if index < start or needed & ~found or (len(text) > HINTED and not hint.matches(text)):
                    continue
                before, text = text, pattern.sub(replacement, text)
                if text is not before:
                    found = self.sets_in(text)
                    if found & self.frequent != looked_up:
                        start = index + 1
                        break
            else:
                return text

    def sets_in(self, text: str) -> int:
        """The bits of the sets of which the text has a character."""
        found = reduce(or_, map(self.bits.__getitem__, self.characters & set(text)), 0)
        if self.digit & ~found and not text.isascii() and DIGIT.search(text):  # of another script
            return found | self.digit
        return found

    def find_usable(self, found: int) -> list[tuple[int, re.Pattern[str], Replacement, int, Hint]]:
        """The rules whose frequent needs a text meets. `usable` caches them.

        Args:
            found: the bits of the frequent sets of which the text has a character.
        """
        return [rule for rule in self.rules if not rule[3] & self.frequent & ~found]


def filled(replacement: Replacement) -> Replacement:
    """A function for a template such as `\\1 to \\2`, which `re` fills slowly before Python 3.12."""
    if not isinstance(replacement, str) or "\\" not in replacement:
        return replacement
    first, *rest = GROUP.split(replacement)
    pairs = [(int(group), text) for group, text in zip(rest[::2], rest[1::2], strict=True)]
    return lambda match: first + "".join([(match[group] or "") + text for group, text in pairs])


def needed_characters(needed: str) -> str:
    """The characters of one set of `Rule.needs`."""
    return SETS.get(needed) or needed.replace("0", SETS["0"])


def either(words: Iterable[str]) -> str:
    """A regular expression for any of the words, longest first. Words share their common beginnings."""
    tree: dict[str, Tree] = {}
    for word in words:
        node = tree
        for character in word:
            node = node.setdefault(character, {})
        node[""] = {}
    return branches(tree)


Tree = dict[str, "Tree"]


def branches(tree: Tree) -> str:
    """The expression of a tree of characters, in which an empty key is the end of a word."""
    found = [re.escape(character) + branches(after) for character, after in tree.items() if character]
    if not found:
        return ""
    whole = "|".join(found)
    if "" in tree:
        return f"(?:{whole})?"
    return whole if len(found) == 1 else f"(?:{whole})"
