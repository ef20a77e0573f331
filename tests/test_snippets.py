"""Every snippet of README and docs runs: shell lines that start with valle2 or python, and Python blocks.

A block is left out where the line before it reads `<!-- not run: reason -->`. The test is skipped with that
reason.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.conftest import toy_checkpoint, write_toy
from valle2.runtime.cli.main import main

ROOT = Path(__file__).parents[1]
RECORDING = ROOT / "demo/unseen/am_eric/2.flac"
"""It says what the prompt's text of docs/quickstart.md says."""
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<reason>.+?) -->\n)?```(?P<kind>python|bash)\n(?P<code>.*?)^```", re.M | re.S
)


def blocks(kind: str) -> Sequence[object]:
    """(place, code) of every block in one language. The place, `page:line`, names the test."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in BLOCK.finditer(text):
            if match["kind"] == kind:
                place = f"{page.relative_to(ROOT)}:{text[: match.start('code')].count(chr(10))}"
                marks = [pytest.mark.skip(reason=match["reason"])] if match["reason"] else []
                found.append(pytest.param(place, match["code"], id=place, marks=marks))
    return found


@pytest.fixture
def folder(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that a snippet runs in. It holds the toy bundle and recordings, as the pages assume."""
    shutil.copytree(bundle, tmp_path / "toy-bundle")
    soundfile.write(tmp_path / "me.wav", 0.3 * np.sin(np.arange(44100 * 2) / 30), 44100)
    soundfile.write(tmp_path / "voice.wav", *soundfile.read(RECORDING))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_there_are_snippets() -> None:
    assert blocks("python") and blocks("bash")


@pytest.mark.parametrize(("place", "code"), blocks("python"))
def test_python(place: str, code: str, folder: Path) -> None:
    exec(compile(code, place, "exec"), {})


@pytest.mark.parametrize(("place", "code"), blocks("bash"))
def test_shell(place: str, code: str, folder: Path) -> None:
    """`.ci/run` runs the lines that install. Every other line runs here."""
    if "-o toy-bundle" in code:
        shutil.rmtree("toy-bundle")
    for line in code.strip().replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words[0] == "valle2":
            assert main(words[1:]) == 0, line
        elif words[:3] == ["python", "-m", "tests.make_toy"]:
            write_toy(Path(words[3]), toy_checkpoint(2, 400))
        else:
            assert words[0] in ("pip", "python3"), f"{place}: no test runs {line!r}"
