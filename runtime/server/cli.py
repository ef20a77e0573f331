"""`valle2 serve`: speech over HTTP. The web libraries are imported only when it runs."""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from valle2.engine.errors import Valle2Error
from valle2.runtime.cli.options import add_model_arguments
from valle2.runtime.server.limits import LOOPBACK, Limits

HELP = "serve speech over HTTP"
NEEDED = ("fastapi", "uvicorn", "prometheus_client", "python_multipart", "websockets")
BOUNDS = {
    "slots": "requests decoded side by side",
    "queue": "requests that may wait",
    "text": "characters of a request",
    "audio_seconds": "speech made for a request",
    "request_seconds": "time for a request",
    "stall_seconds": "patience with a slow reader",
    "drain_seconds": "time for running streams after SIGTERM",
}
"""Fields of `Limits` that are options."""
VOICES_DIR = Path("~/.local/share/valle2/voices")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_model_arguments(parser)
    parser.add_argument("--engine", default="ort", choices=["ort", "tensorrt", "tensorrt-rtx"])
    parser.add_argument("--host", default="127.0.0.1", help="address; a public one needs --api-key-file")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one (default: 8000)")
    parser.add_argument("--api-key-file", type=Path, help="file with the key that clients must send")
    parser.add_argument(
        "--voices-dir",
        type=Path,
        default=VOICES_DIR.expanduser(),
        help=f"where uploaded voices are kept (default: {VOICES_DIR})",
    )
    defaults = Limits()
    for name, text in BOUNDS.items():
        value = getattr(defaults, name)
        flag = {"text": "--max-text"}.get(name, f"--{name.replace('_', '-')}")
        parser.add_argument(
            flag, dest=name, type=type(value), default=value, help=f"{text} (default: {value})"
        )


def run(args: argparse.Namespace, progress: Any) -> dict[str, Any]:
    """Serve until a signal; returns what `--json` prints."""
    if any(find_spec(name) is None for name in NEEDED):
        raise Valle2Error("serve needs its web libraries; install with: pip install 'valle2[serve]'")
    if args.host not in LOOPBACK and args.api_key_file is None:
        raise Valle2Error(f"--host {args.host} is public; expected --api-key-file FILE with it")
    from valle2.runtime.server.http.guard import read_key
    from valle2.runtime.server.run import serve
    from valle2.runtime.tts import Valle2

    limits = Limits(**{name: getattr(args, name) for name in BOUNDS})

    def load(slots: int) -> Valle2:
        return Valle2.load(
            args.model,
            device=args.device,
            precision=args.precision,
            threads=args.threads,
            slots=slots,
            engine=args.engine,
        )

    key = read_key(args.api_key_file) if args.api_key_file else ""
    return serve(load, limits, args.host, args.port, args.voices_dir, key)
