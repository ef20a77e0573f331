"""A bundle is opened only if its manifest, hashes and paths are right."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import edit_manifest
from tests.fuzz.toy import write_toy
from valle2.engine import Manifest, ManifestError, Valle2Error, read_manifest
from valle2.engine.bundle.files import replacing_folder
from valle2.engine.bundle.manifest import MAX_BYTES, parse_manifest


def test_round_trip(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    assert parse_manifest(manifest.to_json(), bundle) == Manifest(
        **{name: getattr(manifest, name) for name in manifest.__slots__}
    )


def test_every_user_may_read_a_bundle(bundle: Path, tmp_path: Path) -> None:
    """Not only the one who exported it, although `onnx` writes weights for their owner alone."""
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in bundle.rglob("*"))
    with replacing_folder(tmp_path / "made") as part:
        (part / "inner").mkdir(0o700)
        (part / "inner" / "ar.weights").touch(0o600)
    modes = [path.stat().st_mode & 0o777 for path in (tmp_path / "made", *(tmp_path / "made").rglob("*"))]
    assert modes == [0o755, 0o755, 0o644]


def test_missing_file(broken: Path) -> None:
    (broken / "nar.weights").unlink()
    with pytest.raises(ManifestError, match=r"lacks the file nar\.weights"):
        read_manifest(broken)


def test_flipped_byte(broken: Path) -> None:
    data = bytearray((broken / "ar.weights").read_bytes())
    data[100] ^= 1
    (broken / "ar.weights").write_bytes(data)
    with pytest.raises(ManifestError, match="sha256 differs"):
        read_manifest(broken)


def test_newer_format(broken: Path) -> None:
    edit_manifest(broken, lambda values: values.update(format=99))
    with pytest.raises(ManifestError, match=r"format 99.*upgrade"):
        read_manifest(broken)


@pytest.mark.parametrize("name", ["../secret.onnx", "/etc/passwd", "voices/../../x"])
def test_path_that_leaves_the_folder(broken: Path, name: str) -> None:
    edit_manifest(broken, lambda values: values["files"].update({name: "0" * 64}))  # type: ignore[attr-defined]
    with pytest.raises(ManifestError, match="leaves the bundle"):
        read_manifest(broken)


def test_link_that_leaves_the_folder(broken: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes((broken / "nar.weights").read_bytes())
    (broken / "nar.weights").unlink()
    (broken / "nar.weights").symlink_to(outside)
    with pytest.raises(ManifestError, match="leaves the bundle"):
        read_manifest(broken)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "7", '{"format": 1}', "[" * 100_000, '{"format": 1, "graphs": 3}']
)
def test_damaged_manifest(broken: Path, text: str) -> None:
    (broken / "manifest.json").write_text(text)
    with pytest.raises(ManifestError):
        read_manifest(broken)


@pytest.mark.parametrize("entry", ["graphs", "sizes", "codec", "files"])
@pytest.mark.parametrize("value", [None, 3, "x", [1], {"a": "b"}, {"a": None}])
def test_wrong_entries(broken: Path, entry: str, value: object) -> None:
    edit_manifest(broken, lambda values: values.update({entry: value}))
    with pytest.raises(ManifestError):
        read_manifest(broken)


def test_no_bundle_there(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="not a bundle"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ManifestError, match="not a bundle"):
        read_manifest(tmp_path)


def test_json_is_stable(bundle: Path) -> None:
    text = (bundle / "manifest.json").read_text()
    assert json.loads(text)["format"] == 1
    assert text == read_manifest(bundle).to_json()


# -- hostile manifests --------------------------------------------------------------------------------

NAN, DELETED = float("nan"), object()
AR, TENSOR = ("graphs", "ar"), ("graphs", "ar", "inputs", 0)
OTHER = ("others", "portable")
NO_NUMBERS: list[Any] = [None, "8", True, [8], {}, 8.0, -1, 2**40, 10**12, NAN, 1e999]
NO_TEXT: list[Any] = [None, 3, [], {}, "a" * 20_000, "\x1b[2J", "\ud800", "\u202egnp"]
NO_OBJECT: list[Any] = [None, 3, "x", [], [1], {"a": None}, {"": 1}, {"x" * 100: 1}, {"\n": 1}]
HOSTILE: dict[tuple[Any, ...], list[Any]] = {
    ("name",): NO_TEXT,
    ("lowering",): [None, 3, [], "fused", "../ort", "ORT", ["ort"]],
    ("cache_length",): NO_NUMBERS[1:],
    ("sizes",): NO_OBJECT,
    ("sizes", "d_model"): [DELETED, 0, *NO_NUMBERS],
    ("sizes", "heads"): [DELETED, 0, 3, 9, *NO_NUMBERS],
    ("sizes", "layers"): [DELETED, 0, 2, *NO_NUMBERS],
    ("sizes", "vocab_size"): [DELETED, 0, *NO_NUMBERS],
    ("sizes", "group_size"): [DELETED, 0, 3, 4, 16, *NO_NUMBERS],
    ("sizes", "max_text"): [DELETED, 0, *NO_NUMBERS],
    ("sizes", "max_frames"): [DELETED, 0, 1, *NO_NUMBERS],
    ("sizes", "head_width"): [1, 2**20, "4"],
    ("sizes", "codebooks"): [0, 4, 10**6],
    ("sizes", "text_rows"): [0, 2**40, None],
    ("sizes", "surplus"): [1, "x"],
    ("graphs",): NO_OBJECT,
    AR: [DELETED, None, 3, "ar.onnx", [], {}],
    ("graphs", "nar"): [DELETED, None],
    ("graphs", "codec_decoder"): [DELETED],
    ("graphs", "codec_encoder"): [DELETED],
    ("graphs", "evil"): [{"file": "evil.onnx", "inputs": [], "outputs": []}],
    (*AR, "file"): [
        DELETED, None, 3, "", "nar.onnx", "ar.ort", "ar", "../ar.onnx", "/ar.onnx", "voices/ar.onnx",
        "a\\ar.onnx", "ar.onnx\0", "C:ar.onnx", "ar.onnx/", "ar.onnx ", "AR.ONNX", "ar-unlisted.onnx",
    ],
    (*AR, "inputs"): [DELETED, None, {}, [], "x", [1], [None] * 2000],
    (*AR, "outputs"): [DELETED, None, {}, [], "x", [1]],
    (*AR, "surplus"): [1],
    TENSOR: [None, 3, [], {}, "text"],
    (*TENSOR, "name"): [DELETED, None, 3, "", "codes", "other", "a\nb", "x" * 200],
    (*TENSOR, "dtype"): [DELETED, None, 3, "int32", "float32", "object", "O", "U100", "V9999999999"],
    (*TENSOR, "axes"): [
        DELETED, None, 3, {}, [], ["batch"], [2, 3], ["batch", "new", "x"], ["a"] * 9, [[], []],
    ],
    (*TENSOR, "axes", 1): [None, -1, 0, 1.5, True, 2**40, "", "a" * 200, "a;b", "\n"],
    ("graphs", "ar", "inputs", 1, "axes", 2): [1, 4, "group"],
    ("graphs", "ar", "inputs", 11, "axes", 1): [3, "heads", 10**9],
    ("graphs", "ar", "inputs", 11, "axes", 2): [7],
    ("graphs", "ar", "inputs", 11, "axes", 3): [8, 2**23],
    ("graphs", "ar", "inputs", 11, "dtype"): ["float16", "int64", "bool"],
    ("graphs", "ar", "outputs", 0, "name"): ["codes", "codes_out_"],
    ("graphs", "nar", "inputs", 2, "axes", 2): [7, "books"],
    ("graphs", "nar", "outputs", 0, "dtype"): ["float32"],
    ("graphs", "nar", "outputs", 0, "axes"): [[], ["batch", "u", 1]],
    ("graphs", "codec_decoder", "inputs", 0, "axes", 2): [4],
    ("codec",): NO_OBJECT,
    ("codec", "hop"): [DELETED, 0, *NO_NUMBERS],
    ("codec", "sample_rate"): [DELETED, 0, 1, *NO_NUMBERS],
    ("codec", "codebooks"): [4],
    ("codec", "neutral"): [None, 3, {}, [], [0] * 7, [0] * 9, [1024] * 8, [-1] * 8, [0.5] * 8, ["0"] * 8],
    ("text",): [*NO_OBJECT, {}],
    ("text", "kind"): [DELETED, None, 3, "runes", ["bpe"], {}],
    ("text", "max_tokens"): [0, *NO_NUMBERS],
    ("text", "surplus"): [1],
    ("sampling",): [None, 3, "x", [], [1], False],
    ("sampling", "top_p"): [None, "0.2", True, [], -0.1, 1.1, NAN, 1e999, 10**30],
    ("sampling", "window"): [0, 1.5, 1001, None],
    ("sampling", "seed"): [-1, 2**63, 0.0],
    ("sampling", "candidates"): [0, 33],
    ("sampling", "max_frames"): [-1, 10**9],
    ("sampling", "codebooks"): [-1, 9, 2.5, None],
    ("sampling", "first_chunk_codebooks"): [-1, 9],
    ("sampling", "nar_prompt_seconds"): [-0.1, 61, "3", None, float("nan")],
    ("sampling", "surplus"): [1],
    ("provenance",): [
        None, 3, "x", [], {"a": 1}, {"a": None}, {"a": {}}, {"\x1b": "x"}, {"a": "x" * 20_000},
    ],
    ("provenance", "licence"): [None, 3, [], {}, "\x1b]0;x\x07", "\ud800"],
    ("parity",): [
        None, 3, "x", [], {"a": "0"}, {"a": None}, {"a": NAN}, {"a": -1}, {"a": 1e999}, {"a": True},
    ],
    ("rules",): [None, 3, "x", [], {"surplus": 1}, {"vocab_size": 3}],
    ("rules", "text_begin"): [3, "x", ["a"], [None], [True], [-1], [2**40], [0] * 9],
    ("rules", "text_end"): [None, [1.0]],
    ("rules", "nar_text"): ["x", None, 3],
    ("rules", "languages"): [-1, 10**6, "3", 1.0],
    ("rules", "code_bos"): [1, None, "true"],
    ("rules", "whole_text"): [1, "no"],
    ("rules", "frames_per_token"): [-1, 10**12],
    ("rules", "max_positions"): [-1, 10**12, True],
    ("rules", "family"): [3, "x" * 100, "\x1b[2J"],
    ("others",): [None, 3, "x", [], {"ort": {"cache_length": 0, "graphs": {}}}, {"fused": {}}],
    OTHER: [None, 3, [], {}, {"cache_length": 97}],
    (*OTHER, "cache_length"): [DELETED, None, "97", -1, 0, 96, 2**40, 97.0],
    (*OTHER, "graphs"): [DELETED, None, [], {}, {"nar": 1}],
    (*OTHER, "graphs", "ar"): [DELETED, None, {}],
    (*OTHER, "graphs", "ar", "file"): ["../x.onnx", "nar.onnx", "ar-portable.ort"],
    ("files",): [None, 3, "x", [], {}, {"a": None}],
    ("files", "ar.onnx"): [DELETED, None, 3, "", "0" * 63, "0" * 65, "g" * 64, "A" * 64, "0" * 64],
    ("format",): [DELETED, None, "1", 1.0, True, 2, 10**30, [1]],
    ("surplus",): [None, 1],
}  # fmt: skip
"""Places in a manifest, and values that are refused there."""
BAD_NAMES = [
    "", ".", "..", "../x", "/x", "x/../../y", "./x", "x/", "x//y", "x/./y", "x\\y", "C:/x", "C:x", "x\0y",
    "x\ny", "\x1b[2J", "x\u202ey", "\ud800", "x" * 201, "x/" * 9 + "y", "é" * 128, "x.", "x ", " x", "a*",
    "a?", "a|b", "<a>", "engines/tensorrt/ar.engine", "engines/ort-int8/ar.onnx", "Engines/x", "ENGINES/x",
    "engines", "manifest.json",
]  # fmt: skip
TEXTS: dict[str, bytes] = {
    "empty": b"",
    "no UTF-8": b"\xff\xfe{}",
    "UTF-16": '{"format": 1}'.encode("utf-16"),
    "a mark in front": b"\xef\xbb\xbf{}",
    "a NUL": b"{}\0",
    "two values": b"{}{}",
    "deep lists": b"[" * 1_000_000,
    "deep objects": b'{"a":' * 200_000,
    "many values": b"[" + b"0," * 1_000_000 + b"0]",
    "many digits": b'{"format": ' + b"9" * 100_000 + b"}",
    "a long exponent": b'{"format": 1e' + b"9" * 100_000 + b"}",
    "NaN": b'{"format": NaN}',
    "infinity": b'{"format": -Infinity}',
    "a number": b"1",
    "a list": b'[{"format": 1}]',
    "too large": b" " * (MAX_BYTES + 1),
}


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest bundle, in a folder that the tests change and restore."""
    folder = tmp_path_factory.mktemp("hostile") / "toy"
    write_toy(folder)
    return folder


