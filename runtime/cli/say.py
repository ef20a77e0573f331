"""`valle2 say`: speak one text into one file or to standard output."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from valle2.engine.bundle.schema import QUALITIES
from valle2.engine.errors import Valle2Error
from valle2.runtime.cli.options import (
    add_model_arguments,
    add_prompt_arguments,
    add_text_arguments,
    prompt_words,
    text_of,
)
from valle2.runtime.cli.streams import warn, writing_output

if TYPE_CHECKING:
    from pathlib import Path

    from valle2.runtime import Settings
    from valle2.runtime.stream import Stream
    from valle2.runtime.types import Speech

HELP = "speak a text into a file"
Result = dict[str, Any]
SOURCES = {"lifeiteng": "unique_text_tokens.k2symbols", "supervoice": "tokenizer_text.model"}
"""The file of a family from which `valle2 export --text` makes a front end."""
SETTINGS = (
    ("top-p", float, "nucleus mass, 0 is argmax"),
    ("window", int, "codes the repetition rule looks back on"),
    ("threshold", float, "share above which a code is drawn again; 1 switches the rule off"),
    ("seed", int, "seed of the random numbers"),
    ("candidates", int, "samples of which the best is kept"),
    ("max-frames", int, "frames per sentence at the most"),
    ("min-frames", int, "frames per sentence at the least; 0 takes a share of what the text needs"),
    ("loop-frames", int, "frames without a new code after which a sentence is cut off as a loop; 0 never"),
    ("retries", int, "times a sentence is made again if it fails; needed with --seed"),
    ("codebooks", int, "codebooks of the speech; fewer are faster, 0 takes all"),
    (
        "first-chunk-codebooks",
        int,
        "codebooks of the first chunk of --stream; fewer come sooner, 8 takes all",
    ),
    ("nar-prompt-seconds", float, "end of the prompt that the NAR hears; less is faster, 0 takes all"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_text_arguments(parser)
    parser.add_argument("-o", "--out", default="speech.wav", help=".wav .flac .ogg .mp3, or - (WAV)")
    parser.add_argument("--voice", help="a voice of the model (default: its own)")
    add_prompt_arguments(parser)
    parser.add_argument("--stream", action="store_true", help="make audio before the end; with -o - play it")
    parser.add_argument(
        "--first-chunk-seconds",
        "--latency",
        metavar="SECONDS",
        type=float,
        help="speech in the first chunk of --stream (default: 0.4); --latency is the old name",
    )
    parser.add_argument("--speed", type=float, default=1.0, help="0.25 to 4 at the same pitch (default: 1)")
    parser.add_argument("--captions", metavar="FILE", help="write the times of the words: .srt .vtt .json")
    parser.add_argument("--quality", choices=list(QUALITIES), help="fewer or all codebooks (default: full)")
    add_model_arguments(parser)
    for name, kind, text in SETTINGS:
        parser.add_argument(f"--{name}", type=kind, help=f"{text} (default: the model's)")


def run(args: argparse.Namespace, progress: Callable[[str], None]) -> Result:
    """Synthesise; returns what `--json` prints."""
    from valle2.runtime.audio.io import STDOUT, check_writable, write_audio
    from valle2.runtime.captions import check_captions, write_captions
    from valle2.runtime.text.annotations.lexicon import read_lexicon
    from valle2.runtime.tts import Valle2, find_model

    check_writable(args.out)
    if args.captions is not None:
        check_captions(args.captions)
    text = text_of(args)
    check_arguments(args)
    folder = find_model(args.model)
    check_model(args, folder)
    lexicon = read_lexicon(args.lexicon) if args.lexicon else {}
    tts = Valle2.load(folder, device=args.device, precision=args.precision, threads=args.threads)
    tts.lexicon = lexicon
    settings = chosen_settings(args, tts.settings(args.quality))
    if args.prompt is not None:
        voice = tts.prompt(args.prompt, prompt_words(args))
    else:
        voice = tts.voice(args.voice or tts.default_voice())
    timestamps = args.captions is not None
    progress(f"speaking as {voice.name}")
    if not args.stream:
        speech = tts.synthesize(text, voice, settings, speed=args.speed, timestamps=timestamps)
    else:
        seconds = args.first_chunk_seconds
        with tts.stream(
            text, voice, settings, first_chunk_seconds=seconds, speed=args.speed, timestamps=timestamps
        ) as stream:
            speech = played(stream, aloud=args.out == STDOUT)
    warn(cautions(speech))
    if args.out != STDOUT:
        write_audio(args.out, speech.audio, speech.sample_rate)
    elif not args.stream:
        with writing_output():
            write_audio(STDOUT, speech.audio, speech.sample_rate)
    captions = {}
    if timestamps:
        write_captions(args.captions, speech.words)
        captions = {"captions": args.captions}
    return {"out": args.out, **captions, "precision": tts.precision, **report(speech)}


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse arguments that contradict each other or are out of range."""
    from valle2.runtime.types import checked_speed

    checked_speed(args.speed)
    if args.prompt is not None and args.voice is not None:
        raise Valle2Error("both --voice and --prompt were given; expected one of them")
    if args.prompt is not None:
        prompt_words(args)
    if args.first_chunk_seconds is not None and not args.stream:
        raise Valle2Error("--first-chunk-seconds is for --stream; add --stream, or leave it out")


