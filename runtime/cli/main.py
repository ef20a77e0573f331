"""The command `valle2`: arguments in; a result, or one line that says what went wrong, out.

A command is a module with HELP, add_arguments(parser) and run(args, progress) -> dict. It may have
show(result), which prints the result for people. Only the module of the command that runs is imported.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from importlib import import_module
from importlib.metadata import version
from typing import Any

from valle2.engine.bundle.untrusted import shown
from valle2.engine.errors import Valle2Error, one_line
from valle2.runtime.cli.streams import complain, end_output, open_missing_streams, writing_output

COMMANDS = {
    "say": "valle2.runtime.cli.say",
    "text": "valle2.runtime.cli.text",
    "voices": "valle2.runtime.cli.voices",
    "inspect": "valle2.runtime.cli.inspect",
    "doctor": "valle2.runtime.cli.doctor",
    "serve": "valle2.runtime.server.cli",
    "export": "valle2.export.cli",
    "build": "valle2.engine.cli",
    "bench": "valle2.benchmarks.cli",
}
"""Modules by command. Their names are text: the runtime imports neither the exporter nor the benchmarks."""
Result = dict[str, Any]
INTERRUPTED = 130
NUL = "null byte"
"""What Python's message says when a path holds one."""


class Parser(argparse.ArgumentParser):
    """argparse's parser, but an error of writing its help or version is raised, not dropped."""

    def _print_message(self, message: str, file: Any = None) -> None:
        with writing_output():
            (file or sys.stderr).write(message or "")


def build_parser(names: Iterable[str] = COMMANDS) -> Parser:
    """The parser of the named commands."""
    parser = Parser("valle2", description="Speech from VALL-E 2 models, fast.")
    parser.add_argument("--version", action="version", version=f"valle2 {version('valle2')}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in names:
        module = import_module(COMMANDS[name])
        text: str = module.HELP
        command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        module.add_arguments(command)
        command.add_argument("--json", action="store_true", help="print the result as one line of JSON")
        command.set_defaults(run=module.run, show=getattr(module, "show", show))
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
    """What the system refused, and for which file; empty if the error is a fault of this program."""
    if isinstance(error, UnicodeEncodeError):
        return f"{shown(error.object)} cannot be written as {error.encoding}; use another name"
    if isinstance(error, ValueError):
        return "a name has a NUL in it; use another name" if NUL in str(error) else ""
    reason = error.strerror or str(error) or type(error).__name__
    return f"{error.filename}: {reason}" if error.filename is not None else reason


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit status: 0; 1 for an error of the input, or a result that cannot be printed; 130 after Ctrl-C.
        Wrong arguments exit with 2.
    """
    closed = open_missing_streams()
    try:
        status = run_command(sys.argv[1:] if argv is None else list(argv), closed)
    except SystemExit as stop:  # of argparse: --help, --version, wrong arguments
        raise SystemExit(end_output(stop.code if isinstance(stop.code, int) else 0, closed)) from None
    return end_output(status, closed)


def run_command(words: list[str], closed: bool) -> int:
    """Run the command and print its result. closed: standard output is closed. Returns the exit status."""

    def progress(message: str) -> None:
        if sys.stderr.isatty() and not args.json:
            print(message, file=sys.stderr)

    try:
        args = build_parser(words[:1] if words[:1] and words[0] in COMMANDS else COMMANDS).parse_args(words)
        if closed and getattr(args, "out", None) == "-":
            raise Valle2Error("standard output is closed, and --out - writes to it; give a file name")
        if args.command == "build":  # the engine knows folders, not names of models
            from valle2.runtime.tts import find_model

            args.bundle = find_model(args.bundle)
        result = args.run(args, progress)
        if result.get("out") != "-":
            with writing_output():
                print(json.dumps(result)) if args.json else args.show(result)
    except Valle2Error as error:
        complain(str(error))
        return 1
    except KeyboardInterrupt:
        complain("interrupted")
        return INTERRUPTED
    except BrokenPipeError:  # the reader has what it wants, as with head
        return 1
    except (OSError, ValueError) as error:  # a path that the system does not take, a full disk
        if not refusal(error):
            raise
        complain(one_line(refusal(error)))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
