"""Reading a tokenizer file that may come from a stranger.

A bundle's `text/tokenizer.json` is checked before the library `tokenizers` parses it: a pattern or a
normalizer could otherwise take time or memory out of proportion to the text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from valle2.engine.bundle.untrusted import parse_json, shown
from valle2.runtime.text.table import read_text

TOKENIZER = "text/tokenizer.json"
MAX_VALUES, MAX_OBJECTS = 500_000, 50_000
"""Values in a tokenizer's JSON, and objects: one for each added token. An object may take a hundred times
its text in memory."""
MAX_PATTERN, MAX_GROWTH, MAX_PIECES = 2000, 1024, 256
"""Characters of a pattern; how many times as long the normalizer, and the template, may make a text."""
MAX_STEPS, MAX_ADDED, MAX_WORD, MAX_AFFIX = 64, 10_000, 1000, 256
"""Steps in a row; added tokens; letters of a word that is searched for its parts; characters of a token, or
of what is put to parts of words."""
STEPS = ("normalizers", "pretokenizers", "processors")
AFFIXES = ("continuing_subword_prefix", "end_of_word_suffix", "unk_token", "replacement")
COSTLY = re.compile(r"\)[*+{]|\{\d{4}|\{\d*,\d{4}|\(\?#")
"""A repeated group, whose search may take exponential time; very many repeats; a comment."""
ESCAPE, CLASS = re.compile(r"\\."), re.compile(r"\[\^?\]?[^\]\n]*\]")
"""An escaped character of a pattern, and a set of characters."""
PANIC = "PanicException"
EACH_CHARACTER = {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": False}
"""The step that cuts a text into its characters."""


@contextmanager
def explained(error_of: Callable[[str], Exception]) -> Iterator[None]:
    """Turn what tokenizers raises over a damaged file into one line.

    Args:
        error_of: makes the error of a reason.
    """
    try:
        yield
    except BaseException as error:
        # tokenizers raises bare Exception, and where its Rust code panics a BaseException of no public class.
        if not isinstance(error, Exception) and type(error).__name__ != PANIC:
            raise
        raise error_of(" ".join(str(error).split())[:200] or type(error).__name__) from None


def read_tokenizer(folder: Path, files: Collection[str]) -> tuple[Tokenizer, int, dict[str, int]]:
    """Read a bundle's tokenizer.

    Returns:
        The tokenizer, which neither pads nor cuts; how many times as long it may make a text; and its ids by
        character if it has one for each character, see `character_ids`.

    Raises:
        ValueError, or what tokenizers raises: the file is damaged, or asks for more than a tokenizer needs.
    """
    data = read_text(folder, TOKENIZER, files)
    try:
        if data.count(b"{") > MAX_OBJECTS:
            raise ValueError(f"more than {MAX_OBJECTS} objects")
        values = parse_json(data, MAX_VALUES)
        growth = check_tokenizer(values)
    except ValueError as error:
        raise ValueError(f"{TOKENIZER}: {error}") from None
    tokenizer = Tokenizer.from_str(data.decode("utf-8"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer, growth, character_ids(values)


def character_ids(values: dict[str, Any]) -> dict[str, int]:
    """The ids by character of a tokenizer that gives each character one id, whatever its neighbours.

    The library takes ten times as long for a short text as a look-up of each character.

    Returns:
        Ids of the known characters; nothing if the tokenizer is of another kind.
    """
    model, steps = values.get("model"), values.get("normalizer") or {"type": "Sequence", "normalizers": []}
    if not isinstance(model, dict) or model.get("type") != "WordLevel" or steps.get("type") != "Sequence":
        return {}
    if values.get("pre_tokenizer") != EACH_CHARACTER or values.get("added_tokens"):
        return {}
    if any(values.get(key) for key in ("post_processor", "truncation", "padding")):
        return {}
    vocabulary = model["vocab"]
    found = {character: character for character in vocabulary if len(character) == 1 and character != "\n"}
    for step in steps["normalizers"]:
        before, after = step.get("pattern", {}).get("String", ""), step.get("content", "")
        if step.get("type") != "Replace" or len(before) != 1 or len(after) != 1:
            return {}
        found = {character: after if now == before else now for character, now in found.items()}
    return {character: vocabulary[now] for character, now in found.items() if now in vocabulary}


def check_tokenizer(values: Any) -> int:
    """Refuse a tokenizer that could take a text far more time or memory than its length.

    Returns:
        How many times as long it may make a text.
    """
    for pattern in strings(values, "Regex"):
        if len(pattern) > MAX_PATTERN or COSTLY.search(CLASS.sub(".", ESCAPE.sub(".", pattern))):
            raise ValueError(f"a pattern repeats a group or a long run: {shown(pattern)}")
    normalizer = values.get("normalizer") if isinstance(values, dict) else None
    added = (*strings(normalizer, "content"), *strings(normalizer, "prepend"))
    growth = prod(1 + len(text) for text in added)
    if growth > MAX_GROWTH:
        raise ValueError(f"its normalizer may make a text more than {MAX_GROWTH} times as long")
    if "Precompiled" in strings(normalizer, "type"):
        raise ValueError(
            "it has a Precompiled normalizer, whose table cannot be checked; use NFKC and Replace"
        )
    if not isinstance(values, dict):
        return growth  # the library refuses it
    check_parts(values)
    return growth * check_template(values.get("post_processor"))


def check_parts(values: dict[str, Any]) -> None:
    """Refuse very many steps or added tokens, and a model that searches long words for long parts."""
    steps = {key: value for key, value in values.items() if key not in ("model", "added_tokens")}
    if sum(len(found) for key in STEPS for found in lists(steps, key)) > MAX_STEPS:
        raise ValueError(f"it has more than {MAX_STEPS} steps in a row")
    added = values.get("added_tokens")
    if isinstance(added, list) and len(added) > MAX_ADDED:
        raise ValueError(f"it has {len(added)} added tokens; expected at most {MAX_ADDED}")
    model = values.get("model")
    affixes = (text for part in (model, steps) for key in AFFIXES for text in strings(part, key))
    if any(len(text) > MAX_AFFIX for text in (*affixes, *strings(added, "content"))):
        raise ValueError(f"a token or a part of one has more than {MAX_AFFIX} characters")
    if not isinstance(model, dict):
        return
    letters = model.get("max_input_chars_per_word")
    if isinstance(letters, int | float) and letters > MAX_WORD:
        raise ValueError(f"its words have up to {shown(letters)} letters; expected at most {MAX_WORD}")
    pieces = model.get("vocab")
    if isinstance(pieces, list) and any(len(text) > MAX_AFFIX for pair in pieces for text in texts(pair)):
        raise ValueError(f"a piece of its vocabulary has more than {MAX_AFFIX} characters")


def check_template(post_processor: Any) -> int:
    """How many times as long what is put around a text may make it; a text has few such parts."""
    growth = prod(
        max(1, len(found)) for key in ("single", "pair", "ids") for found in lists(post_processor, key)
    )
    if growth > MAX_PIECES:
        raise ValueError("its post-processor has long templates; expected a few tokens around a text")
    return growth


def texts(value: Any) -> list[str]:
    """The texts of a list."""
    return [text for text in value if isinstance(text, str)] if isinstance(value, list) else []


def strings(value: Any, key: str) -> Iterator[str]:
    """Every text under a key, at any depth."""
    return (found for found in under(value, key) if isinstance(found, str))


def lists(value: Any, key: str) -> Iterator[list[Any]]:
    """Every list under a key, at any depth."""
    return (found for found in under(value, key) if isinstance(found, list))


def under(value: Any, key: str) -> Iterator[Any]:
    """Every value under a key, at any depth."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += value.values()
            if key in value:
                yield value[key]
        elif isinstance(value, list):
            waiting += value
