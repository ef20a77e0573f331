"""Execution on TensorRT: on doubles that enforce its rules, which are compared with the real modules."""

from __future__ import annotations

import gc
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.engine.backends.trt import trt_double as double
from valle2.engine import BackendError, GraphSpec, TensorSpec, open_backend, read_manifest
from valle2.engine.backends.trt.backend import TrtBackend, open_engine
from valle2.engine.backends.trt.cuda import Cuda, this_gpu

SPEC = GraphSpec(
    "add.onnx",
    (TensorSpec("x", "float32", ("n",)), TensorSpec("cache", "float32", (4,))),
    (
        TensorSpec("out", "float32", ("n",)),
        TensorSpec("cache_out", "float32", (4,)),
        TensorSpec("sized", "float32", ("m",)),
    ),
)
Make = Callable[..., TrtBackend]


def make(
    *, alias: bool = True, capture: bool = True, memory: int = 1 << 20, data: bytes = b"engine"
) -> TrtBackend:
    cudart = double.FakeCudart(memory)
    engine = double.ICudaEngine(cudart, [(1, 1), (2, 8)], alias)
    return TrtBackend(double.FakeTensorRT(engine), Cuda(cudart), SPEC, data, capture=capture)


def bound(backend: TrtBackend, count: int = 1) -> tuple[Any, dict[str, Any]]:
    """A step on buffers of ours, with the cache updated in place."""
    buffers = {name: backend.buffer((size,), np.float32) for name, size in (("x", count), ("cache", 4))}
    buffers |= {name: backend.buffer((size,), np.float32) for name, size in (("out", count), ("sized", 16))}
    buffers["x"].write(np.full(count, 2, np.float32))
    inputs = {name: buffers[name] for name in ("x", "cache")}
    outputs = {"out": buffers["out"], "cache_out": buffers["cache"], "sized": buffers["sized"]}
    return backend.bind(inputs, outputs), buffers


@pytest.mark.parametrize("alias", [True, False], ids=["in place", "copied back"])
@pytest.mark.parametrize("capture", [True, False])
def test_steps_update_the_cache_and_are_captured_once(alias: bool, capture: bool) -> None:
    backend = make(alias=alias, capture=capture)
    step, buffers = bound(backend)
    for index in range(5):
        step()
        assert buffers["out"].read()[0] == 2 + 2 * (index + 1)
        assert buffers["cache"].read().tolist() == [2.0 * (index + 1), 0, 0, 0]
    log = backend.cuda.cudart.log
    assert log.count("enqueue") == (2 if capture else 5)
    assert log.count("launch") == (4 if capture else 0)
    assert log.count("copy3") == (0 if alias else 2 if capture else 5)


def test_run_allocates_and_reads_an_output_whose_size_is_only_known_afterwards() -> None:
    backend = make()
    found = backend.run({"x": np.array([3, 0], np.float32), "cache": np.ones(4, np.float32)})
    assert found["out"].tolist() == [7, 4] and found["cache_out"].tolist() == [4, 1, 1, 1]
    assert found["sized"].tolist() == [3, 3, 3]


def test_the_profile_is_chosen_by_shape_and_a_shape_outside_is_refused() -> None:
    backend = make()
    assert [backend.loaded.profile_for({"x": (n,), "cache": (4,)}) for n in (1, 2, 8)] == [0, 1, 1]
    with pytest.raises(
        BackendError, match=r"input x is \(9,\); the engine takes \(1,\) to \(1,\), \(2,\) to \(8,\)"
    ):
        bound(backend, 9)


def test_an_in_place_cache_cannot_have_two_buffers() -> None:
    backend = make()
    inputs = {name: backend.buffer((size,), np.float32) for name, size in (("x", 1), ("cache", 4))}
    with pytest.raises(BackendError, match="cache_out is updated in place; bind it to the buffer of cache"):
        backend.bind(inputs, {"cache_out": backend.buffer((4,), np.float32)})


def test_a_missing_input_is_named() -> None:
    backend = make()
    with pytest.raises(BackendError, match=r"inputs \['cache'\] are not bound"):
        backend.bind({"x": backend.buffer((1,), np.float32)}, {})


def test_too_little_memory_is_an_error_and_memory_is_freed() -> None:
    backend = make(memory=1000)
    with pytest.raises(
        BackendError, match=r"cudaMalloc failed with cudaErrorMemoryAllocation; free device memory"
    ):
        backend.buffer((1000,), np.float32)
    for _ in range(20):
        step, buffers = bound(backend)
        step()
        del step, buffers
        gc.collect()
    assert not backend.cuda.cudart.held


def test_calls_that_end_return_their_context_for_the_next() -> None:
    backend = make()
    feeds = {"x": np.array([3], np.float32), "cache": np.ones(4, np.float32)}
    for count in (1, 2, 1, 8, 1):
        step, _ = bound(backend, count)
        step()
        del step
        assert backend.run(feeds)["sized"].tolist() == [3, 3, 3]
    assert backend.loaded.engine.contexts == 1
    first, second = bound(backend)[0], bound(backend)[0]
    first()
    second()
    assert backend.loaded.engine.contexts == 2 and first.context is not second.context
    backend.close()
    assert not backend.loaded.contexts


