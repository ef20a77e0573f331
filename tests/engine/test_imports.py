"""What may be imported without a runtime."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

RUNTIMES = ("onnxruntime", "onnx", "tensorrt", "tensorrt_rtx", "cuda.bindings")
READ = "from valle2.engine.bundle.manifest import read_manifest; read_manifest(Path({folder!r}))"
CHOOSE = "from valle2.engine import Placement; Placement('cuda', 'tensorrt').locate_graphs"


@pytest.mark.parametrize("code", [READ, CHOOSE], ids=["reading a manifest", "choosing a placement"])
def test_no_runtime_is_imported(bundle: Path, code: str) -> None:
    script = (
        "import sys; from pathlib import Path\n"
        f"{code.format(folder=str(bundle))}\n"
        f"found = set({RUNTIMES!r}) & set(sys.modules)\n"
        "assert not found, found\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
