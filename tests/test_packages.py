"""What the packages promise: public names, their size, plain names, and no torch in the runtime."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import valle2.engine
import valle2.export
import valle2.runtime
from valle2.runtime.cli.main import COMMANDS

ROOT = Path(__file__).parents[1]
PACKAGES = ("benchmarks", "engine", "export", "runtime")
MOST_MODULES = 14
OLD = """
Slots Batch Row Sample Entering Drawn Graphs Spoken Need Seams Causal Rules Entries Claims Found fitted
lowered taker strays give_back straighten numbered TURNS BOUNDARY USUAL LATENCY_SECONDS
"""
OLD_NAMES = frozenset(OLD.split())
"""Names that said little; docs/architecture.md has the ones that replaced them."""
OLD_WORDS = re.compile(r"\b(door|doors|strays|taker|takers)\b", re.IGNORECASE)


def modules(*packages: str) -> Iterator[Path]:
    for package in packages:
        yield from sorted((ROOT / package).rglob("*.py"))


def folders() -> list[Path]:
    """Every package's folder."""
    return sorted({path.parent for path in modules(*PACKAGES) if path.name == "__init__.py"})


@pytest.mark.parametrize("package", [valle2.engine, valle2.export, valle2.runtime])
def test_all_names_exist_and_are_sorted(package: object) -> None:
    names = package.__all__  # type: ignore[attr-defined]
    assert names == sorted(names, key=lambda name: (name.swapcase(), name)) or names == sorted(names)
    assert all(hasattr(package, name) for name in names)


def test_every_package_is_installed() -> None:
    found = ["valle2." + ".".join(folder.relative_to(ROOT).parts) for folder in folders()]
    tomllib = pytest.importorskip("tomllib")  # new in Python 3.11
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted(found)
    assert {path.parent for path in modules(*PACKAGES)} == set(folders()), "a folder lacks its __init__.py"


@pytest.mark.parametrize("folder", folders(), ids=lambda folder: str(folder.relative_to(ROOT)))
def test_a_package_is_small_and_says_what_it_is_for(folder: Path) -> None:
    inside = [path.name for path in folder.glob("*.py") if not path.name.startswith("__")]
    assert len(inside) <= MOST_MODULES, inside
    text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
    assert len(text.split()) > 4 and text.rstrip().endswith("."), text


def test_no_old_name_is_left() -> None:
    found = []
    for path in modules(*PACKAGES, "demo", "tests"):
        if path == Path(__file__):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = {
                getattr(node, field, None)
                for field in ("id", "attr", "name", "arg", "asname")
                if not isinstance(node, ast.ExceptHandler)
            }
            found += [f"{path.relative_to(ROOT)}: {name}" for name in names & OLD_NAMES]
    assert not found, "\n".join(sorted(set(found)))


def test_no_old_word_is_left() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in [*modules(*PACKAGES), *pages]
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if OLD_WORDS.search(line)
    ]
    assert not found, "\n".join(found)


def test_the_runtime_loads_a_bundle_without_torch(bundle: Path) -> None:
    code = (
        "import sys\n"
        "from valle2.runtime import Valle2\n"
        f"tts = Valle2.load({str(bundle)!r})\n"
        "tts.synthesize('hello', tts.voice('amber'))\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
        "assert 'onnx' not in sys.modules, 'onnx was imported'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_has_help(command: str) -> None:
    args = [sys.executable, "-m", "valle2.runtime.cli", command, "--help"]
    done = subprocess.run(args, capture_output=True, text=True)
    assert done.returncode == 0 and "--json" in done.stdout


def test_every_command_is_tried() -> None:
    expected = {"say", "inspect", "voices", "text", "doctor", "export", "bench", "build", "serve"}
    assert set(COMMANDS) == expected


def test_the_command_line_loads_no_torch(bundle: Path, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from valle2.runtime.cli.main import main\n"
        "assert main(['doctor']) == 0\n"
        f"assert main(['say', 'hello', '--model', {str(bundle)!r}, '-o', {str(tmp_path / 'o.wav')!r}]) == 0\n"
        "heavy = {'torch', 'onnx', 'onnxscript'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