def test_a_context_keeps_no_allocator_of_an_earlier_call() -> None:
    backend = make()
    backend.run({"x": np.array([3], np.float32), "cache": np.ones(4, np.float32)})
    step, buffers = bound(backend)
    for _ in range(3):
        step()
    assert backend.loaded.engine.contexts == 1 and backend.cuda.cudart.log.count("launch") == 2
    assert buffers["sized"].read()[:2].tolist() == [2, 2]


def test_a_failed_call_is_an_error_and_the_next_one_works() -> None:
    backend = make()
    step, buffers = bound(backend)
    step()
    backend.loaded.engine.fails = True
    with pytest.raises(BackendError, match=r"add\.onnx failed"):
        step()
    backend.loaded.engine.fails = False
    step()
    step()
    assert buffers["cache"].read()[0] == 6


@pytest.mark.parametrize("alias", [True, False], ids=["in place", "copied back"])
def test_rows_off_the_alignment_are_copied_and_other_rows_left(alias: bool) -> None:
    backend = make(alias=alias)
    whole = {
        name: backend.buffer((3, size), np.float32) for name, size in (("x", 1), ("cache", 4), ("out", 1))
    }
    whole["x"].write(np.array([[1], [2], [3]], np.float32))
    flat = {}
    for name, buffer in whole.items():
        flat[name] = buffer.rows(slice(1, 2))
        flat[name].shape = flat[name].shape[1:]
    step = backend.bind(
        {"x": flat["x"], "cache": flat["cache"]}, {"out": flat["out"], "cache_out": flat["cache"]}
    )
    for index in range(3):
        step()
        assert whole["out"].read().tolist() == [[0], [2 + 2 * (index + 1)], [0]]
        assert whole["cache"].read()[:, 0].tolist() == [0, 2 * (index + 1), 0]


def test_views_share_memory_and_wrong_values_are_refused() -> None:
    backend = make()
    buffer = backend.buffer((2, 3), np.float32)
    buffer.view((3,)).write(np.arange(3, dtype=np.float32))
    assert buffer.read()[0].tolist() == [0, 1, 2] and not buffer.read()[1].any()
    with pytest.raises(BackendError, match="does not fit a buffer"):
        buffer.view((7,))
    with pytest.raises(BackendError, match=r"values are int64 \(2,\); expected float32 \(2, 3\)"):
        buffer.write(np.zeros(2, np.int64))
    assert backend.buffer((3,), "bfloat16").size == 6


def test_a_damaged_engine_is_refused() -> None:
    with pytest.raises(BackendError, match="TensorRT does not take its engine: magic tag does not match"):
        make(data=b"engi")


def test_closing_frees_the_captures() -> None:
    backend = make()
    step, _ = bound(backend)
    step()
    step()
    backend.close()
    assert backend.cuda.cudart.log.count("drop") == 1
    assert step.context is None


def test_the_real_modules_have_every_call_of_the_doubles() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX: pip install tensorrt-rtx-cu13")
    for name in ("Runtime", "ICudaEngine", "IExecutionContext"):
        used = [n for n, _ in inspect.getmembers(getattr(double, name), inspect.isfunction) if n[0] != "_"]
        used = [n for n in used if n != "compute"]
        assert used and all(hasattr(getattr(trt, name), n) for n in used), name
        for method in used:
            expected = list(inspect.signature(getattr(getattr(double, name), method)).parameters)[1:]
            text = getattr(getattr(trt, name), method).__doc__ or ""
            if "Overloaded" not in text:
                assert text.split("\n")[0].count(": ") == len(expected) + 1, (method, text.split("\n")[0])
    assert trt.ILogger and trt.IOutputAllocator and hasattr(trt.ICudaEngine, "num_optimization_profiles")


def test_the_real_cuda_module_has_every_call_of_the_double() -> None:
    real = pytest.importorskip("cuda.bindings.runtime", reason="needs cuda-python: pip install cuda-bindings")
    used = [name for name in vars(double.FakeCudart) if name.startswith("cuda")]
    assert len(used) > 12 and all(hasattr(real, name) for name in used)
    assert real.cudaMemcpyKind.cudaMemcpyDeviceToDevice is not None
    assert real.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal is not None


def test_without_a_gpu_an_engine_is_not_opened(fixed_bundles: dict[str, Path]) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX: pip install tensorrt-rtx-cu13")
    if this_gpu() is not None:
        pytest.skip("this machine has a GPU")
    with pytest.raises(BackendError, match=r"no CUDA GPU was found here; tensorrt-rtx needs one"):
        open_engine(fixed_bundles["portable"], "ar", "tensorrt-rtx")


@pytest.mark.gpu
def test_an_engine_gives_the_numbers_of_onnx_runtime(fixed_bundles: dict[str, Path], tmp_path: Path) -> None:
    if this_gpu() is None:
        pytest.skip("needs a CUDA GPU")
    pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX: pip install tensorrt-rtx-cu13")
    import shutil

    from valle2.engine.build.tensorrt import build_engine

    folder = Path(shutil.copytree(fixed_bundles["portable"], tmp_path / "toy"))
    build_engine(folder, "tensorrt-rtx", precision="fp32")
    feeds = {"codes": np.random.default_rng(0).integers(0, 1024, (1, 30, 8))}
    graphs = read_manifest(folder).graphs
    expected = open_backend(folder, graphs["codec_decoder"]).run(feeds)["audio"]
    found = open_engine(folder, "codec_decoder", "tensorrt-rtx").run(feeds)["audio"]
    assert np.abs(found - expected).max() < 1e-2 * max(1.0, float(np.abs(expected).max()))
