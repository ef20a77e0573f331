"""Engines are built without a GPU, named by all that they depend on, and refused if they do not fit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from valle2.engine import BackendError, read_manifest
from valle2.engine.backends.trt.api import load
from valle2.engine.build.tensorrt import build_engine, check_gpus
from valle2.engine.bundle.artifacts import build_folder, source_hash
from valle2.engine.bundle.engine_files import engine_records, find_engine
from valle2.engine.bundle.profiles import Limits
from valle2.engine.errors import Valle2Error
from valle2.runtime.cli.main import build_parser

RTX = "tensorrt-rtx"
REASON = "needs TensorRT-RTX: pip install tensorrt-rtx-cu13"


@pytest.fixture(scope="session")
def built(fixed_bundles: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy bundle with its engines for one GPU, which tests must not change."""
    pytest.importorskip("tensorrt_rtx", reason=REASON)
    folder = Path(shutil.copytree(fixed_bundles["portable"], tmp_path_factory.mktemp("built") / "toy"))
    build_engine(folder, RTX, gpus=["sm89"], limits=Limits(2))
    return folder


@pytest.fixture
def copied(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "toy"))


def wanted(folder: Path, graph: str = "nar", **changes: str) -> dict[str, str]:
    """The engine that a runtime on an SM89 asks for."""
    return {
        "target": RTX,
        "graph": graph,
        "source": source_hash(read_manifest(folder), graph),
        "precision": "fp16",
        "version": str(load(RTX).__version__),
        "gpu": "sm89",
    } | changes


def test_every_graph_gets_an_engine(built: Path) -> None:
    found = engine_records(build_folder(built, RTX))
    kinds = {record.key["graph"]: record.key["precision"] for record in found.values()}
    assert kinds == {"ar": "fp16", "nar": "fp16", "codec_encoder": "fp32", "codec_decoder": "fp32"}
    ar = next(record for record in found.values() if record.key["graph"] == "ar")
    assert ar.profile_names == ["step", "batch_step", "prefill"]
    types = {tensor.name: tensor.dtype for tensor in ar.spec.inputs}
    assert types["cache_key_0"] == "float16" and types["uniforms"] == "float32" and types["text"] == "int64"
    read_manifest(built)


def test_a_second_build_keeps_what_fits(copied: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in build_folder(copied, RTX).glob("*.engine")}
    said: list[str] = []
    build_engine(copied, RTX, gpus=["SM89"], limits=Limits(2), progress=said.append)
    assert all("up to date" in line for line in said)
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize(
    "gpu, lowering",
    [("sm80", "portable"), ("sm86", "portable"), ("sm120", "portable"), ("sm86", "primitive")],
)
def test_a_bundle_builds_for_other_gpus(
    fixed_bundles: dict[str, Path], tmp_path: Path, gpu: str, lowering: str
) -> None:
    pytest.importorskip("tensorrt_rtx", reason=REASON)
    folder = Path(shutil.copytree(fixed_bundles[lowering], tmp_path / "toy"))
    found = build_engine(folder, RTX, gpus=[gpu], limits=Limits(1, 100), workspace=64)
    assert {record.key["graph"] for record in found} == {"ar", "nar", "codec_encoder", "codec_decoder"}
    assert all(record.key["gpu"] == gpu for record in found)


def test_the_engine_that_fits_is_found(built: Path) -> None:
    path, record = find_engine(built, wanted(built))
    assert path.is_file() and record.key["graph"] == "nar"


@pytest.mark.parametrize(
    "change, expected",
    [
        ({"gpu": "sm120"}, "was built for sm89, and this GPU is sm120"),
        ({"version": "9.9"}, "was built with tensorrt-rtx .*, and this is 9.9"),
        ({"source": "0"}, "was built from another graph than this bundle's"),
        ({"precision": "bf16"}, "has precision fp16, and bf16 was asked for"),
    ],
)
def test_a_foreign_engine_is_refused_with_the_command(
    built: Path, change: dict[str, str], expected: str
) -> None:
    asked = wanted(built, **change)
    with pytest.raises(BackendError, match=expected) as error:
        find_engine(built, asked)
    assert f"--precision {asked['precision']} --gpu {asked['gpu']}" in str(error.value)


