"""What may be imported without a runtime."""

from __future__ import annotations

import ast
import json
import os
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


def test_onnx_runtime_collects_no_telemetry(tmp_path: Path) -> None:
    """It would keep files in the user's cache folder."""
    script = "from valle2.runtime import Valle2; Valle2.load('demo', precision='fp32', threads=1)"
    environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
    environment |= {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())


ROOT = Path(__file__).parents[2]
NEEDS_ORT = {
    "valle2.engine.backends.ort.session",
    "valle2.benchmarks.speed.on_gpu.numerics",
    "valle2.benchmarks.speed.products",
}
"""The modules that need ONNX Runtime when they are imported; the last two measure it."""
WITHOUT_ORT = "import sys; sys.modules['onnxruntime'] = None\n"


def modules(package: str) -> list[str]:
    paths = [path.relative_to(ROOT).with_suffix("") for path in (ROOT / package).rglob("*.py")]
    names = [".".join(("valle2", *path.parts)).removesuffix(".__init__") for path in paths]
    return sorted(name for name in names if not name.endswith("__main__"))


def run_without_ort(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process in which `import onnxruntime` fails, as on a Jetson with TensorRT alone."""
    return subprocess.run([sys.executable, "-c", WITHOUT_ORT + code], capture_output=True, text=True)


def test_speech_and_builds_of_tensorrt_need_no_onnx_runtime() -> None:
    """Nor do the audit, the server and the benchmarks."""
    names = [*modules("engine"), *modules("runtime"), *modules("benchmarks/speed")]
    code = (
        "from importlib import import_module\n"
        "needed = []\n"
        f"for name in {names!r}:\n"
        "    try:\n"
        "        import_module(name)\n"
        "    except (ImportError, ValueError) as error:\n"  # others lack an extra, and say so
        "        if 'onnxruntime' in str(error):\n"
        "            needed.append(name)\n"
        "print(needed)\n"
    )
    done = run_without_ort(code)
    assert done.returncode == 0, done.stderr
    assert set(ast.literal_eval(done.stdout)) == NEEDS_ORT


def test_without_onnx_runtime_one_line_says_what_to_install(bundle: Path) -> None:
    code = (
        "from valle2.runtime.cli.main import main\n"
        "assert main(['doctor', '--json']) == 0\n"
        f"assert main(['say', 'hello', '--model', {str(bundle)!r}, '-o', 'never.wav']) == 1\n"
    )
    done = run_without_ort(code)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["onnxruntime"] == "missing"
    assert found["can run"]["cpu"] == "missing; pip install onnxruntime"
    assert found["can run"]["cuda"].startswith("missing; pip install 'valle2[cuda]'")
    (line,) = done.stderr.strip().splitlines()
    assert "onnxruntime is not available" in line and "pip install onnxruntime" in line
