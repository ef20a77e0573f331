"""8-bit weights made at first use: the same bytes as a build's, made once, by one of many, or not at all."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import edit_manifest
from valle2.benchmarks.stages import load_model
from valle2.engine import BackendError, Placement, find_graphs, read_manifest
from valle2.engine.build.ort import BuildOptions, build_graphs
from valle2.engine.bundle.files import sha256
from valle2.engine.bundle.precisions import cached_folder, graph_folder, recipe_folder
from valle2.engine.derived import cache
from valle2.engine.derived.recipe import CONSTANTS, FILE, parse_recipe, read_recipe
from valle2.engine.errors import Valle2Error
from valle2.runtime import Settings, Valle2
from valle2.runtime.cli.main import main
from valle2.runtime.tts import find_model

SPEAK = """
import sys, onnxruntime
sys.modules["onnx"] = sys.modules["torch"] = None
from valle2.runtime import Settings, Valle2
tts = Valle2.load(sys.argv[1], precision="int8", threads=1)
print(tts.precision, tts.synthesize("hello", tts.voice("amber"), Settings(max_frames=8)).codes.sum())
"""


@pytest.fixture(scope="module", params=["int8", "int4"])
def made(request: pytest.FixtureRequest, bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with a recipe of one precision."""
    folder = tmp_path_factory.mktemp("recipe") / "toy"
    shutil.copytree(bundle, folder)
    build_graphs(folder, request.param, BuildOptions(recipe=True))
    return folder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache folder."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    yield folder
    if folder.exists():
        folder.chmod(0o755)


@pytest.fixture
def toy(bundle: Path, tmp_path: Path, home: Path) -> Path:
    """A bundle of one's own with a recipe of int8, and an empty cache."""
    folder = tmp_path / "toy"
    shutil.copytree(bundle, folder)
    build_graphs(folder, "int8", BuildOptions(recipe=True))
    return folder


def precision_of(folder: Path) -> str:
    (recipe,) = (folder / "engines").iterdir()
    return recipe.name.split("-")[1]


def resolved(folder: Path, precision: str = "int8") -> str:
    return Placement(precision=precision, threads=1).resolve(folder, read_manifest(folder))[0].precision


def kept(folder: Path, precision: str = "int8") -> Path:
    return cached_folder(read_manifest(folder), precision)


def test_the_same_bytes_as_a_build(made: Path, tmp_path: Path, home: Path) -> None:
    precision = precision_of(made)
    assert not list(recipe_folder(made, precision).glob("*.weights"))
    assert resolved(made, precision) == precision
    built = tmp_path / "built"
    shutil.copytree(made, built)
    build_graphs(built, precision)
    folder = graph_folder(built, precision, "ort")
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted(path.name for path in kept(made, precision).iterdir())
    assert all(sha256(folder / name) == sha256(kept(made, precision) / name) for name in names)
    assert resolved(built, precision) == precision
    found = find_graphs(built, read_manifest(built), precision)
    assert found["ar"].folder == folder, "what was built goes before what a recipe makes"


