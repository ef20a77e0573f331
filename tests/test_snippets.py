"""Every snippet of README and docs runs: shell lines that start with valle2 or python, and Python blocks."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.conftest import toy_checkpoint, write_toy
from valle2.export import export_checkpoint
from valle2.runtime.cli import main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(python|bash)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(kind: str) -> list[tuple[str, str]]:
    """(page:line, text) of every block of one language."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in BLOCK.finditer(text):
            if match[1] == kind:
                found.append((f"{page.name}:{text[: match.start()].count(chr(10)) + 1}", match[2]))
    return found


def test_there_are_snippets() -> None:
    assert blocks("python") and blocks("bash")


@pytest.mark.parametrize(("place", "code"), blocks("python"))
def test_python(
    place: str, code: str, checkpoint_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    export_checkpoint(checkpoint_folder, tmp_path / "toy-bundle")
    exec(compile(code, place, "exec"), {})


@pytest.mark.parametrize(("place", "code"), blocks("bash"))
def test_shell(place: str, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Install lines are what .ci/run does; every other line runs here."""
    monkeypatch.chdir(tmp_path)
    for line in code.strip().splitlines():
        words = shlex.split(line, comments=True)
        if words[0] == "valle2":
            assert main(words[1:]) == 0, line
        elif words[:3] == ["python", "-m", "tests.make_toy"]:
            write_toy(Path(words[3]), toy_checkpoint(2, 400))
        else:
            assert words[0] in ("pip", "python3"), f"{place}: no test runs {line!r}"
