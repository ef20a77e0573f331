"""Providers of ONNX Runtime: the table, its options, and graphs with fallback nodes."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, save_model

from valle2.engine import BackendError, GraphSpec, Placement, TensorSpec, open_backend, read_manifest
from valle2.engine.backends.ort.providers import (
    CACHE,
    CPU,
    HOST_TYPES,
    PROVIDERS,
    RECORD_ASSIGNMENT,
    Provider,
    check_fallback_nodes,
    find_provider,
    provider_options,
)
from valle2.engine.backends.ort.session import OrtBackend
from valle2.runtime import Valle2

SPEC = GraphSpec("mul.onnx", (TensorSpec("x", "float32", (2, 2)),), (TensorSpec("y", "float32", (2, 2)),))
CUDA = PROVIDERS["ort", "cuda"].name
FILLING = frozenset(["ConstantOfShape", "Expand", "Range"])
"""Operators that fill memory of the device; their size lies on the host."""
COMPUTES = frozenset(["Add", "Sub", "Mul", "Clip", "Where", "Min", "Max", "Less", "Greater", "Equal"])
FALLBACK = Placement("cuda", fallback=True)
OTHER = "AzureExecutionProvider"
"""It is in every build for CPUs, and takes no operator of ONNX."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 2]) for name in "xy")
    nodes = [helper.make_node("Shape", ["x"], ["size"]), helper.make_node("MatMul", ["x", "x"], ["z"])]
    nodes.append(helper.make_node("Reshape", ["z", "size"], ["y"]))
    graph = helper.make_graph(nodes, "mul", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    save_model(model, str(tmp_path / SPEC.file))
    return tmp_path


@pytest.fixture
def other(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put a real provider that takes no node in the place of CUDA's."""
    if OTHER not in onnxruntime.get_available_providers():
        pytest.skip(f"this ONNX Runtime has no {OTHER}")
    monkeypatch.setitem(PROVIDERS, ("ort", "cuda"), Provider(OTHER, "x"))
    yield


def test_nodes_that_another_provider_runs_are_listed(folder: Path, other: None) -> None:
    with pytest.raises(BackendError) as error:
        open_backend(folder, SPEC, Placement("cuda"))
    assert str(error.value) == (
        f"mul.onnx: {OTHER} leaves 1 nodes to other providers: 1 MatMul ({CPU}); "
        "take another lowering or engine, or allow it with fallback=True"
    )


def test_fallback_nodes_run_if_that_is_allowed(folder: Path, other: None) -> None:
    feeds = {"x": np.array([[1, 2], [3, 4]], np.float32)}
    with open_backend(folder, SPEC, FALLBACK) as backend:
        assert backend.run(feeds)["y"].tolist() == [[7, 10], [15, 22]]


def test_every_heavy_operator_of_a_bundle_is_seen(fixed_bundles: dict[str, Path], other: None) -> None:
    folder = fixed_bundles["portable"]
    with pytest.raises(BackendError, match=r"\d+ Attention .*\d+ MatMul .*\d+ TensorScatter"):
        open_backend(folder, read_manifest(folder).graphs["ar"], Placement("cuda"))
    with pytest.raises(BackendError, match=r"leaves .* nodes to other providers"):
        Valle2.load(folder, device="cuda")


def test_a_bundle_of_the_cpu_names_the_lowering_for_cuda(bundle: Path) -> None:
    message = r"lowering ort; ort on cuda takes portable or primitive: export it with .*--lowering portable"
    for precision in ("fp32", "fp16"):
        with pytest.raises(BackendError, match=message):
            Valle2.load(bundle, device="cuda", precision=precision)


def test_one_provider_that_runs_all_leaves_no_fallback_nodes(folder: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry(RECORD_ASSIGNMENT, "1")
    session = onnxruntime.InferenceSession(str(folder / SPEC.file), options, providers=[CPU])
    check_fallback_nodes(SPEC.file, session, CPU)
    assert sum(len(part.get_nodes()) for part in session.get_provider_graph_assignment_info()) >= 1


def test_absent_providers_and_unknown_devices() -> None:
    with pytest.raises(BackendError, match=r"no CUDAExecutionProvider\); install it with: pip install"):
        find_provider("ort", "cuda", [CPU])
    with pytest.raises(BackendError, match="unknown device 'cpu' for engine 'ort-tensorrt'; expected 'cuda'"):
        Placement("cpu", "ort-tensorrt")
    with pytest.raises(BackendError, match="unknown device 'tpu' for engine 'ort'; expected 'cpu' or 'cuda'"):
        Placement("tpu")


def test_every_name_is_one_that_onnx_runtime_knows() -> None:
    known = {*onnxruntime.get_all_providers(), "NvTensorRTRTXExecutionProvider"}
    assert {provider.name for provider in PROVIDERS.values()} <= known


def test_compiled_engines_lie_in_the_bundle(tmp_path: Path) -> None:
    for (engine, _), provider in PROVIDERS.items():
        found = provider_options(provider, tmp_path, engine)
        assert CACHE not in found.values() and all(isinstance(value, str) for value in found.values())
        cached = str(tmp_path / "engines" / engine) in found.values()
        assert cached == (tmp_path / "engines" / engine).is_dir() == engine.startswith("ort-")


def test_a_bundle_that_the_provider_cannot_take(bundle: Path, fixed_bundles: dict[str, Path]) -> None:
    with pytest.raises(BackendError, match="lowering ort; ort-tensorrt on cuda takes portable"):
        Valle2.load(bundle, device="cuda", engine="ort-tensorrt")
    with pytest.raises(BackendError, match="leave precision 'fp16' out"):
        Valle2.load(fixed_bundles["portable"], device="cuda", engine="ort-tensorrt-rtx", precision="fp16")
    with pytest.raises(BackendError, match="has no NvTensorRTRTXExecutionProvider"):
        Valle2.load(fixed_bundles["portable"], device="cuda", engine="ort-tensorrt-rtx")


@pytest.mark.parametrize("lowering", ["portable", "primitive"])
def test_no_size_is_data_in_a_step(fixed_bundles: dict[str, Path], lowering: str) -> None:
    """A size that is combined with data is copied to the device at every step, which forbids CUDA graphs."""
    model = onnx.load(fixed_bundles[lowering] / "ar.onnx", load_external_data=False)
    known = {weight.name for weight in model.graph.initializer}
    sizes, mixed = set[str](), []
    for node in model.graph.node:
        taken = [name for name in node.input if name and name not in known]
        if node.op_type == "Constant":
            known |= set(node.output)
        elif node.op_type == "Shape" or (
            taken and sizes.issuperset(taken) and node.op_type in HOST_TYPES - FILLING
        ):
            sizes |= set(node.output)
        elif sizes.intersection(taken) and node.op_type in COMPUTES:
            mixed.append(f"{node.op_type} {node.name}")
    assert len(sizes) > 3 and not mixed


def test_a_graph_that_cannot_be_captured_runs_without_capture(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    class Session:
        def __init__(self, path: str, options: object, providers: list[tuple[str, dict[str, str]]]) -> None:
            (_, given), *_ = providers
            tried.append(given.get("enable_cuda_graph"))
            if given.get("enable_cuda_graph"):
                raise RuntimeError(
                    "This session cannot use the graph capture feature as requested by the user"
                )

        def get_providers(self) -> list[str]:
            return [CUDA]

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA])
    made = open_backend(folder, SPEC, FALLBACK, stepped=True)
    assert isinstance(made, OrtBackend)
    assert tried == ["1", None] and made.run_options(1) is None
    open_backend(folder, SPEC, FALLBACK)
    assert tried[2:] == [None]


@pytest.mark.parametrize(
    ("file", "strict"), [("ar_step.onnx", True), ("nar_row.onnx", True), ("ar.onnx", False)]
)
def test_graphs_of_fused_operators_normalise_in_float32(
    folder: Path, monkeypatch: pytest.MonkeyPatch, file: str, strict: bool
) -> None:
    """Without the option an older CUDA kernel sums the squares of a row in float16, and returns zeros."""
    given: list[dict[str, str]] = []

    class Session:
        def __init__(self, *_: object, providers: list[tuple[str, dict[str, str]]]) -> None:
            given.append(providers[0][1])

        def get_providers(self) -> list[str]:
            return [CUDA]

        def get_provider_graph_assignment_info(self) -> list[object]:
            return []

    (folder / SPEC.file).rename(folder / file)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA])
    OrtBackend(folder, replace(SPEC, file=file), Placement("cuda"))
    assert (given[0].get("enable_skip_layer_norm_strict_mode") == "1") == strict


