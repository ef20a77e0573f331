"""A table is a mapping like the dict of its lines."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from valle2.runtime.text.table import SortedTable, parse_table


@pytest.mark.parametrize("count", [0, 1, 2, 3, 50])
def test_they_are_found_as_in_a_dict(count: int, tmp_path: Path) -> None:
    draw = random.Random(count)
    words = {"".join(draw.choices("ab'éʃ", k=draw.randint(1, 5))): f"v{i}\tTAG=x" for i in range(count)}
    lines = [f"{word}\t{value}" for word, value in words.items()]
    (tmp_path / "lexicon.tsv").write_text("\n".join([*lines, "no tab"]), encoding="utf-8")
    table = parse_table((tmp_path / "lexicon.tsv").read_bytes())
    assert dict(table) == words and len(table) == len(words)
    for word in words:
        for other in (word + "a", word[:-1], "'" + word, word + "\x7f"):
            assert table.get(other) == words.get(other)


def test_lines_in_any_order_and_a_key_that_is_another_one_s_beginning() -> None:
    table = SortedTable([b"ab\t2", b"a\t1", b"a'b\t3", b"", b"b\t"])
    assert [table[key] for key in ("a", "ab", "a'b", "b")] == ["1", "2", "3", ""]
    assert "" not in table and "c" not in table
    with pytest.raises(KeyError):
        table["abc"]
