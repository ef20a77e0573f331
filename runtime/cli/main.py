"""The `valle2` command: arguments in, one line of result or one line of error out.

Commands of other rooms are found through the entry-point group `valle2.commands`; each is a module with
HELP, add_arguments(parser) and run(args, progress) -> dict.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from valle2.engine.bundle.precisions import AUTO
from valle2.engine.bundle.untrusted import shown
from valle2.engine.errors import Valle2Error, one_line
from valle2.runtime.cli.inspect import add_inspect, inspect

if TYPE_CHECKING:
    from valle2.runtime.stream import Stream
    from valle2.runtime.types import Speech

GROUP = "valle2.commands"
Result = dict[str, Any]
INTERRUPTED = 130
NUL = "null byte"
"""What Python says of a path with one."""


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Which model runs, and where."""
    parser.add_argument(
        "--model",
        default="demo",
        help="bundle folder, embedded model or owner/name[@revision] on the hub (default: demo)",
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")
    parser.add_argument(
        "--precision",
        default=AUTO,
        help="fp32; fp16, int8 or int4 once built (default: int8 on a CPU if built, else fp32)",
    )
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: all cores)")


def add_say(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("text", nargs="?", help="what to say")
    parser.add_argument("--text-file", type=Path, help="read the text from a UTF-8 file")
    parser.add_argument("-o", "--out", default="speech.wav", help=".wav .flac .ogg .mp3, or - (WAV)")
    parser.add_argument("--voice", help="a voice of the model (default: its own)")
    parser.add_argument("--prompt", type=Path, help="recording of the voice to use")
    parser.add_argument("--prompt-text", help="the words spoken in --prompt")
    parser.add_argument("--stream", action="store_true", help="make audio before the end; with -o - play it")
    parser.add_argument("--latency", type=float, help="seconds of speech in the first chunk (--stream)")
    add_model_arguments(parser)
    for name, kind, text in (
        ("top-p", float, "nucleus mass, 0 is argmax"),
        ("window", int, "codes the repetition rule looks back on"),
        ("threshold", float, "share above which a code is drawn again; 1 switches the rule off"),
        ("seed", int, "seed of the random numbers"),
        ("candidates", int, "samples of which the best is kept"),
        ("max-frames", int, "frames per sentence at the most"),
    ):
        parser.add_argument(f"--{name}", type=kind, help=f"{text} (default: the model's)")


def say(args: argparse.Namespace, progress: Callable[[str], None]) -> Result:
    """Synthesise one text into one file."""
    from valle2.runtime.audio.chunks import FIRST_CHUNK_SECONDS
    from valle2.runtime.audio.io import STDOUT, check_writable, write_audio
    from valle2.runtime.tts import Valle2

    check_writable(args.out)
    text = read_text(args)
    if args.prompt is not None and args.voice is not None:
        raise Valle2Error("both --voice and --prompt were given; expected one of them")
    if args.prompt is not None and not args.prompt_text:
        raise Valle2Error("--prompt needs --prompt-text, the words spoken in the recording")
    tts = Valle2.load(args.model, device=args.device, precision=args.precision, threads=args.threads)
    settings = chosen_settings(args, tts.manifest.sampling)
    if args.prompt is not None:
        voice = tts.prompt(args.prompt, args.prompt_text)
    else:
        voice = tts.voice(args.voice or tts.default_voice())
    progress(f"speaking as {voice.name}")
    if args.latency is not None and not args.stream:
        raise Valle2Error("--latency is for --stream; add it, or leave --latency out")
    if not args.stream:
        speech = tts.synthesize(text, voice, settings)
    else:
        latency = FIRST_CHUNK_SECONDS if args.latency is None else args.latency
        with tts.stream(text, voice, settings, latency=latency) as stream:
            speech = played(stream, args.out == STDOUT)
    if not args.stream or args.out != STDOUT:
        write_audio(args.out, speech.audio, speech.sample_rate)
    return {"out": args.out, "precision": tts.precision, **speech_report(speech)}


def played(stream: Stream, aloud: bool) -> Speech:
    """Run a stream to its end; aloud: write each piece to standard output as soon as it is made."""
    from valle2.runtime.audio.wav import pcm16, stream_header

    for index, piece in enumerate(stream):
        if aloud:
            sys.stdout.buffer.write(
                pcm16(piece) if index else stream_header(stream.sample_rate) + pcm16(piece)
            )
            sys.stdout.buffer.flush()
    return stream.speech()


def speech_report(speech: Speech) -> Result:
    """Length, end and times of one speech."""
    times = speech.timings
    stages = ("prefill", "ar", "nar", "codec", "first_audio", "total")
    return {
        "seconds": round(times.audio, 3),
        "finish_reason": speech.finish_reason,
        "rtf": round(times.rtf, 4),
        "steps": times.steps,
        "timings": {name: round(getattr(times, name), 4) for name in stages},
    }


def read_text(args: argparse.Namespace) -> str:
    """The text from the command line or the file."""
    if (args.text is None) == (args.text_file is None):
        raise Valle2Error("expected a text, either as an argument or with --text-file")
    if args.text_file is None:
        return str(args.text)
    try:
        return str(args.text_file.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise Valle2Error(f"{args.text_file} is not UTF-8 text; convert it first") from None
    except OSError as error:
        raise Valle2Error(f"{args.text_file} cannot be read: {error.strerror}") from None


def chosen_settings(args: argparse.Namespace, defaults: dict[str, float]) -> Any:
    """The model's defaults with what was given on the command line."""
    from valle2.runtime.types import RANGES, Settings

    given = {name: getattr(args, name) for name in RANGES if getattr(args, name) is not None}
    return Settings(**{**defaults, **given})


def add_voices(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=["list", "add", "remove"])
    parser.add_argument("name", nargs="?", help="the voice (add, remove)")
    parser.add_argument("--model", default="demo", help="bundle folder, embedded model or owner/name")
    parser.add_argument("--prompt", type=Path, help="recording of the voice (add)")
    parser.add_argument("--prompt-text", help="the words spoken in it (add)")
    parser.add_argument("--source", default="", help="where the recording comes from (add)")
    parser.add_argument("--licence", default="", help="its licence (add)")
    parser.add_argument("--consent", default="", help="how the speaker agreed (add)")


def voices(args: argparse.Namespace, progress: Callable[[str], None]) -> Result:
    """List, add or remove voices of a bundle."""
    from dataclasses import replace

    from valle2.engine import read_manifest
    from valle2.runtime.tts import Valle2, find_model
    from valle2.runtime.voices import checked_name, remove_voice, write_voice

    if args.action == "list":
        return {"voices": voice_list(find_model(args.model))}
    if not args.name:
        raise Valle2Error(f"voices {args.action} needs a name")
    folder = find_model(args.model)
    if args.action == "remove":
        read_manifest(folder)
        remove_voice(folder, args.name)
        return {"removed": args.name}
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
    rate = manifest.codec["sample_rate"] / manifest.codec["hop"] if manifest.codec else 75.0
    return [described(read_voice(folder, manifest, name), rate) for name in voice_names(manifest)]


def add_doctor(parser: argparse.ArgumentParser) -> None:
    pass


def doctor(args: argparse.Namespace, progress: Callable[[str], None]) -> Result:
    """What this machine can run, and what installs the rest."""
    from valle2.runtime.cli.doctor import report

    return report()


COMMANDS: dict[str, tuple[str, Callable[..., None], Callable[..., Result]]] = {
    "say": ("speak a text into a file", add_say, say),
    "inspect": ("show what a bundle holds", add_inspect, inspect),
    "voices": ("list, add or remove voices", add_voices, voices),
    "doctor": ("show what this machine can run", add_doctor, doctor),
}


def build_parser() -> argparse.ArgumentParser:
    """All commands, ours and those of the other rooms."""
    parser = argparse.ArgumentParser("valle2", description="Speech from VALL-E 2 models, fast.")
    parser.add_argument("--version", action="version", version=f"valle2 {version('valle2')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    found = dict(COMMANDS)
    for entry in entry_points(group=GROUP):
        module = entry.load()
        found[entry.name] = (module.HELP, module.add_arguments, module.run)
    for name, (text, add, run) in found.items():
        command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        add(command)
        command.add_argument("--json", action="store_true", help="print the result as one line of JSON")
        command.set_defaults(run=run)
    return parser


def show(result: Result, indent: str = "") -> None:
    """Print a result for people."""
    for name, value in result.items():
        if isinstance(value, dict):
            print(f"{indent}{name}:")
            show(value, f"{indent}  ")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            print(f"{indent}{name}:")
            for row in value:
                print(f"{indent}  " + "  ".join(str(cell) for cell in row.values()))
        else:
            print(f"{indent}{name}: {', '.join(map(str, value)) if isinstance(value, list) else value}")


def refusal(error: OSError | ValueError) -> str:
    """What the system did not do, and with which file; empty for an error of ours."""
    if isinstance(error, UnicodeEncodeError):
        return f"{shown(error.object)} cannot be written as {error.encoding}; use another name"
    if isinstance(error, ValueError):
        return "a name has a NUL in it; use another name" if NUL in str(error) else ""
    reason = error.strerror or str(error) or type(error).__name__
    return f"{error.filename}: {reason}" if error.filename is not None else reason


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status is 0, 1 for a bad input, 2 for wrong arguments."""
    args = build_parser().parse_args(argv)

    def progress(message: str) -> None:
        if sys.stderr.isatty() and not args.json:
            print(message, file=sys.stderr)

    try:
        if args.command == "build":  # the engine knows folders alone
            from valle2.runtime.tts import find_model

            args.bundle = find_model(args.bundle)
        result = args.run(args, progress)
        if result.get("out") == "-":
            return 0
        print(json.dumps(result)) if args.json else show(result)
        sys.stdout.flush()
    except Valle2Error as error:
        print(f"valle2: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("valle2: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except (OSError, ValueError) as error:  # a path that the system does not take, a full disk
        if not refusal(error):
            raise
        print(f"valle2: {one_line(refusal(error))}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
