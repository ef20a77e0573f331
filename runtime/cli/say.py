"""`valle2 say`: speak one text into one file or to standard output."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from valle2.engine.errors import Valle2Error
from valle2.runtime.cli.options import add_model_arguments, add_text_arguments, text_of

if TYPE_CHECKING:
    from valle2.runtime import Settings
    from valle2.runtime.stream import Stream
    from valle2.runtime.types import Speech

HELP = "speak a text into a file"
Result = dict[str, Any]
SETTINGS = (
    ("top-p", float, "nucleus mass, 0 is argmax"),
    ("window", int, "codes the repetition rule looks back on"),
    ("threshold", float, "share above which a code is drawn again; 1 switches the rule off"),
    ("seed", int, "seed of the random numbers"),
    ("candidates", int, "samples of which the best is kept"),
    ("max-frames", int, "frames per sentence at the most"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_text_arguments(parser)
    parser.add_argument("-o", "--out", default="speech.wav", help=".wav .flac .ogg .mp3, or - (WAV)")
    parser.add_argument("--voice", help="a voice of the model (default: its own)")
    parser.add_argument("--prompt", type=Path, help="recording of the voice to use")
    parser.add_argument("--prompt-text", help="the words spoken in --prompt")
    parser.add_argument("--stream", action="store_true", help="make audio before the end; with -o - play it")
    parser.add_argument("--latency", type=float, help="seconds of speech in the first chunk (--stream)")
    add_model_arguments(parser)
    for name, kind, text in SETTINGS:
        parser.add_argument(f"--{name}", type=kind, help=f"{text} (default: the model's)")


def run(args: argparse.Namespace, progress: Callable[[str], None]) -> Result:
    """Synthesise; returns what `--json` prints."""
    from valle2.runtime.audio.io import STDOUT, check_writable, write_audio
    from valle2.runtime.tts import Valle2
    from valle2.runtime.types import Phones

    check_writable(args.out)
    text = Phones(text_of(args)) if args.phones else text_of(args)
    check_arguments(args)
    tts = Valle2.load(args.model, device=args.device, precision=args.precision, threads=args.threads)
    settings = chosen_settings(args, tts.manifest.sampling)
    if args.prompt is not None:
        voice = tts.prompt(args.prompt, args.prompt_text)
    else:
        voice = tts.voice(args.voice or tts.default_voice())
    progress(f"speaking as {voice.name}")
    if not args.stream:
        speech = tts.synthesize(text, voice, settings)
    else:
        with tts.stream(text, voice, settings, first_chunk_seconds=args.latency) as stream:
            speech = played(stream, aloud=args.out == STDOUT)
    if not args.stream or args.out != STDOUT:
        write_audio(args.out, speech.audio, speech.sample_rate)
    return {"out": args.out, "precision": tts.precision, **report(speech)}


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse arguments that contradict each other."""
    if args.prompt is not None and args.voice is not None:
        raise Valle2Error("both --voice and --prompt were given; expected one of them")
    if args.prompt is not None and not args.prompt_text:
        raise Valle2Error("--prompt needs --prompt-text, the words spoken in the recording")
    if args.latency is not None and not args.stream:
        raise Valle2Error("--latency is for --stream; add it, or leave --latency out")


def played(stream: Stream, aloud: bool) -> Speech:
    """Run a stream to its end. aloud: write each piece to standard output as soon as it is made."""
    from valle2.runtime.audio.io import pcm16, stream_header

    for index, piece in enumerate(stream):
        if aloud:
            header = b"" if index else stream_header(stream.sample_rate)
            sys.stdout.buffer.write(header + pcm16(piece))
            sys.stdout.buffer.flush()
    return stream.speech()


def report(speech: Speech) -> Result:
    """Length, finish reason and times of one speech."""
    times = speech.timings
    stages = ("prefill", "ar", "nar", "codec", "first_audio", "total")
    return {
        "seconds": round(times.audio, 3),
        "finish_reason": speech.finish_reason,
        "rtf": round(times.rtf, 4),
        "steps": times.steps,
        "timings": {name: round(getattr(times, name), 4) for name in stages},
    }


def chosen_settings(args: argparse.Namespace, defaults: dict[str, float]) -> Settings:
    """The model's defaults, replaced by what the command line gives."""
    from valle2.runtime.types import RANGES, Settings

    given = {name: getattr(args, name) for name in RANGES if getattr(args, name) is not None}
    return Settings(**{**defaults, **given})
