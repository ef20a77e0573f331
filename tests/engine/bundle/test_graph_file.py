"""Graphs and build records of a hostile bundle: only weights with a hash are read."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from tests.fuzz.bundles import PLACES, external
from tests.fuzz.toy import write_toy
from valle2.engine import BackendError, ManifestError, Valle2Error, find_graphs, read_manifest
from valle2.engine.build.ort import build_graphs
from valle2.engine.bundle import graph_file as module
from valle2.engine.bundle.engine_files import engine_records, find_engine, summary
from valle2.engine.bundle.graph_file import REFUSED, check_graph_file, locations
from valle2.engine.bundle.precisions import RECORD_FILE, graph_folder
from valle2.runtime import Valle2

Place = Callable[[onnx.ModelProto, onnx.TensorProto], bytes]
OUTSIDE = [
    "unlisted",
    "../unlisted",
    "/etc/passwd",
    "./ar.weights",
    "voices/amber.safetensors",
    "",
    "ar.weights\0",
    "*/_ORT_MEM_ADDR_/*",
]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("graphs") / "toy"
    write_toy(folder)
    return folder


@pytest.fixture
def copied(toy: Path, tmp_path: Path) -> Path:
    (tmp_path / "unlisted").write_bytes(bytes(64))
    folder = shutil.copytree(toy, tmp_path / "toy")
    (folder / "unlisted").write_bytes(bytes(64))
    return folder


def put(folder: Path, name: str, data: bytes) -> None:
    """Change a file and its hash."""
    (folder / name).write_bytes(data)
    path = folder / "manifest.json"
    values = json.loads(path.read_text())
    values["files"][name] = hashlib.sha256(data).hexdigest()
    path.write_text(json.dumps(values))


def refusal(folder: Path) -> str:
    with pytest.raises(ManifestError) as error:
        Valle2.load(folder, threads=1)
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
@pytest.mark.parametrize("graph", ["ar.onnx", "ar-portable.onnx"])
def test_weights_without_a_hash_are_not_read(copied: Path, graph: str, place: Place) -> None:
    model = onnx.ModelProto.FromString((copied / graph).read_bytes())
    put(copied, graph, place(model, external("unlisted")))
    assert "reads its weights from 'unlisted', without a hash" in refusal(copied)


@pytest.mark.parametrize("location", OUTSIDE)
def test_weights_lie_beside_the_graph(copied: Path, location: str) -> None:
    model = onnx.ModelProto.FromString((copied / "ar.onnx").read_bytes())
    put(copied, "ar.onnx", PLACES[0](model, external(location)))
    assert "without a hash" in refusal(copied)


def test_listed_weights_with_another_hash(copied: Path) -> None:
    (copied / "ar.weights").write_bytes(bytes(4100))
    assert "sha256 differs" in refusal(copied)


@pytest.mark.parametrize(
    "ends", [("offset", "99999999"), ("length", "99999999"), ("offset", "-1"), ("offset", "x")]
)
def test_weights_beyond_the_file(copied: Path, ends: tuple[str, str]) -> None:
    model = onnx.ModelProto.FromString((copied / "ar.onnx").read_bytes())
    (tensor,) = (weight for weight in model.graph.initializer if weight.name == "weights")
    places = {entry.key: entry.value for entry in tensor.external_data} | dict([ends])
    del tensor.external_data[:]
    for key, value in places.items():
        tensor.external_data.add(key=key, value=value)
    put(copied, "ar.onnx", model.SerializeToString())
    with pytest.raises(BackendError, match="does not load") as error:
        Valle2.load(copied, threads=1)
    assert len(str(error.value).splitlines()) == 1


def wrapped(number: int, content: bytes) -> bytes:
    """A field of a message."""
    return bytes([number << 3 | 2]) + varint(len(content)) + content


def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


def entry(*parts: tuple[int, bytes]) -> bytes:
    """A model with one initializer, whose external data has one entry with these fields."""
    inner = b"".join(wrapped(number, content) for number, content in parts)
    return wrapped(7, wrapped(5, wrapped(13, inner)))


def test_no_value_of_a_repeated_field_is_overlooked() -> None:
    found = locations(entry((1, b"x"), (1, b"location"), (2, b"good"), (2, b"bad")))
    assert found == {"good", "bad"}
    assert locations(entry((2, b"bad"), (1, b"location"))) == {"bad"}
    assert locations(entry((1, b"location"), (1, b"length"), (2, b"bad"))) == {"bad"}
    assert locations(entry((1, b"length"), (2, b"location"))) == set()


def test_a_location_is_found_as_onnx_finds_it(toy: Path) -> None:
    for path in toy.glob("*.onnx"):
        weights = onnx.load(str(path), load_external_data=False).graph.initializer
        expected = {e.value for w in weights for e in w.external_data if e.key == "location"}
        assert locations(path.read_bytes()) == expected


GOOD = entry((1, b"location"), (2, b"w"))
DAMAGED: dict[str, bytes] = {
    "cut off": GOOD[:-1],
    "a length beyond the end": GOOD.replace(b"\x0a\x08location", b"\x0a\x7flocation"),
    "a tag of eleven bytes": b"\xff" * 10 + b"\x01" + GOOD,
    "a tag beyond 32 bits": b"\xba\x80\x80\x80\x10\x00" + GOOD,
    "field 0": b"\x02\x00" + GOOD,
    "a group": b"\x3b" + GOOD + b"\x3c",
    "an unknown wire type": b"\x3f" + GOOD,
    "a fixed number that is cut off": GOOD + b"\x39\x00",
    "very many fields": GOOD + b"\x08\x00" * (module.MAX_FIELDS + 1),
    "very many words": b"location" * (module.MAX_WORDS + 1),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_what_is_no_graph(kind: str) -> None:
    with pytest.raises(ValueError):
        locations(DAMAGED[kind])


def test_deep_graphs_end() -> None:
    data = wrapped(5, external("w").SerializeToString())
    for _ in range(1000):
        data = wrapped(
            6, wrapped(1, wrapped(5, data))
        )  # an attribute's graph, its node, the node's attribute
    data = wrapped(7, wrapped(1, wrapped(5, data)))
    with pytest.raises(ValueError, match="nested too deeply"):
        locations(data)


@pytest.mark.parametrize("operator", REFUSED)
def test_compiled_engines_and_loops_in_a_graph_are_not_loaded(operator: bytes, copied: Path) -> None:
    model = onnx.ModelProto.FromString((copied / "ar.onnx").read_bytes())
    inner = helper.make_graph([helper.make_node(operator.decode(), [], ["x"])], "inner", [], [])
    nodes = [
        helper.make_node(operator.decode(), [], ["x"]),
        helper.make_node("If", ["c"], ["y"], else_branch=inner),
    ]
    for node in nodes:
        changed = onnx.ModelProto.FromString(model.SerializeToString())
        changed.graph.node.append(node)
        put(copied, "ar.onnx", changed.SerializeToString())
        assert f"({operator.decode()})" in refusal(copied)


def test_functions_in_a_graph_are_not_loaded(copied: Path) -> None:
    """Each calls the one before it twice, so a few kilobytes would become a graph of any size."""
    model = onnx.ModelProto.FromString((copied / "ar.onnx").read_bytes())
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    nodes = [helper.make_node("Neg", ["x"], ["y"])]
    for depth in range(40):
        model.functions.append(helper.make_function("own", f"f{depth}", ["x"], ["y"], nodes, opsets))
        nodes = [
            helper.make_node(f"f{depth}", [first], [second], domain="own")
            for first, second in (("x", "a"), ("a", "y"))
        ]
    put(copied, "ar.onnx", model.SerializeToString())
    assert "ar.onnx has functions of its own" in refusal(copied)


@pytest.mark.parametrize("data", [b"\x0b\x0c", b"\x08\x00" * (module.MAX_FIELDS + 2)])
def test_what_is_no_model_around_its_graph(copied: Path, data: bytes) -> None:
    """A group, in which functions could be hidden, and very many fields."""
    put(copied, "ar.onnx", data + (copied / "ar.onnx").read_bytes())
    assert "ar.onnx" in refusal(copied)


def test_an_empty_graph_file_is_refused(copied: Path) -> None:
    put(copied, "ar.onnx", b"")
    assert "is empty" in refusal(copied)


# -- a manifest of another graph --------------------------------------------------------------


def test_outputs_of_another_shape_are_one_line(copied: Path) -> None:
    path = copied / "manifest.json"
    values = json.loads(path.read_text())
    values["codec"]["hop"] = 32
    values["rules"] = {"fewest_per_token": 0}  # random weights say little
    path.write_text(json.dumps(values))
    tts = Valle2.load(copied, threads=1)
    with pytest.raises(
        BackendError, match=r"codec_decoder.onnx: output audio is float32 \(1, 64\); expected"
    ):
        tts.synthesize("hello there", tts.voice("amber"))
    assert tts.codec is not None
    with pytest.raises(BackendError, match=r"output codes is int64 .* expected \(1, 31, 8\)"):
        tts.codec.encode(np.zeros(1000, np.float32))


def test_a_tensor_that_the_graph_lacks_is_one_line(copied: Path) -> None:
    model = onnx.ModelProto.FromString((copied / "ar.onnx").read_bytes())
    for node in model.graph.node:
        for index, name in enumerate(node.output):
            node.output[index] = {"history_out": "renamed"}.get(name, name)
    for value in model.graph.output:
        value.name = {"history_out": "renamed"}.get(value.name, value.name)
    put(copied, "ar.onnx", model.SerializeToString())
    tts = Valle2.load(copied, threads=1)
    with pytest.raises(BackendError) as error:
        tts.synthesize("hello there", tts.voice("amber"))
    assert len(str(error.value).splitlines()) == 1


# -- records of builds ------------------------------------------------------------------------


@pytest.fixture
def built(copied: Path) -> Path:
    build_graphs(copied, "int8")
    return copied


def change(path: Path, place: tuple[Any, ...], value: Any) -> None:
    values = json.loads(path.read_text())
    inner = values
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    path.write_text(json.dumps(values))


RECORDS: list[tuple[tuple[Any, ...], Any]] = [
    (("files",), []),
    (("files",), {"../x": "0" * 64}),
    (("files", "ar.onnx"), 3),
    (("files", "sub/x"), "0" * 64),
    (("specs",), 3),
    (("specs",), {"x" * 100: 1}),
    (("specs", "ar"), None),
    (("specs", "ar", "file"), "../ar.onnx"),
    (("specs", "ar", "file"), "nar.onnx"),
    (("specs", "ar", "file"), "other.onnx"),
    (("specs", "ar", "inputs"), 3),
    (("specs", "ar", "inputs", 0, "axes"), [[]]),
    (("specs", "ar", "inputs", 0, "dtype"), "object"),
    (("specs", "ar", "inputs", 0, "name"), "other"),
    (("specs", "ar", "inputs", 1, "axes"), ["batch", "new", 10**6]),
    (("methods",), None),
    (("sources",), [1]),
    (("recipe",), "3"),
]


@pytest.mark.parametrize(("place", "value"), RECORDS)
def test_a_hostile_record_of_a_build(built: Path, place: tuple[Any, ...], value: Any) -> None:
    change(graph_folder(built, "int8", "ort") / RECORD_FILE, place, value)
    with pytest.raises(BackendError) as error:
        find_graphs(built, read_manifest(built), "int8")
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    "text", ["[" * 10_000, '{"files": {}, "files": {}}', "NaN", '"x"', "\ud800", "3" * 9999]
)
def test_a_record_that_is_no_record(built: Path, text: str) -> None:
    (graph_folder(built, "int8", "ort") / RECORD_FILE).write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(BackendError, match="has no int8 graphs"):
        find_graphs(built, read_manifest(built), "int8")


def test_a_build_reads_only_files_with_a_hash(built: Path) -> None:
    folder = graph_folder(built, "int8", "ort")
    model = onnx.ModelProto.FromString((folder / "ar.onnx").read_bytes())
    data = PLACES[0](model, external("../../ar.weights"))
    (folder / "ar.onnx").write_bytes(data)
    change(folder / RECORD_FILE, ("files", "ar.onnx"), hashlib.sha256(data).hexdigest())
    with pytest.raises(BackendError, match="without a hash; build it again with"):
        Valle2.load(built, precision="int8", threads=1)


ENGINE: dict[str, Any] = {
    "key": {
        "target": "tensorrt",
        "graph": "ar",
        "source": "0",
        "precision": "fp16",
        "version": "10.0",
        "gpu": "sm89",
        "workspace": 0,
        "profiles": [{"name": "step", "axes": {"batch": {"low": 1, "usual": 1, "high": 2}}}],
    },
    "spec": {"file": "ar.onnx", "inputs": [], "outputs": []},
    "sha256": "0" * 64,
    "bytes": 3,
    "seconds": 1.5,
}
ENGINE_VALUES: list[tuple[tuple[Any, ...], Any]] = [
    (("key",), 1),
    (("key",), {}),
    (("key", "graph"), None),
    (("key", "graph"), ["ar"]),
    (("key", "gpu"), {"a": 1}),
    (("key", "workspace"), "0"),
    (("key", "profiles"), 3),
    (("key", "profiles"), [1]),
    (("key", "profiles"), [{"name": 3, "axes": {}}]),
    (("key", "profiles"), [{"name": "x", "axes": {"batch": 1}}]),
    (("spec",), None),
    (("spec", "file"), "../x"),
    (("sha256",), 3),
    (("bytes",), "many"),
    (("bytes",), 10**30),
    (("seconds",), "x"),
    (("surplus",), 1),
]


@pytest.mark.parametrize(("place", "value"), ENGINE_VALUES)
def test_a_hostile_record_of_an_engine(toy: Path, tmp_path: Path, place: tuple[Any, ...], value: Any) -> None:
    folder = tmp_path / "engines" / "tensorrt"
    folder.mkdir(parents=True)
    path = folder / "ar-fp16-sm89-0.json"
    path.write_text(json.dumps(ENGINE))
    (known,) = engine_records(folder).values()
    assert known.profile_names == ["step"] and summary([known])
    change(path, place, value)
    assert engine_records(folder) == {}
    with pytest.raises(Valle2Error, match="has no engine of graph ar"):
        find_engine(
            tmp_path,
            dict.fromkeys(("graph", "source", "precision", "version", "gpu"), "ar") | {"target": "tensorrt"},
        )


def test_the_check_is_cheap(toy: Path) -> None:
    """A large weight inside a graph is skipped."""
    data = (toy / "ar.onnx").read_bytes()
    big = onnx.ModelProto.FromString(data)
    big.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(2**22, np.float32), "big"))
    path = toy.parent / "big.onnx"
    path.write_bytes(big.SerializeToString())
    check_graph_file(path, ["ar.weights"])