def check_model(args: argparse.Namespace, folder: Path) -> None:
    """Refuse a bundle that cannot speak, and say at once what adds each part that it lacks.

    Raises:
        ModelError: the bundle has no codec, no voice to speak in, or no way to read the text.
    """
    from valle2.engine import read_manifest
    from valle2.runtime.errors import ModelError
    from valle2.runtime.text.front_end import kind_of, reads_text
    from valle2.runtime.voices import voice_names

    manifest, remedies = read_manifest(folder, check_hashes=False), []
    if not manifest.codec:
        remedies.append(f"a codec: valle2 export CHECKPOINT -o {folder} --codec CODEC")
    if args.prompt is None and args.voice is None and not voice_names(manifest):
        remedies.append(
            f"a voice: valle2 voices add NAME PRESET.npz --model {folder}, or a recording: "
            "--prompt FILE --prompt-text WORDS"
        )
    kind = kind_of(manifest.text, manifest.rules)
    if not args.phones and not reads_text(kind, manifest.files):
        again = f"valle2 export CHECKPOINT -o {folder} --text {SOURCES[kind]}, or " if kind in SOURCES else ""
        remedies.append(f"a text front end: {again}phones in the text's place: --phones")
    if remedies:
        raise ModelError(f"{folder} lacks {'; and '.join(remedies)}")


def played(stream: Stream, aloud: bool) -> Speech:
    """Run a stream to its end. aloud: write each piece to standard output as soon as it is made."""
    from valle2.runtime.audio.io import pcm16, stream_header

    for index, piece in enumerate(stream):
        if aloud:
            header = b"" if index else stream_header(stream.sample_rate)
            with writing_output():
                sys.stdout.buffer.write(header + pcm16(piece))
                sys.stdout.buffer.flush()
    return stream.speech()


def cautions(speech: Speech) -> list[str]:
    """What the user is told about one speech: its warnings, and whether it was cut off."""
    from valle2.runtime.types import CUT_OFF

    cut = CUT_OFF.get(speech.finish_reason)
    return [*speech.warnings, *([cut] if cut else [])]


def show(result: Result) -> None:
    """Print the result for people; standard error has the warnings already."""
    from valle2.runtime.cli.main import show as show_result

    show_result({name: value for name, value in result.items() if name != "warnings"})


def report(speech: Speech) -> Result:
    """Length, finish reason, warnings and times of one speech."""
    times = speech.timings
    stages = ("prefill", "ar", "nar", "codec", "first_audio", "total")
    return {
        "seconds": round(times.audio, 3),
        "finish_reason": speech.finish_reason,
        "warnings": list(speech.warnings),
        "rtf": round(times.rtf, 4),
        "steps": times.steps,
        "retries": times.retries,
        "timings": {name: round(getattr(times, name), 4) for name in stages},
    }


def chosen_settings(args: argparse.Namespace, defaults: Settings) -> Settings:
    """The model's defaults, replaced by what the command line gives."""
    from valle2.runtime.types import RANGES

    return defaults.with_given({name: getattr(args, name) for name in RANGES})
