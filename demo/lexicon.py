"""Make the demo's text front end: lexicon.tsv and tokenizer.json from hibari's lexicons (Apache-2.0).

`python demo/lexicon.py --out FOLDER` writes both; `--compare` prints how often our phonemes are hibari's.
"""

from __future__ import annotations

import argparse
import gzip
import json
from importlib import import_module
from pathlib import Path

from data import symbols
from speak import hibari_asset
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from valle2.runtime.text import LEXICON, TOKENIZER, load_front_end

WEAK = {
    "i": "ˌI", "we": "wˌi", "my": "mˌI", "she": "ʃˌi", "he": "hˌi", "they": "ðˌA", "could": "kˌʊd",
}  # fmt: skip
FLAP = ("ɾ", "T")


def build_lexicon() -> dict[str, str]:
    """Lower-case words as hibari says them alone; the curated entries win."""
    out: dict[str, str] = {}
    for name in ("silver", "gold"):
        path = hibari_asset(f"lexicon_us_{name}.json.gz")
        with gzip.open(path, "rt", encoding="utf-8") as file:
            entries = json.load(file)
        for word, sounds in sorted(entries.items(), key=lambda item: item[0].islower()):
            found = sounds if isinstance(sounds, str) else sounds["DEFAULT"]
            if found and word.replace("'", "").isalpha() and word.isascii() and len(word) < 16:
                out[word.lower()] = found.replace(*FLAP)
    return out | WEAK


def write_tokenizer(path: Path) -> None:
    """One token per symbol; what is no symbol is dropped."""
    vocab = {symbol: index for index, symbol in enumerate(symbols())}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<none>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.save(str(path), pretty=False)


def compare(folder: Path, sentences: list[str]) -> None:
    """Print exact matches and the share of differing symbols (edit distance)."""
    import jiwer

    g2p = import_module("hibari.g2p").G2P(british=False)
    front = load_front_end(folder, {"kind": "phonemes"})
    ours = [front.prepare(text) for text in sentences]
    theirs = [g2p(text) for text in sentences]
    same = sum(a == b for a, b in zip(ours, theirs, strict=True))
    print(f"{same} of {len(sentences)} sentences equal, symbols differ {jiwer.cer(theirs, ours):.2%}")
    for a, b in [pair for pair in zip(ours, theirs, strict=True) if pair[0] != pair[1]][:8]:
        print(f"  ours   {a}\n  hibari {b}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--compare", type=Path, help="file with a sentence per line")
    args = parser.parse_args()
    (args.out / "text").mkdir(parents=True, exist_ok=True)
    lines = [f"{word}\t{sounds}" for word, sounds in sorted(build_lexicon().items())]
    (args.out / LEXICON).write_text("\n".join(lines) + "\n", encoding="utf-8")
    write_tokenizer(args.out / TOKENIZER)
    if args.compare:
        compare(args.out, args.compare.read_text(encoding="utf-8").splitlines())


if __name__ == "__main__":
    main()