@pytest.fixture
def refused(toy: Path) -> Any:
    """A function that writes a manifest and returns the line that refuses it."""
    path = toy / "manifest.json"
    good = path.read_bytes()

    def write(data: bytes) -> str:
        path.write_bytes(data)
        with pytest.raises(ManifestError) as error:
            read_manifest(toy)
        message = str(error.value)
        assert len(message.splitlines()) == 1 and 20 < len(message) < 900 and message.isprintable(), message
        return message

    yield write
    path.write_bytes(good)


def changed(values: Any, place: tuple[Any, ...], value: Any) -> bytes:
    """The text of a manifest with one entry changed or deleted."""
    inner = values
    for key in place[:-1]:
        inner = inner[key]
    if value is DELETED:
        del inner[place[-1]]
    else:
        inner[place[-1]] = value
    return json.dumps(values).encode()


def test_the_smallest_bundle_is_opened(toy: Path) -> None:
    assert sum(map(len, HOSTILE.values())) + len(BAD_NAMES) + len(TEXTS) > 300
    manifest = read_manifest(toy)
    assert parse_manifest(manifest.to_json(), toy) == manifest


@pytest.mark.parametrize("place", HOSTILE, ids=lambda place: ".".join(map(str, place)))
def test_an_entry_that_is_not_as_documented(
    toy: Path, refused: Callable[[bytes], str], place: tuple[Any, ...]
) -> None:
    text = (toy / "manifest.json").read_text()
    for value in HOSTILE[place]:
        refused(changed(json.loads(text), place, value))