def test_a_truncated_engine_is_refused_and_built_again(copied: Path) -> None:
    path, _ = find_engine(copied, wanted(copied))
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(BackendError, match=r"damaged or cut off .*; build it with: valle2 build"):
        find_engine(copied, wanted(copied))
    build_engine(copied, RTX, gpus=["sm89"], limits=Limits(2))
    assert find_engine(copied, wanted(copied))[0] == path


def test_no_engine_and_a_broken_record(copied: Path) -> None:
    for record in build_folder(copied, RTX).glob("nar-*.json"):
        record.write_text(json.dumps({"key": 1}))
    with pytest.raises(BackendError, match=r"has no engine of graph nar; build it with: valle2 build"):
        find_engine(copied, wanted(copied))


def test_every_engine_has_a_file_of_its_own_and_is_kept(built: Path) -> None:
    keys = [record.key for record in engine_records(build_folder(built, RTX)).values()]
    names = {path.name for path in build_folder(built, RTX).glob("*.engine")}
    assert len(names) == len(keys) == 4
    again = build_engine(built, RTX, gpus=["sm89"], limits=Limits(2))
    assert sorted(r.sha256 for r in again) == sorted(
        r.sha256 for r in engine_records(build_folder(built, RTX)).values()
    )


def test_a_bundle_for_onnx_runtime_is_refused(bundle: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason=REASON)
    with pytest.raises(
        BackendError, match=r"the lowering ort; tensorrt-rtx [\d.]+ takes portable or primitive"
    ):
        build_engine(bundle, RTX, gpus=["sm89"])


def test_gpus_and_targets_that_cannot_be_built_for(
    fixed_bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("valle2.engine.backends.trt.cuda.this_gpu", lambda: None)
    with pytest.raises(BackendError, match="does not build for sm42; expected some of sm75"):
        check_gpus(RTX, ("sm42",))
    with pytest.raises(BackendError, match=r"no CUDA GPU was found here.*name the GPUs with --gpu"):
        check_gpus(RTX, ())
    with pytest.raises(BackendError, match=r"no CUDA GPU was found here.*build on the device that runs it"):
        check_gpus("tensorrt", ("sm87",))
    monkeypatch.setattr("valle2.engine.backends.trt.cuda.this_gpu", lambda: "sm90")
    with pytest.raises(BackendError, match=r"tensorrt-rtx does not run on this GPU, sm90; it takes sm75, "):
        check_gpus(RTX, ())
    monkeypatch.setattr("valle2.engine.backends.trt.cuda.this_gpu", lambda: "sm87")
    assert check_gpus("tensorrt", ()) == ("sm87",) == check_gpus("tensorrt", ("sm87",))
    with pytest.raises(BackendError, match="builds for this GPU, sm87, alone"):
        check_gpus("tensorrt", ("sm80",))
    with pytest.raises(BackendError, match="unknown target 'tpu'; expected one of tensorrt, tensorrt-rtx"):
        build_engine(fixed_bundles["portable"], "tpu")


def test_an_absent_tensorrt_names_what_installs_it(
    monkeypatch: pytest.MonkeyPatch, fixed_bundles: dict[str, Path]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tensorrt", None)
    with pytest.raises(BackendError, match=r"tensorrt is not available .*pip install 'valle2\[tensorrt\]'"):
        build_engine(fixed_bundles["portable"], "tensorrt")


def test_the_command(built: Path) -> None:
    parser = build_parser()
    try:
        words = ["build", str(built), "--target", RTX, "--gpu", "sm89", "--max-batch", "2", "--json"]
        args = parser.parse_args(words)
    except SystemExit:
        pytest.skip("the installed valle2 is older than this command; install it again")
    result = args.run(args, lambda message: None)
    assert [row["graph"] for row in result["engines"]] == ["ar", "codec_decoder", "codec_encoder", "nar"]
    args.workspace = -1
    with pytest.raises(Valle2Error, match="--workspace is -1"):
        args.run(args, lambda message: None)
