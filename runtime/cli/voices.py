"""`valle2 voices`: list, add or remove the voices of a bundle."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from valle2.engine.errors import Valle2Error
from valle2.runtime.cli.options import MODEL, add_prompt_arguments, prompt_words
from valle2.runtime.cli.streams import warn

if TYPE_CHECKING:
    from valle2.engine import Manifest
    from valle2.runtime import Prompt
    from valle2.runtime.text.base import FrontEnd

HELP = "list, add or remove voices"
FRAME_RATE = 75.0
"""Frames a second of a bundle without a codec: those of EnCodec."""
TORCH_SUFFIXES = (".pt", ".pth")
"""Names of files that torch wrote."""
Result = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("action", choices=["list", "add", "remove"])
    parser.add_argument("name", nargs="?", help="the voice (add, remove)")
    parser.add_argument(
        "preset",
        nargs="?",
        type=Path,
        help="preset of an imported family (add): .npz of VALL-E X, .pt of supervoice",
    )
    parser.add_argument("--model", default="demo", help=MODEL)
    add_prompt_arguments(parser)
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
    """Make a voice of a recording or a preset and write it into the bundle."""
    from valle2.engine import read_manifest
    from valle2.runtime.text.front_end import front_end_of
    from valle2.runtime.tts import Valle2
    from valle2.runtime.voices import checked_name, write_voice

    checked_name(args.name)
    if (args.prompt is None) == (args.preset is None):
        raise Valle2Error(
            "voices add needs --prompt FILE and --prompt-text, the words spoken in it; or a preset: "
            "valle2 voices add NAME PRESET.npz"
        )
    manifest = read_manifest(folder)
    front = front_end_of(folder, manifest.text, manifest.rules, manifest.files)
    if args.preset is not None:
        prompt = preset_voice(args.preset, args.name, manifest, front)
    else:
        prompt = Valle2.load(args.model).prompt(args.prompt, prompt_words(args), args.name)
    if front is not None:
        front.encode(front.finish(prompt.transcript))  # refuse now what could not be spoken later
    warn(prompt.warnings)
    details = {key: getattr(args, key) or getattr(prompt, key) for key in ("source", "licence", "consent")}
    file = str(write_voice(folder, replace(prompt, **details)))
    return {"added": args.name, "file": file, "warnings": list(prompt.warnings)}


def show(result: Result) -> None:
    """Print the result for people; standard error has the warnings already."""
    from valle2.runtime.cli.main import show as show_result

    show_result({name: value for name, value in result.items() if name != "warnings"})


def preset_voice(path: Path, name: str, manifest: Manifest, front: FrontEnd | None) -> Prompt:
    """A voice from a preset of an imported family.

    Raises:
        PromptError: it is no preset, or one of another model.
    """
    from valle2.runtime.presets import prompt_of, read_preset

    if path.suffix in TORCH_SUFFIXES:
        return torch_preset(path, name)
    return prompt_of(read_preset(path), front, manifest.sizes["vocab_size"], name, path.name)


def torch_preset(path: Path, name: str) -> Prompt:
    """A voice of supervoice: a file of torch with `audio_tokens` (8, P) and `text`.

    The exporter's reader is used, which runs nothing that such a file holds.

    Raises:
        Valle2Error: the extra `export` is not installed, or the file holds something else.
    """
    from valle2.runtime.types import Prompt

    if find_spec("torch") is None:
        raise Valle2Error(f"{path} is a file of torch; install with: pip install 'valle2[export]'")
    values = import_module("valle2.export.weights.unpickle").read_container(path)
    codes, text = values.get("audio_tokens"), values.get("text")
    if not isinstance(text, str) or getattr(codes, "ndim", 0) != 2 or len(codes) != 8:
        raise Valle2Error(f"{path} is no preset of supervoice; expected audio_tokens (8, P) and text")
    return Prompt(codes.long().numpy().T.copy(), text, name, source=path.name)


def voice_list(folder: Path) -> list[Result]:
    """Every voice, as `voices.described` writes it."""
    from valle2.engine import read_manifest
    from valle2.runtime.voices import described, read_voice, voice_names

    manifest = read_manifest(folder)
    rate = manifest.codec["sample_rate"] / manifest.codec["hop"] if manifest.codec else FRAME_RATE
    return [described(read_voice(folder, manifest, name), rate) for name in voice_names(manifest)]
