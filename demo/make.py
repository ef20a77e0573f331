"""Train the demo from nothing with one command: `python -m demo.make --styles VOICES --work W`.

Each step resumes from the files in the work folder and has a fixed seed. After an interruption, run the
same command again. `--list` prints the commands; `--only NAME ...` runs some of the steps. demo/README.md
lists the same commands.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
CLI = [sys.executable, "-m", "valle2.runtime.cli"]
Step = tuple[str, list[str]]
"""A step's name and its command."""


def script(name: str, *args: object) -> list[str]:
    """The command that runs a module of `demo`."""
    return [sys.executable, "-m", f"demo.{name}", *map(str, args)]


def exported(work: Path, name: str, *how: object) -> Iterator[Step]:
    """The steps that make a checkpoint W/NAME of the trained parts, and a bundle W/NAME-bundle of it."""
    checkpoint, bundle = work / name, work / f"{name}-bundle"
    yield name, script("model.assemble", "--work", work, "--out", checkpoint, *how)
    sentences = HERE / "sentences_test.txt"
    yield f"{name}-text", script("model.lexicon", "--out", checkpoint, "--compare", sentences)
    yield f"{name}-words", script("model.alignment", "--work", work, "--out", checkpoint / "text")
    yield f"{name}-bundle", [*CLI, "export", str(checkpoint), "-o", str(bundle)]


def steps(work: Path, styles: Path, shards: int) -> Iterator[Step]:
    """All steps in order: speech, codec, codes, AR, NAR, vocoder, prompts, the NAR's codes, model."""
    at = ("--work", work)
    for source in ("hibari", "kokoro", "others", "mixed", "unseen"):
        given = () if source == "hibari" else ("--styles", styles)
        yield f"speech-{source}", script("speech.speak", source, *at, *given, "--shards", shards)
    yield "codec-first", script("training.train_codec", *at, "--name", "codec-first", "--steps", 7200)
    detail = ("--name", "codec-detail", "--detail-of", work / "codec-first.pt")
    yield "codec-detail", script("training.train_codec", *at, *detail, "--steps", 4000)
    yield "perturbed", script("speech.perturb", *at)
    yield "speakers", script("speech.speakers", *at)
    yield "codec", script("training.train_codec", *at, "--from", work / "codec-detail.pt", "--steps", 6000)
    yield "codes", script("training.encode", *at)
    yield "ar", script("training.train", "ar", *at, "--steps", 10000, "--decay", 4000)
    yield "nar", script("training.train", "nar", *at, "--steps", 9500, "--decay", 1500)
    yield "vocoder", script("training.train_vocoder", *at, "--steps", 21000)
    yield from exported(work, "try")
    yield "prompts", script("model.choose", work / "try-bundle", "--out", work / "prompts.json")
    yield "refined", script("training.refine", *at, "--bundle", work / "try-bundle")
    yield "vocoder-refined", script("training.train_vocoder", *at, "--steps", 23000, "--decay", 1400)
    yield from exported(work, "model", "--prompts", work / "prompts.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("demo/work"))
    parser.add_argument("--styles", type=Path, default=Path("voices"), help="folder voices of kokoro-js")
    parser.add_argument("--shards", type=int, default=60, help="shards of 100 utterances, per source")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="run only these steps")
    parser.add_argument("--list", action="store_true", help="print the steps and stop")
    args = parser.parse_args()
    for name, command in steps(args.work, args.styles, args.shards):
        if args.only and name not in args.only:
            continue
        print(f"== {name}: {shlex.join(command)}", flush=True)
        if not args.list:
            subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