def test_it_speaks_without_onnx_and_torch(toy: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The first process makes the weights and says so once; the second finds them."""
    runs = [
        subprocess.run([sys.executable, "-c", SPEAK, str(toy)], capture_output=True, text=True, check=True)
        for _ in "12"
    ]
    assert runs[0].stdout == runs[1].stdout and runs[0].stdout.startswith("int8 ")
    line = f"making the int8 weights of {read_manifest(toy).name} in {kept(toy)}, once"
    assert line in runs[0].stderr.splitlines() and line not in runs[1].stderr


def test_it_is_the_default_of_a_cpu(toy: Path, bundle: Path) -> None:
    for _ in "before, after":
        assert resolved(toy, "auto") == "int8"
    assert resolved(toy, "fp32") == "fp32"
    assert resolved(bundle, "auto") == "fp32", "without a recipe"


def test_the_default_where_nothing_can_be_kept(
    toy: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home.write_text("a file where the cache folder would be")
    assert main(["say", "hello there", "-o", str(toy / "a.wav"), "--model", str(toy), "--json"]) == 0
    found = capsys.readouterr()
    assert json.loads(found.out)["precision"] == "fp32"


def test_processes_at_the_same_time(toy: Path, home: Path) -> None:
    command = [sys.executable, "-c", SPEAK, str(toy)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: subprocess.run(command, capture_output=True, text=True), range(4)))
    assert {run.returncode for run in found} == {0}, [run.stderr for run in found]
    assert len({run.stdout for run in found}) == 1 and found[0].stdout.startswith("int8 ")
    assert [path.name for path in (home / "valle2" / "graphs").iterdir()] == [kept(toy).name]


def test_the_first_of_two_stays(toy: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process makes the folder while this one does."""
    fill = cache.fill
    inside = list[int]()

    def slow(made: Path, *rest: Any) -> None:
        fill(made, *rest)
        if not inside:
            inside.append(0)
            assert resolved(toy) == "int8"
            inside[0] = kept(toy).stat().st_ino

    with monkeypatch.context() as patched:
        patched.setattr(cache, "fill", slow)
        assert resolved(toy) == "int8"
    assert inside == [kept(toy).stat().st_ino], "whoever reads the first one must never find it gone"
    assert [path.name for path in kept(toy).parent.iterdir()] == [kept(toy).name]


@pytest.mark.parametrize("damage", ["cut", "changed", "gone", "record"])
def test_damaged_weights_are_made_again(toy: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    assert resolved(toy) == "int8"
    weights, record = kept(toy) / "ar.weights", kept(toy) / "build.json"
    whole = weights.read_bytes()
    if damage == "cut":
        weights.write_bytes(whole[:100])
    elif damage == "changed":
        weights.write_bytes(whole[:100] + b"?" + whole[101:])
    elif damage == "gone":
        weights.unlink()
    else:
        record.write_text("{}")
    caplog.clear()
    assert resolved(toy) == "int8" and "making the int8 weights" in caplog.text
    assert weights.read_bytes() == whole


def test_a_folder_that_cannot_be_written(
    toy: Path, home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One line says why, and speech goes on in float32."""
    home.write_text("a file, where a folder has to be")
    check_float32(toy, "File exists|Not a directory", caplog)
    with pytest.raises(Valle2Error, match=r"int8 was asked for and .* runs in fp32; set XDG_CACHE_HOME"):
        load_model(toy, precision="int8", threads=1)
    home.unlink()
    assert load_model(toy, precision="int8", threads=1).precision == "int8"
    shutil.rmtree(home)
    for name in ("HOME", "USERPROFILE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    check_float32(toy, "the home folder is unknown", caplog)


def no_home() -> Path:
    raise RuntimeError("no home")


def test_a_full_disk(
    toy: Path, home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(cache, "fill", full)
    check_float32(toy, "No space left on device", caplog)
    assert not list((home / "valle2" / "graphs").iterdir()), "no parts are left behind"


def check_float32(toy: Path, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.clear()
    with caplog.at_level(logging.WARNING), Valle2.load(toy, precision="int8", threads=1) as tts:
        assert tts.precision == "fp32"
        assert len(tts.synthesize("hello", tts.voice("amber"), Settings(max_frames=8)).codes)
    lines = [line for line in caplog.messages if "cannot be kept" in line]
    assert len(lines) == 1 and "running" in lines[0] and "fp32" in lines[0]
    assert any(part in lines[0] for part in reason.split("|")), lines


Change = Callable[[dict[str, Any]], object]
CHANGES: list[Change] = [
    lambda made: made["ar.weights"].update(source="../other"),
    lambda made: made["ar.weights"].update(bytes=2**40),
    lambda made: made["ar.weights"]["parts"][0].update(kind="run"),
    lambda made: made["ar.weights"]["parts"][0].update(shape=[-1, 4]),
    lambda made: made["ar.weights"]["parts"][0].update(shape=[8]),
    lambda made: made["ar.weights"]["parts"][0].update(type="object"),
    lambda made: made["ar.weights"]["parts"][0].update(transposed=1),
    lambda made: made["ar.weights"]["parts"][0].update(bits=3),
    lambda made: made["ar.weights"]["parts"][0].update(block=0),
    lambda made: made["ar.weights"]["parts"][0].update({"from": 2**30}),
    lambda made: made["ar.weights"]["parts"][0].update(codes=2**30),
    lambda made: made["ar.weights"]["parts"].pop(),
    lambda made: made.update({"../x.weights": made["ar.weights"]}),
    lambda made: made.clear(),
    lambda made: made["ar.weights"].update(source="manifest.json"),
    lambda made: made["ar.weights"].update(source=".."),
    lambda made: made["ar.weights"].update(bytes=2**31),
    lambda made: made["ar.weights"]["parts"].extend(made["ar.weights"]["parts"][:1] * 900),
    lambda made: made.update({"more.weights": made["ar.weights"]}),
    lambda made: made.update({"..": made["ar.weights"]}),
]


@pytest.mark.parametrize("change", range(len(CHANGES)))
def test_a_damaged_recipe_makes_nothing(toy: Path, change: int, caplog: pytest.LogCaptureFixture) -> None:
    path = recipe_folder(toy, "int8") / FILE
    values = json.loads(path.read_text())
    CHANGES[change](values)
    path.write_text(json.dumps(values))
    assert resolved(toy) == "fp32" and "cannot be kept" in caplog.text
    assert not kept(toy).exists() and not list(kept(toy).parent.iterdir())


@pytest.mark.parametrize("name", [FILE, CONSTANTS, "ar.onnx"])
def test_a_missing_file_of_a_recipe(toy: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    (recipe_folder(toy, "int8") / name).unlink()
    assert resolved(toy) == "fp32" and "cannot be kept" in caplog.text


@pytest.mark.parametrize("name", [f"engines/ort-int8-recipe/{file}" for file in (CONSTANTS, "ar.onnx")])
def test_a_pipe_or_a_link_is_not_read(toy: Path, name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Reading a pipe would not end; a link may lead out of the bundle."""
    (toy / name).unlink()
    os.mkfifo(toy / name)
    assert resolved(toy) == "fp32" and "cannot be kept" in caplog.text
    (toy / name).unlink()
    (toy / name).symlink_to("/etc/hostname")
    assert resolved(toy) == "fp32"


def test_a_recipe_of_another_bundle_counts_as_none(toy: Path) -> None:
    def change(values: dict[str, Any]) -> None:
        values["files"]["ar.onnx"] = "0" * 64

    edit_manifest(toy, change)
    manifest = read_manifest(toy, check_hashes=False)
    assert cache.usable_precision(toy, manifest, "int8") == "int8"
    with pytest.raises(BackendError, match="has no int8 graphs; build them with"):
        find_graphs(toy, manifest, "int8")


def test_what_has_no_recipe(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BackendError, match="a recipe makes integers for a CPU, not fp16; leave --recipe out"):
        build_graphs(bundle, "fp16", BuildOptions(recipe=True))
    args = ["build", str(bundle), "--target", "tensorrt", "--recipe"]
    assert main(args) == 1 and "--recipe" in capsys.readouterr().err
    with pytest.raises(ValueError, match="expected one of copy"):
        parse_recipe({"a": {"source": "b", "bytes": 1, "parts": [{"kind": None}]}})


def test_the_demo_has_a_current_recipe(home: Path) -> None:
    """Made with: valle2 build runtime/models/demo --target ort --precision int8 --recipe."""
    demo = find_model("demo")
    recipe = read_recipe(recipe_folder(demo, "int8"))
    assert recipe and set(recipe) == {"ar.weights", "ar_prefill.weights", "nar.weights"}
    assert resolved(demo) == "int8" and kept(demo).is_dir()
    small = sum(path.stat().st_size for path in recipe_folder(demo, "int8").iterdir())
    assert small < 300_000  # three graphs
    with Valle2.load(threads=1) as tts, Valle2.load(precision="fp32", threads=1) as full:
        assert (tts.precision, full.precision) == ("int8", "fp32")
        voice, settings = tts.voice("elm"), Settings(top_p=0.0, threshold=1.0)
        lengths = [len(each.synthesize("Good morning.", voice, settings).codes) for each in (tts, full)]
    assert np.ptp(lengths) < 20
