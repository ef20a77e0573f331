"""Run a command with the kernels of a processor that has AVX2 alone.

    python -m valle2.benchmarks.without_avx512 valle2 bench compare --size full --precision int8

PyTorch and its libraries take an environment variable for this. ONNX Runtime does not, so the command gets a
copy of it. The library asks the instruction XGETBV which registers the system saves, and in the copy that
answer is replaced by "those of AVX2". A processor with AVX-512 may still be faster than one without: it has
its own clock, caches and widths. Works on x86 with Linux or macOS.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from valle2.engine.errors import Valle2Error

ASKED = b"\x31\xc9\x0f\x01\xd0"
"""`xor ecx, ecx; xgetbv`: which registers does the system save?"""
ANSWERED = b"\x31\xc9\xb0\x07\x90"
"""`xor ecx, ecx; mov al, 7; nop`: those of x87, SSE and AVX."""
LIBRARY = "capi/onnxruntime_pybind11_state*.so"
KERNELS = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
}
"""What PyTorch, MKL and oneDNN read when they are loaded."""


def without_avx512(folder: Path) -> Path:
    """Copy the installed ONNX Runtime to a folder, without AVX-512. Returns the library that was changed.

    Raises:
        Valle2Error: ONNX Runtime is not installed, or its library does not ask as it is expected to.
    """
    found = find_spec("onnxruntime")
    if found is None or not found.submodule_search_locations:
        raise Valle2Error("ONNX Runtime is not installed; run: pip install onnxruntime")
    copy = folder / "onnxruntime"
    shutil.copytree(found.submodule_search_locations[0], copy)
    library = next(copy.glob(LIBRARY), None)
    if library is None:
        raise Valle2Error(f"{copy} has no {LIBRARY}; expected the ONNX Runtime of Linux or macOS")
    code = library.read_bytes()
    if ASKED not in code:
        raise Valle2Error(f"{library.name} never runs XGETBV; expected ONNX Runtime 1.32 for x86")
    library.write_bytes(code.replace(ASKED, ANSWERED))
    return library


def main(command: list[str]) -> int:
    """Run a command. Returns its exit status."""
    if not command:
        sys.exit(__doc__)
    with tempfile.TemporaryDirectory() as folder:
        without_avx512(Path(folder))
        path = os.pathsep.join(filter(None, (folder, os.environ.get("PYTHONPATH"))))
        return subprocess.run(command, env={**os.environ, **KERNELS, "PYTHONPATH": path}).returncode


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except Valle2Error as error:
        sys.exit(f"error: {error}")
