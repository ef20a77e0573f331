"""What the rooms promise each other: public names, and no torch in the runtime."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import valle2.engine
import valle2.export
import valle2.runtime


@pytest.mark.parametrize("room", [valle2.engine, valle2.export, valle2.runtime])
def test_all_names_exist_and_are_sorted(room: object) -> None:
    names = room.__all__  # type: ignore[attr-defined]
    assert names == sorted(names, key=lambda name: (name.swapcase(), name)) or names == sorted(names)
    assert all(hasattr(room, name) for name in names)


def test_the_runtime_loads_a_bundle_without_torch(bundle: Path) -> None:
    code = (
        "import sys, time; began = time.perf_counter()\n"
        "from valle2.runtime import Valle2\n"
        f"tts = Valle2.load({str(bundle)!r})\n"
        "tts.synthesize('hello', tts.voice('amber'))\n"
        "assert 'torch' not in sys.modules, 'torch was imported'\n"
        "assert 'onnx' not in sys.modules, 'onnx was imported'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_command_has_help() -> None:
    for command in ("say", "inspect", "voices", "doctor", "export", "bench", "build"):
        args = [sys.executable, "-m", "valle2.runtime.cli", command, "--help"]
        done = subprocess.run(args, capture_output=True, text=True)
        assert done.returncode == 0 and "--json" in done.stdout


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
