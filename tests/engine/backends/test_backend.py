"""Backends: checks of inputs, devices, I/O binding in place, memory, and the test double."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.engine.backends.fake import FakeBackend
from valle2.benchmarks.process_memory import resident_bytes
from valle2.engine import BackendError, GraphSpec, Placement, TensorSpec, open_backend, read_manifest
from valle2.engine.backends.ort.denormals import LIBRARY

SPEC = GraphSpec(
    "add.onnx",
    (TensorSpec("a", "float32", ("n",)), TensorSpec("b", "float32", ("n",))),
    (TensorSpec("sum", "float32", ("n",)),),
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in ("a", "b", "sum")]
    graph = helper.make_graph([helper.make_node("Add", ["a", "b"], ["sum"])], "add", values[:2], values[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, str(tmp_path / SPEC.file))
    return tmp_path


def ones(count: int, dtype: type = np.float32) -> np.ndarray[tuple[int], np.dtype[np.generic]]:
    return np.ones(count, dtype)


def test_run_and_bound_step_write_the_same(folder: Path) -> None:
    with open_backend(folder, SPEC) as backend:
        assert backend.run({"a": ones(3), "b": ones(3)})["sum"].tolist() == [2, 2, 2]
        a, b = backend.buffer((3,), np.float32), backend.buffer((3,), np.float32)
        a.write(ones(3))
        step = backend.bind({"a": a, "b": b}, {"sum": b})
        for expected in (1, 2, 3):
            step()
            assert b.read().tolist() == [expected] * 3


@pytest.mark.skipif(LIBRARY is None, reason="the processor's state is set on x86-64 Linux only")
def test_denormal_numbers_are_zeros_while_a_graph_runs(folder: Path) -> None:
    script = f"""
import numpy as np
from pathlib import Path
from tests.engine.backends.test_backend import SPEC, Placement, open_backend
tiny, none, kept = np.full(4, 1e-39, np.float32), np.zeros(4, np.float32), []
with open_backend(Path({str(folder)!r}), SPEC, Placement(threads=1)) as backend:
    kept.append(float((tiny + none).max()))
    kept.append(float(backend.run({{"a": tiny, "b": none}})["sum"].max()))
    a, b, total = (backend.buffer((4,), np.float32) for _ in "123")
    a.write(tiny)
    backend.bind({{"a": a, "b": b}}, {{"sum": total}})()
    kept += [float(total.read().max()), float((tiny + none).max())]
print(*kept)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    before, run, step, after = map(float, done.stdout.split())
    assert before == after > 0 and run == step == 0


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({"a": ones(3)}, r"missing inputs \['b'\]"),
        ({"a": ones(3), "b": ones(3), "c": ones(3)}, r"unknown inputs \['c'\]"),
        ({"a": ones(3), "b": ones(4)}, r"input b is float32 \(4,\).*'n': 3"),
        ({"a": ones(3), "b": ones(3, np.float64)}, "float64"),
    ],
)
def test_wrong_inputs(
    folder: Path, feeds: dict[str, np.ndarray[tuple[int], np.dtype[np.float32]]], message: str
) -> None:
    with pytest.raises(BackendError, match=message):
        open_backend(folder, SPEC).run(feeds)


def test_devices_are_never_replaced(folder: Path) -> None:
    import onnxruntime

    with pytest.raises(BackendError, match="unknown device 'tpu'"):
        open_backend(folder, SPEC, Placement("tpu"))
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        with pytest.raises(BackendError, match=r"pip install 'valle2\[cuda\]'"):
            open_backend(folder, SPEC, Placement("cuda"))


def test_a_file_that_is_no_graph(folder: Path) -> None:
    (folder / SPEC.file).write_bytes(b"not a graph")
    with pytest.raises(BackendError, match="does not load"):
        open_backend(folder, SPEC)


