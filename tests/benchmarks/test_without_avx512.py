"""The copy of ONNX Runtime that takes the kernels of AVX2."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from valle2.benchmarks.without_avx512 import ANSWERED, ASKED, KERNELS, main, without_avx512
from valle2.engine.errors import Valle2Error

pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64") or sys.platform == "win32",
    reason="AVX-512 belongs to x86, and the copy is made on Linux and macOS",
)
PRODUCT = """
import numpy as np, onnxruntime, onnx.helper as h
from onnx import TensorProto as T
info = [h.make_tensor_value_info(n, t, [64, 64]) for n, t in (("x", T.UINT8), ("w", T.INT8), ("y", T.INT32))]
graph = h.make_graph([h.make_node("MatMulInteger", ["x", "w"], ["y"])], "g", info[:2], info[2:])
model = h.make_model(graph, opset_imports=[h.make_opsetid("", 18)], ir_version=9)
session = onnxruntime.InferenceSession(model.SerializeToString())
x = np.arange(4096).reshape(64, 64) % 128
found = session.run(None, {"x": x.astype(np.uint8), "w": (x - 64).astype(np.int8)})[0]
assert (found == x @ (x - 64)).all()
print(onnxruntime.__file__)
"""


def test_a_command_runs_with_the_copy() -> None:
    code = f"import sys; sys.path = [p for p in sys.path if p]\n{PRODUCT}"
    took = subprocess.run(
        [sys.executable, "-m", "valle2.benchmarks.without_avx512", sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
    )
    assert not Path(took.stdout.strip()).exists() and "onnxruntime" in took.stdout


def test_only_the_answer_to_the_question_changes(tmp_path: Path) -> None:
    import onnxruntime

    changed = without_avx512(tmp_path)
    before = Path(onnxruntime.__file__).parent.joinpath("capi", changed.name).read_bytes()
    after = changed.read_bytes()
    assert ASKED in before and ASKED not in after and len(ASKED) == len(ANSWERED)
    assert before.replace(ASKED, ANSWERED) == after


def test_the_status_of_the_command_is_kept() -> None:
    assert main([sys.executable, "-c", "import sys; sys.exit(7)"]) == 7
    check = "import os, sys; sys.exit(os.environ.get('ATEN_CPU_CAPABILITY') != 'avx2')"
    assert main([sys.executable, "-c", check]) == 0 and "avx2" in KERNELS.values()
    assert os.environ.get("ATEN_CPU_CAPABILITY") != "avx2"


def test_a_library_that_does_not_ask_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / "fake" / "onnxruntime" / "capi" / "onnxruntime_pybind11_state.so"
    library.parent.mkdir(parents=True)
    library.write_bytes(b"no question")
    (library.parents[1] / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path / "fake"))
    monkeypatch.delitem(sys.modules, "onnxruntime", raising=False)
    with pytest.raises(Valle2Error, match="never runs XGETBV"):
        without_avx512(tmp_path / "copy")
