"""`valle2 voices`: list, add or remove the voices of a bundle."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from valle2.engine.errors import Valle2Error
from valle2.runtime.cli.options import MODEL

HELP = "list, add or remove voices"
FRAME_RATE = 75.0
"""Frames a second of a bundle without a codec: those of EnCodec."""
Result = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("action", choices=["list", "add", "remove"])
    parser.add_argument("name", nargs="?", help="the voice (add, remove)")
    parser.add_argument("--model", default="demo", help=MODEL)
    parser.add_argument("--prompt", type=Path, help="recording of the voice (add)")
    parser.add_argument("--prompt-text", help="the words spoken in it (add)")
    parser.add_argument("--source", default="", help="where the recording comes from (add)")
    parser.add_argument("--licence", default="", help="its licence (add)")
    parser.add_argument("--consent", default="", help="how the speaker agreed (add)")


def run(args: argparse.Namespace, progress: Callable[[str], None]) -> Result:
    """List, add or remove; returns what `--json` prints."""
    from valle2.engine import read_manifest
    from valle2.runtime.tts import find_model
    from valle2.runtime.voices import remove_voice

    if args.action == "list":
        return {"voices": voice_list(find_model(args.model))}
    if not args.name:
        raise Valle2Error(f"voices {args.action} needs a name")
    folder = find_model(args.model)
    if args.action == "add":
        return add_voice(args, folder)
    read_manifest(folder)
    remove_voice(folder, args.name)
    return {"removed": args.name}


def add_voice(args: argparse.Namespace, folder: Path) -> Result:
    """Make a voice of a recording and write it into the bundle."""
    from dataclasses import replace

    from valle2.runtime.tts import Valle2
    from valle2.runtime.voices import checked_name, write_voice

    checked_name(args.name)
    if args.prompt is None or not args.prompt_text:
        raise Valle2Error("voices add needs --prompt FILE and --prompt-text, the words spoken in it")
    prompt = Valle2.load(args.model).prompt(args.prompt, args.prompt_text, args.name)
    details = {key: getattr(args, key) or getattr(prompt, key) for key in ("source", "licence", "consent")}
    return {"added": args.name, "file": str(write_voice(folder, replace(prompt, **details)))}


def voice_list(folder: Path) -> list[Result]:
    """Every voice, as `voices.described` writes it."""
    from valle2.engine import read_manifest
    from valle2.runtime.voices import described, read_voice, voice_names

    manifest = read_manifest(folder)
    rate = manifest.codec["sample_rate"] / manifest.codec["hop"] if manifest.codec else FRAME_RATE
    return [described(read_voice(folder, manifest, name), rate) for name in voice_names(manifest)]
