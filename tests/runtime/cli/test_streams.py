"""Standard output closed, full, without a reader or in ASCII, and a user without a home: no traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from valle2.engine.bundle.untrusted import is_file

HOMELESS = """
import pwd

def unknown(uid):
    raise KeyError(f"getpwuid(): uid not found: {uid}")

pwd.getpwuid = unknown
"""
"""A `sitecustomize` for a user whom the system does not know, as in a container with another uid."""
FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.is_char_device(), reason="no /dev/full on this system")
COMMANDS = {
    "version": ["--version"],
    "help": ["--help"],
    "say": ["say", "hello there", "--max-frames", "6", "-o", "o.wav", "--model", "BUNDLE"],
    "say json": ["say", "hello", "--max-frames", "6", "-o", "o.wav", "--json", "--model", "BUNDLE"],
    "say to output": ["say", "hello", "--max-frames", "6", "-o", "-", "--model", "BUNDLE"],
    "say aloud": ["say", "hello", "--max-frames", "6", "-o", "-", "--stream", "--model", "BUNDLE"],
    "text": ["text", "hello there", "--model", "BUNDLE"],
    "voices": ["voices", "list", "--model", "BUNDLE"],
    "inspect": ["inspect", "BUNDLE"],
    "doctor": ["doctor"],
    "serve help": ["serve", "--help"],
}


def shell(
    name: str, bundle: Path, folder: Path, redirection: str, **changes: str | None
) -> subprocess.CompletedProcess[str]:
    """Run a command, by its name in COMMANDS, in a shell.

    Args:
        redirection: what follows the command. changes: of the environment; None removes a variable.
    """
    words = [str(bundle) if word == "BUNDLE" else f"'{word}'" for word in COMMANDS.get(name, [name])]
    line = " ".join(["set -o pipefail;", sys.executable, "-m valle2.runtime.cli", *words, redirection])
    environment = {**os.environ, "PYTHONUNBUFFERED": ""} | changes
    return subprocess.run(
        ["bash", "-c", line],
        cwd=folder,
        capture_output=True,
        text=True,
        env={name: value for name, value in environment.items() if value is not None},
        timeout=60,
        check=False,
    )


def complaints(done: subprocess.CompletedProcess[str]) -> str:
    """Standard error without the warning that six frames cut the speech off."""
    return "".join(line for line in done.stderr.splitlines(True) if "was cut off" not in line)


def check_one_line(done: subprocess.CompletedProcess[str], message: str) -> None:
    assert done.returncode == 1, done.stderr
    assert complaints(done).startswith("valle2: ") and complaints(done).count("\n") == 1, done.stderr
    assert message in done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_a_closed_output_is_one_line(name: str, bundle: Path, tmp_path: Path) -> None:
    check_one_line(shell(name, bundle, tmp_path, ">&-"), "standard output is closed")
    assert is_file(tmp_path / "o.wav") == (name in ("say", "say json"))


@needs_full
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_output_is_one_line(name: str, bundle: Path, tmp_path: Path, unbuffered: str) -> None:
    done = shell(name, bundle, tmp_path, f">{FULL}", PYTHONUNBUFFERED=unbuffered)
    check_one_line(done, "standard output cannot be written: No space left on device")
    assert is_file(tmp_path / "o.wav") == (name in ("say", "say json"))


@pytest.mark.parametrize("name", COMMANDS)
def test_a_reader_that_leaves_is_no_news(name: str, bundle: Path, tmp_path: Path) -> None:
    done = shell(name, bundle, tmp_path, "| head -c 1 >first")
    assert complaints(done) == "" and done.returncode in (0, 1)  # 0: all was written before the reader left


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_character_outside_the_encoding_is_one_line(bundle: Path, tmp_path: Path, encoding: str) -> None:
    done = shell("text", bundle, tmp_path, "", PYTHONIOENCODING=encoding)
    check_one_line(done, f"{'ˈ'!a} is not in the encoding of standard output, {encoding}; add --json")
    assert shell("text", bundle, tmp_path, "--json", PYTHONIOENCODING=encoding).returncode == 0
    for name in set(COMMANDS) - {"text", "say to output", "say aloud"}:
        done = shell(name, bundle, tmp_path, "", PYTHONIOENCODING=encoding)
        assert done.returncode == 0 and not complaints(done), (name, done.stderr)


@pytest.mark.parametrize("redirection", ["2>&-", "<&- 2>&-", pytest.param("2>/dev/full", marks=needs_full)])
def test_errors_that_nobody_can_read(bundle: Path, tmp_path: Path, redirection: str) -> None:
    assert shell("say", bundle, tmp_path, redirection).returncode == 0
    done = shell("say", bundle, tmp_path, f"--voice nobody {redirection}")
    assert done.returncode == 1 and not done.stdout


@pytest.fixture
def homeless(tmp_path: Path) -> dict[str, str | None]:
    """Changes of the environment that take the user's home away."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(HOMELESS)
    paths = [str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")]
    return {"HOME": None, "PYTHONPATH": os.pathsep.join(paths)}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_user_without_a_home(
    name: str, bundle: Path, tmp_path: Path, homeless: dict[str, str | None]
) -> None:
    done = shell(name, bundle, tmp_path, "| cat >output", **homeless)
    assert done.returncode == 0 and not complaints(done), done.stderr
    assert {path.name for path in tmp_path.iterdir()} <= {"site", "output", "o.wav"}


def test_serve_needs_a_folder_for_voices_if_there_is_no_home(
    bundle: Path, tmp_path: Path, homeless: dict[str, str | None]
) -> None:
    pytest.importorskip("fastapi", reason="needs the extra: serve")
    done = shell("serve", bundle, tmp_path, "", **homeless)
    check_one_line(done, "the home folder is unknown, because HOME is not set")
    assert "--voices-dir" in done.stderr
