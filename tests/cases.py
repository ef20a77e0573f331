"""Score how written texts are read: `python -m tests.cases [FILE]`.

FILE has a line for each case: id, text, and the right readings. Tabs separate them, and `|` separates
readings that are all right. In the text `\\n` and `\\t` stand for a newline and a tab. The kind of a case is
its id up to the first hyphen.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from pathlib import Path

from valle2.runtime.text.normalise import normalise
from valle2.runtime.text.sentences import sentences

CASES = Path(__file__).resolve().parents[2] / "shared" / "cases" / "texts.tsv"
"""Where the cases lie beside a checkout that has them."""


def words(spoken: str) -> str:
    """Lower-case words without punctuation; apostrophes inside a word stay."""
    found = (word.strip("'") for word in re.sub(r"[^a-z' ]", " ", spoken.lower()).split())
    return " ".join(filter(None, found))


def readings(text: str) -> set[str]:
    """The words of a text read as a whole, and of its sentences read one by one. Both must be right."""
    return {words(normalise(text)), words(" ".join(map(normalise, sentences(text))))}


def main() -> int:
    """Print the misread cases, and right / all of each kind. The exit status is 1 if any is misread."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else CASES
    if not path.exists():
        print(f"{path} is not there: no cases to score")
        return 0
    right, every = Counter[str](), Counter[str]()
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#") or not line.strip():
            continue
        name, text, expected = line.split("\t")
        kind = name.partition("-")[0]
        found = readings(text.replace("\\n", "\n").replace("\\t", "\t"))
        wrong = found - set(expected.split("|"))
        every[kind] += 1
        right[kind] += not wrong
        for reading in wrong:
            print(f"{name}: {text!r}\n  read     {reading}\n  expected {expected}")
    for kind, count in every.items():
        print(f"{kind:12} {right[kind]:3} / {count}")
    print(f"{'all':12} {right.total():3} / {every.total()}")
    return int(right != every)


if __name__ == "__main__":
    sys.exit(main())
