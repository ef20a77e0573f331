"""`valle2 text`: what a model would be given for a text, sentence by sentence. Nothing is synthesised."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from valle2.engine.errors import Valle2Error
from valle2.runtime.cli.options import MODEL, add_text_arguments, text_of

HELP = "show the sentences, phonemes and ids of a text"
Result = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_text_arguments(parser)
    parser.add_argument("--model", default="demo", help=MODEL)


def run(args: argparse.Namespace, progress: Callable[[str], None]) -> Result:
    """Prepare a text.

    Returns:
        `{"sentences": [{"text", "spoken", "phonemes", "ids"}], "warnings": [...]}`. `phonemes` are what
        `--phones` takes.
    """
    from valle2.engine import read_manifest
    from valle2.runtime.text.annotations.lexicon import read_lexicon
    from valle2.runtime.text.front_end import front_end_of
    from valle2.runtime.tts import find_model

    text = text_of(args)
    folder = find_model(args.model)
    manifest = read_manifest(folder)
    front = front_end_of(folder, manifest.text, manifest.rules, manifest.files)
    if front is None:
        raise Valle2Error(f"{folder} has no text front end, and its kind of text needs one: export it again")
    lexicon = read_lexicon(args.lexicon) if args.lexicon else {}
    found = front.spoken(text, [front.finder(lexicon)] if lexicon else [])
    sentences = [{**asdict(sentence), "ids": list(sentence.ids)} for sentence in found.sentences]
    return {"sentences": sentences, "warnings": list(found.warnings)}


def show(result: Result) -> None:
    """Print a result for people: a paragraph for each sentence."""
    for number, sentence in enumerate(result["sentences"], 1):
        print(f"{number}. {sentence['text']}")
        if sentence["spoken"] and sentence["spoken"] != sentence["text"]:
            print(f"   spoken:   {sentence['spoken']}")
        print(f"   phonemes: {sentence['phonemes']}")
        print(f"   ids:      {' '.join(map(str, sentence['ids']))}")
    for warning in result["warnings"]:
        print(f"warning: {warning}")