def test_a_captured_call_names_its_graph_from_the_second_time_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = open_backend(folder, SPEC)
    assert isinstance(backend, OrtBackend)
    backend.captures_calls = True  # the provider for CPUs ignores the number
    numbers, made = [], backend.session.io_binding

    def note(binding: object, options: onnxruntime.RunOptions) -> None:
        numbers.append(options.get_run_config_entry("gpu_graph_id"))

    class Session:
        run_with_iobinding = staticmethod(note)
        io_binding = made

    monkeypatch.setattr(backend, "session", Session)
    for _ in range(2):
        x, y = backend.buffer((2, 2), np.float32), backend.buffer((2, 2), np.float32)
        step = backend.bind({"x": x}, {"y": y})
        for _ in range(3):
            step()
    assert numbers == ["-1", "1", "1", "-1", "2", "2"]


def test_two_onnx_runtimes_are_named_with_the_one_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pip fills one folder from both packages, and the one for CPUs was installed last."""
    for name in ("onnxruntime", "onnxruntime_gpu"):
        folder = tmp_path / f"{name}-1.32.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name.replace('_', '-')}\nVersion: 1.32.0\n"
        )
    monkeypatch.syspath_prepend(str(tmp_path))
    command = "pip install --force-reinstall --no-deps onnxruntime-gpu"
    with pytest.raises(BackendError, match=command):
        find_provider("ort", "cuda", [CPU])
    assert find_provider("ort", "cuda", [CPU, "CUDAExecutionProvider"]).name == "CUDAExecutionProvider"
    from valle2.runtime.cli import doctor

    def state() -> str:
        found: str = doctor.run(argparse.Namespace(), lambda message: None)["can run"]["cuda"]
        return found

    assert command in state() and "installed last" in state()
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider", CPU])
    assert state().startswith("ready") and "onnxruntime is installed too" in state() and command in state()


@pytest.mark.parametrize(
    "version, expected",
    [
        ("1.32.0", "ready"),
        ("1.31.1", "ready, but only for bundles with the lowering portable or primitive; onnxruntime 1.32"),
        ("1.23.2", "ready, but only for bundles with the lowering primitive; onnxruntime 1.32"),
        ("1.22.0", "onnxruntime 1.22.0 is too old; install 1.23 or newer"),
    ],
)
def test_doctor_says_what_an_older_onnx_runtime_runs(
    version: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from valle2.runtime.cli import doctor

    monkeypatch.setattr(onnxruntime, "__version__", version)
    assert doctor.run(argparse.Namespace(), lambda message: None)["can run"]["cpu"].startswith(expected)