@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory of a process from /proc")
@pytest.mark.parametrize("operator", ["Expand", "ConstantOfShape"])
def test_a_constant_of_gigabytes_is_not_computed_while_a_graph_opens(tmp_path: Path, operator: str) -> None:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    constants = [
        helper.make_tensor("shape", TensorProto.INT64, [1], [2**28]),
        helper.make_tensor("one", TensorProto.FLOAT, [1], [1.0]),
    ]
    nodes = [
        helper.make_node(operator, ["one", "shape"] if operator == "Expand" else ["shape"], ["big"]),
        helper.make_node("ReduceSum", ["big"], ["sum"]),
        helper.make_node("Add", ["x", "sum"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "big", values[:1], values[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, str(tmp_path / "big.onnx"))
    script = f"""
from pathlib import Path
from valle2.engine import GraphSpec, TensorSpec, open_backend
spec = GraphSpec("big.onnx", (TensorSpec("x", "float32", (1,)),), (TensorSpec("y", "float32", (1,)),))
with open_backend(Path({str(tmp_path)!r}), spec):
    print(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) * 1024 < 2**29, "the greatest resident size; the constant has 1 GiB"


def test_fake_backend_follows_the_interface() -> None:
    fake = FakeBackend(SPEC, lambda feeds: {"sum": feeds["a"] + feeds["b"]})
    assert fake.run({"a": ones(2), "b": ones(2)})["sum"].tolist() == [2, 2]
    a, b = fake.buffer((2,), np.float32), fake.buffer((2,), np.float32)
    a.write(ones(2))
    fake.bind({"a": a, "b": b}, {"sum": b})()
    assert b.read().tolist() == [1, 1]


def test_threads_stop_when_a_graph_returns(folder: Path) -> None:
    """The next graph has threads of its own and needs the cores."""
    rested = []
    with open_backend(folder, SPEC, Placement(threads=2)) as backend:
        for _ in range(3):
            backend.run({"a": ones(2**22), "b": ones(2**22)})
            before = time.process_time()
            time.sleep(0.05)
            rested.append(time.process_time() - before)
    assert min(rested) < 0.01


@pytest.mark.skipif(resident_bytes() is None, reason="the system does not tell the memory of a process")
def test_sessions_share_the_memory_of_intermediates(tmp_path: Path) -> None:
    values = [helper.make_tensor_value_info("a", TensorProto.FLOAT, ["n"])]
    sums = [helper.make_tensor_value_info("sum", TensorProto.FLOAT, [1])]
    nodes = [
        helper.make_node("Add", ["a", "a"], ["twice"]),
        helper.make_node("ReduceSum", ["twice"], ["sum"]),
    ]
    model = helper.make_model(
        helper.make_graph(nodes, "sum", values, sums),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=10,
    )
    onnx.save(model, str(tmp_path / "sum.onnx"))
    spec = GraphSpec("sum.onnx", (TensorSpec("a", "float32", ("n",)),), (TensorSpec("sum", "float32", (1,)),))
    feeds = {"a": ones(2**24)}
    resident = []
    with open_backend(tmp_path, spec) as one, open_backend(tmp_path, spec) as other:
        for backend in (one, other):
            backend.run(feeds)
            resident.append(resident_bytes() or 0)
    assert resident[1] - resident[0] < 2**24 < feeds["a"].nbytes


def test_caches_stay_at_one_address_and_are_updated_in_place(bundle: Path) -> None:
    from valle2.runtime.generation.ar_runner import ARRunner
    from valle2.runtime.generation.sampling import uniforms
    from valle2.runtime.generation.sequence import Sequence
    from valle2.runtime.types import Settings

    manifest = read_manifest(bundle)
    backend = open_backend(bundle, manifest.graphs["ar"])
    slots = ARRunner(backend, manifest.sizes, manifest.cache_length, 3, 10)
    text = np.array([3, 4, manifest.sizes["vocab_size"]])
    row = Sequence(text, np.arange(4), uniforms(0, 0, 12, 2), Settings(top_p=1.0))
    filled = []
    for step in range(12):
        if step:
            slots.step(2, idle=(0,))
        else:
            slots.enter(1, row)
        cache = slots.caches["cache_key_0"].read()
        used = [int((np.abs(rows[0]).sum(axis=1) > 0).sum()) for rows in cache]
        filled.append((cache.ctypes.data, *used))
    assert len({address for address, *_ in filled}) == 1
    assert [used[1] for _, *used in filled] == list(range(6, 18))
    assert {(used[0], used[2]) for _, *used in filled[1:]} == {(1, 0)}  # an idle row does not advance
