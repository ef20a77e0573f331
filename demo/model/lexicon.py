"""Make the demo's text front end from hibari-tts's American lexicons (Apache-2.0, from misaki).

`python -m demo.model.lexicon --out FOLDER` writes three files to FOLDER/text/: lexicon.tsv (the words that
the letter rules misread), letters.tsv (letter-to-sound rules learnt from all words) and tokenizer.json.
`--evaluate` measures the letter rules alone on held-out words. `--compare FILE` counts the sentences of FILE
(one a line) whose phonemes equal hibari's own.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Container, Iterator, Mapping
from importlib import import_module
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

from demo.model.letters import evaluate, learn
from demo.speech.shards import symbols
from demo.speech.speak import hibari_asset
from valle2.runtime.text.letter_rules import LetterRules
from valle2.runtime.text.phonemes import Pronouncer
from valle2.runtime.text.tokenizer import LETTERS, LEXICON, TextFrontEnd
from valle2.runtime.text.tokenizer_file import TOKENIZER

VARIANTS = str.maketrans("ɾʔ", "Tt")
DEFAULT = "DEFAULT"
PAUSE = {"None": "pause"}
EXTRA = {"used": "jˈuzd\tto=jˈust", "to": "tu", "a": "ˈA", "that's": "ðˈæts"}
UNSPOKEN_MARKS = {";": ",", ":": ",", "—": ",", "…": "."}
LONGEST_WORD = 16
LONGEST_STEM = 8
LONGEST_RARE = 10
GAIN = 2


def entries_of(*names: str) -> Iterator[tuple[str, str | dict[str, str | None]]]:
    """Lower-case words and their readings; words written without capitals come last and win."""
    for name in names:
        with gzip.open(hibari_asset(f"lexicon_us_{name}.json.gz"), "rt", encoding="utf-8") as file:
            entries = json.load(file)
        for word, readings in sorted(entries.items(), key=lambda item: (item[0].islower(), item[0])):
            plain = word.replace("'", "").replace("-", "")
            if plain.isalpha() and plain.isascii() and word[0].isalpha() and len(word) < LONGEST_WORD:
                yield word.lower(), readings


def build_lexicon() -> dict[str, str]:
    """Word -> entry: the default reading, then readings by place in the sentence."""
    out: dict[str, str] = {}
    for word, readings in entries_of("silver", "gold"):
        forms = {DEFAULT: readings} if isinstance(readings, str) else readings
        usual = forms.get(DEFAULT)
        if not usual:
            continue
        others = [
            f"{PAUSE.get(tag, tag)}={sounds}"
            for tag, sounds in sorted(forms.items())
            if sounds and sounds != usual
        ]
        out[word] = "\t".join([usual, *others]).translate(VARIANTS)
    return out | EXTRA


def learnable(lexicon: Mapping[str, str]) -> dict[str, str]:
    """Words to learn letter rules from: alphabetic ones, with their default reading."""
    return {w: e.partition("\t")[0] for w, e in lexicon.items() if w.isalpha() and len(w) > 2}


def needed(lexicon: Mapping[str, str], stems: Container[str], rules: LetterRules) -> dict[str, str]:
    """The entries that the letter rules would misread, and short stems, which words with endings need.

    Long words of the lexicon that is not curated are left to the rules.
    """
    kept: dict[str, str] = {}
    derived = Pronouncer(lexicon).inflected
    say = Pronouncer(kept, rules).word
    words = [word for word in lexicon if word in stems or len(word) <= LONGEST_RARE]
    for word in sorted(words, key=lambda w: (len(w), w)):
        stem = word in stems and len(word) <= LONGEST_STEM and derived(word) != lexicon[word]
        if stem or len(word) < 3 or not word.isalpha() or "\t" in lexicon[word] or say(word) != lexicon[word]:
            kept[word] = lexicon[word]
    while wrong := [w for w in words if w not in kept and say(w) != lexicon[w]]:
        kept.update((word, lexicon[word]) for word in wrong)
    return kept


def write_table(path: Path, table: Mapping[str, str]) -> None:
    text = "".join(f"{key}\t{value}\n" for key, value in sorted(table.items()))
    path.write_text(text, encoding="utf-8")
    print(f"{path}: {len(table)} lines, {len(text.encode()) / 1e6:.2f} MB")


def write_tokenizer(path: Path) -> None:
    """One token per symbol. Marks that the training sentences lack are replaced by similar ones."""
    vocab = {symbol: index for index, symbol in enumerate(symbols())}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<none>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Replace(*pair) for pair in UNSPOKEN_MARKS.items()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.save(str(path), pretty=False)


def compare(folder: Path, sentences: list[str]) -> None:
    """Print how many sentences are equal, and the share of differing symbols (edit distance)."""
    import jiwer

    g2p = import_module("hibari.g2p").G2P(british=False)
    front = TextFrontEnd.load(folder, {"kind": "phonemes"})
    ours = [front.prepare(text) for text in sentences]
    theirs = [g2p(text) for text in sentences]
    same = sum(a == b for a, b in zip(ours, theirs, strict=True))
    print(f"{same} of {len(sentences)} sentences equal, symbols differ {jiwer.cer(theirs, ours):.2%}")
    for a, b in [pair for pair in zip(ours, theirs, strict=True) if pair[0] != pair[1]][:8]:
        print(f"  ours   {a}\n  hibari {b}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the checkpoint's folder")
    parser.add_argument("--evaluate", action="store_true", help="read held-out words by the letter rules")
    parser.add_argument("--compare", type=Path, help="file with a sentence per line")
    parser.add_argument("--keep", action="store_true", help="compare what is in the folder already")
    args = parser.parse_args()
    if not args.keep:
        (args.out / "text").mkdir(parents=True, exist_ok=True)
        lexicon = build_lexicon()
        stems = {word for word, _ in entries_of("gold")}
        rules = learn(learnable(lexicon), GAIN)
        write_table(args.out / LETTERS, rules)
        write_table(args.out / LEXICON, needed(lexicon, stems, LetterRules(rules)))
        write_tokenizer(args.out / TOKENIZER)
    if args.evaluate:
        print(evaluate(learnable(build_lexicon()), GAIN))
    if args.compare:
        compare(args.out, args.compare.read_text(encoding="utf-8").splitlines())


if __name__ == "__main__":
    main()
