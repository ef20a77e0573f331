"""The command `valle2 serve`. It imports the web libraries only when it runs."""

from __future__ import annotations

import argparse
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from valle2.engine.errors import Valle2Error
from valle2.runtime.cli.options import add_model_arguments
from valle2.runtime.cli.say import check_model
from valle2.runtime.server.limits import HOST, LOOPBACK, PORT, VOICES_DIR, Limits, expand_home

HELP = "serve speech over HTTP"
WEB_LIBRARIES = ("fastapi", "uvicorn", "prometheus_client", "python_multipart", "websockets")
FLAGS = {
    "slots": "--slots",
    "queue": "--queue",
    "queue_per_client": "--queue-per-client",
    "text": "--max-text",
    "audio_seconds": "--audio-seconds",
    "request_seconds": "--request-seconds",
    "wait_seconds": "--wait-seconds",
    "stall_seconds": "--stall-seconds",
    "drain_seconds": "--drain-seconds",
    "connections": "--connections",
    "connections_per_address": "--connections-per-address",
}
"""Flags by the field of `Limits` that each one sets."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_model_arguments(parser)
    parser.add_argument("--engine", default="ort", choices=["ort", "tensorrt", "tensorrt-rtx"])
    parser.add_argument(
        "--host", default=HOST, help=f"address; a public one needs --api-key-file (default: {HOST})"
    )
    parser.add_argument("--port", type=int, default=PORT, help=f"0 takes a free one (default: {PORT})")
    parser.add_argument(
        "--health-port",
        type=int,
        default=0,
        help="another port, which answers /health, /ready and /metrics only (default: 0, none)",
    )
    parser.add_argument(
        "--api-key-file",
        type=Path,
        metavar="FILE",
        help="keys that clients must send: one key, lines of a name and a key, or a JSON object with limits",
    )
    parser.add_argument(
        "--voices-dir",
        type=Path,
        default=VOICES_DIR,
        help=f"folder of uploaded voices (default: {VOICES_DIR})",
    )
    parser.add_argument(
        "--voice-aliases",
        type=Path,
        metavar="FILE",
        help='JSON object of further names of voices, such as {"alloy": "amber"}',
    )
    parser.add_argument(
        "--lexicon",
        type=Path,
        metavar="FILE",
        help="pronunciations for every request: lines of a word, a tab and its phonemes; or a JSON object",
    )
    parser.add_argument(
        "--log-format", default="text", choices=["text", "json"], help="one line a request (default: text)"
    )
    for entry in fields(Limits):
        if entry.name in FLAGS:
            parser.add_argument(
                FLAGS[entry.name],
                dest=entry.name,
                type=type(entry.default),
                default=entry.default,
                help=f"{entry.metadata['meaning']} (default: {entry.default})",
            )


def run(args: argparse.Namespace, progress: Any) -> dict[str, Any]:
    """Serve until SIGTERM or SIGINT.

    Returns:
        What `--json` prints: the numbers of completed requests and of restarts.

    Raises:
        Valle2Error: a library or the API key is missing, the address cannot be used, or the model cannot be
            loaded or cannot speak.
    """
    if any(find_spec(name) is None for name in WEB_LIBRARIES):
        raise Valle2Error("serve needs its web libraries; install with: pip install 'valle2[serve]'")
    if args.host not in LOOPBACK and args.api_key_file is None:
        raise Valle2Error(
            f"--host {args.host} is public, which needs an API key; add --api-key-file FILE or use {HOST}"
        )
    from valle2.runtime.server.keys import Keys, read_keys
    from valle2.runtime.server.run import serve
    from valle2.runtime.server.store import VoiceStore, read_aliases
    from valle2.runtime.text.annotations.lexicon import read_lexicon
    from valle2.runtime.tts import Valle2, find_model

    limits = Limits(**{name: getattr(args, name) for name in FLAGS})
    aliases = read_aliases(args.voice_aliases) if args.voice_aliases else {}
    store = VoiceStore(expand_home(args.voices_dir), aliases)
    store.prepare()

    lexicon = read_lexicon(args.lexicon) if args.lexicon else {}

    def load(slots: int) -> Valle2:
        folder = find_model(args.model)
        check_model(argparse.Namespace(prompt=None, voice=None, phones=False), folder)
        tts = Valle2.load(
            folder,
            device=args.device,
            precision=args.precision,
            threads=args.threads,
            slots=slots,
            engine=args.engine,
        )
        tts.lexicon = lexicon
        return tts

    keys = read_keys(args.api_key_file) if args.api_key_file else Keys()
    return serve(load, limits, args.host, args.port, store, keys, args.log_format, args.health_port)