def test_names_that_no_bundle_lists(toy: Path, refused: Callable[[bytes], str]) -> None:
    text = (toy / "manifest.json").read_text()
    for name in BAD_NAMES:
        message = refused(changed(json.loads(text), ("files", name), "0" * 64))
        assert "do not use this bundle" in message, message
    many = {f"f{index}": "0" * 64 for index in range(10_000)}
    assert "at most" in refused(changed(json.loads(text), ("files",), many))


@pytest.mark.parametrize("kind", TEXTS)
def test_a_text_that_is_no_manifest(refused: Callable[[bytes], str], kind: str) -> None:
    refused(TEXTS[kind])


@pytest.mark.parametrize("key", ["format", "sizes", "d_model", "ar.onnx", "axes", "licence"])
def test_a_key_that_is_given_twice(toy: Path, refused: Callable[[bytes], str], key: str) -> None:
    text = (toy / "manifest.json").read_text()
    message = refused(text.replace(f'"{key}":', f'"{key}": 1, "{key}":', 1).encode())
    assert f"the key '{key}' is given twice" in message


def test_sizes_that_no_machine_has(toy: Path, refused: Callable[[bytes], str]) -> None:
    """Each size is within its range, but the caches of one row would take 32 GB."""
    values = json.loads((toy / "manifest.json").read_text())
    values["sizes"] |= {"heads": 64, "d_model": 8192, "max_frames": 2**17}
    for tensor in values["graphs"]["ar"]["inputs"][11:]:
        tensor["axes"] = ["batch", 64, "cache", 128]
    assert "a row's caches have" in refused(json.dumps(values).encode())


@pytest.mark.parametrize("name", ["manifest.json", "ar.onnx", "voices"])
@pytest.mark.parametrize("kind", ["folder", "pipe", "loop", "device", "absent", "outside"])
def test_a_listed_file_that_is_something_else(toy: Path, tmp_path: Path, name: str, kind: str) -> None:
    folder = shutil.copytree(toy, tmp_path / "toy")
    path = folder / name
    path.rename(tmp_path / "moved")
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind != "absent":
        path.symlink_to({"loop": path, "device": Path("/dev/zero"), "outside": tmp_path / "moved"}[kind])
    with pytest.raises(Valle2Error) as error:
        read_manifest(folder)
    assert len(str(error.value).splitlines()) == 1


def test_a_bundle_of_valle2_0_1_is_opened(toy: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(toy, tmp_path / "toy")
    values = json.loads((folder / "manifest.json").read_text())
    for key in ("rules", "others"):
        del values[key]
    for key in ("head_width", "codebooks"):
        del values["sizes"][key]
    (folder / "manifest.json").write_text(json.dumps(values))
    assert read_manifest(folder).others == {}
