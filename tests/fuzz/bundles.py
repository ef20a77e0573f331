"""Makes hostile bundles: a small valid bundle with one or more errors.

The hash of a changed file is correct, as an attacker would make it. The same seed gives the same variants.
All variants use one folder, which `make` repairs before each change.
"""

from __future__ import annotations

import argparse
import copy
import encodings.cp437
import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

import valle2.engine.build.budget
import valle2.engine.build.cuda.nodes
from tests.fuzz.toy import write_preset, write_toy
from valle2.engine import HubError, find_graphs, read_manifest
from valle2.engine.build.ort import build_graphs
from valle2.engine.bundle.engine_files import engine_records
from valle2.engine.bundle.manifest import FILE_NAME, Manifest
from valle2.engine.bundle.precisions import PRECISIONS
from valle2.runtime import Settings, Valle2
from valle2.runtime.cli.inspect import add_arguments as inspect_arguments
from valle2.runtime.cli.inspect import run as inspect
from valle2.runtime.cli.voices import voice_list
from valle2.runtime.generation.token_layout import TokenLayout
from valle2.runtime.presets import read_preset

LOADED_LATE = (encodings.cp437, valle2.engine.build.budget, valle2.engine.build.cuda.nodes)
"""Modules that readers import on first use. They are imported here, so that `harness` reports no import."""
Change = Callable[[], None]
PRESET = "preset.npz"
DEEP = 0.03
"""Share of the variants with which the model is loaded and speaks, in addition to those that need it."""
NUMBERS: list[Any] = [
    -1, 0, 1, 2, 3, 7, 8, 255, 1024, 65_536, 2**31, 2**53, 2**63, 2**64, -(2**63), 10**12, 10**30, 10**40,
    0.5, -0.5, 1e-300, 1e300, 1e999, -1e999, float("nan"),
]  # fmt: skip
NAMES = [
    "", ".", "..", "../x", "/etc/passwd", "a/../../x", "voices/../../x", "a//b", "./a", "a/", "C:/x", "C:x",
    "a\\b", "..\\x", "a\0b", "a\nb", "\x1b[2J", "engines/tensorrt/x.engine", "Engines/x", "engines",
    "x" * 300, "\ud800", "a/" * 200 + "b", "/proc/self/mem", "/dev/zero", "manifest.json", "ar.ort", "con",
    "text/tokenizer.json", "ar.weights", "voices/amber.safetensors", "~", "%s%n", "{0}", "ar.onnx", " ",
    "nul:", "ä.onnx",
]  # fmt: skip
WORDS: list[Any] = [
    *NAMES, "ort", "portable", "primitive", "int64", "float32", "float16", "bfloat16", "object", "O", "batch",
    "0" * 64, "g" * 64, "A" * 64, "phonemes", "bpe", "ids", "same", "\u202egnp", "a" * 10_000, "1", "null",
]  # fmt: skip
OTHERS: list[Any] = [
    None, True, False, [], {}, [[]], [{}], {"": ""}, {"a": {"b": [1]}}, [1, "x", None], [0] * 500,
]  # fmt: skip
LOCATIONS = [
    "secret", "../secret", "/etc/passwd", "./ar.weights", "sub/ar.weights", "", "nar.onnx", "..",
    "*/_ORT_MEM_ADDR_/*", "file:///etc/passwd", "\u00e4", "voices/amber.safetensors", "manifest.json",
    "ar.weights\0",
]  # fmt: skip
PIECES = [
    "", "7", "null", '"x"', "[]", "{}", "\0", "\u2028", "\ufeff{}", "{" * 10, '{"format": 1}',
    "[" * 100_000, '{"a":' * 50_000, "[" + "0," * 250_000 + "0]", "[" + '"x",' * 1000 + "1]",
    '{"format": 1, "format": 1}', '{"format": NaN}', '{"format": 1e400}', '{"format": true}',
    '{"format": 1.0}', '{"format": ' + "1" * 5000 + "}",
]  # fmt: skip


class BundleFuzzer:
    """Makes hostile bundles and opens them as the commands do.

    Args:
        folder: an empty folder for the bundles. seed: of all random choices.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.good, self.path, self.mark = folder / "good", folder / "bundle", folder / "ran"
        self.outside = folder / "secret"
        self.outside.write_bytes(bytes(8192))
        write_toy(self.good)
        build_graphs(self.good, "int8")
        write_preset(self.good / PRESET)
        shutil.copytree(self.good, self.path)
        self.contents = {p.relative_to(self.good).as_posix(): p.read_bytes() for p in files_of(self.good)}
        self.values: dict[str, Any] = json.loads(self.contents[FILE_NAME])
        self.graphs = [name for name in self.contents if name.endswith(".onnx") and "/" not in name]
        self.changed: set[str] = set()
        self.deep, self.count = False, 0
        self.kinds: list[tuple[str, Change, int]] = [
            ("leaf", self.change_leaves, 40),
            ("key", self.change_keys, 12),
            ("name", self.change_names, 10),
            ("tree", self.move_trees, 6),
            ("bytes", self.damage_manifest, 10),
            ("whole", self.replace_manifest, 3),
            ("graph", self.damage_graph, 4),
            ("location", self.move_weights, 5),
            ("voice", self.damage_voice, 10),
            ("text", self.damage_text, 5),
            ("preset", self.damage_preset, 4),
            ("record", self.damage_record, 4),
            ("file", self.replace_file, 2),
        ]
        self.kind = ""

    # -- making -----------------------------------------------------------------------------------

    def make(self) -> Path:
        """Repair the folder, change it in another way, and return it."""
        for name in self.changed:
            self.restore(name)
        self.changed.clear()
        self.count += 1
        self.deep = self.random.random() < DEEP
        weights = [weight for _, _, weight in self.kinds]
        self.kind, change, _ = self.random.choices(self.kinds, weights)[0]
        change()
        return self.path

    def restore(self, name: str) -> None:
        """Restore a file."""
        path = self.path / name
        remove(path)
        if name in self.contents:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(self.contents[name])

    def write(self, name: str, data: bytes, *, hashed: bool = True) -> None:
        """Write a file, and its hash in the manifest."""
        self.changed.add(name)
        (self.path / name).write_bytes(data)
        if hashed and name in self.values["files"]:
            values = dict(self.values)
            values["files"] = values["files"] | {name: hashlib.sha256(data).hexdigest()}
            self.write_values(values)

    def write_values(self, values: object) -> None:
        """Write the manifest."""
        text = json.dumps(values)
        self.write(FILE_NAME, text.encode("utf-8", "surrogatepass"))

    def damaged(self, data: bytes) -> bytes:
        """Flip, remove, double or insert some bytes."""
        out = bytearray(data)
        for _ in range(self.random.choice([1, 1, 1, 2, 5, 20])):
            at, kind = self.random.randrange(len(out) + 1), self.random.randrange(6)
            if kind == 0 and at < len(out):
                out[at] ^= 1 << self.random.randrange(8)
            elif kind == 1:
                del out[at : at + self.random.choice([1, 2, 4, 100])]
            elif kind == 2:
                out[at:at] = out[at : at + self.random.choice([1, 8, 64])]
            elif kind == 3:
                out[at : at + 1] = self.random.choice(
                    [b"\xff", b"\0", b"\xff" * 9, b"\x80" * 12, b'"', b"]", b"\n"]
                )
            elif kind == 4 and self.random.random() < 0.2:
                out = out[:at]
            elif at < len(out):
                out[at] = self.random.randrange(256)
        return bytes(out)

    def hostile(self) -> Any:
        """A random unexpected value."""
        return copy.deepcopy(self.random.choice(self.random.choice([NUMBERS, WORDS, OTHERS])))

    def place(self, values: Any) -> tuple[Any, Any]:
        """A random container in parsed JSON, and a key or index of it."""
        found = values
        key = self.random.choice(list(found))
        while isinstance(found[key], (dict, list)) and found[key] and self.random.random() < 0.9:
            found = found[key]
            key = (
                self.random.choice(list(found))
                if isinstance(found, dict)
                else self.random.randrange(len(found))
            )
        return found, key

    def fresh(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.contents[FILE_NAME])
        return found

    def change_leaves(self) -> None:
        values = self.fresh()
        for _ in range(self.random.choice([1, 1, 1, 2, 4])):
            container, key = self.place(values)
            container[key] = self.hostile()
        self.write_values(values)

    def change_keys(self) -> None:
        """Add, remove, rename or double a key."""
        values = self.fresh()
        container, key = self.place(values)
        while not isinstance(container, dict):
            container, key = self.place(values)
        kind = self.random.randrange(4)
        if kind == 0:
            del container[key]
        elif kind == 1:
            container[self.random.choice(NAMES)] = self.hostile()
        elif kind == 2:
            container[self.random.choice(NAMES)] = container.pop(key)
        text = json.dumps(values)
        if kind == 3:
            word = json.dumps(key)
            text = text.replace(word, f"{word}: 1, {word}", 1)
        self.write(FILE_NAME, text.encode("utf-8", "surrogatepass"))

    def change_names(self) -> None:
        """Change a file's name in the list of files, and perhaps in a graph."""
        values, name = self.fresh(), self.random.choice(NAMES)
        known = self.random.choice(list(values["files"]))
        digest = values["files"].pop(known) if self.random.random() < 0.5 else "0" * 64
        values["files"][name] = digest
        if self.random.random() < 0.5:
            rows = self.random.choice([values["graphs"], values["others"]["portable"]["graphs"]])
            rows[self.random.choice(list(rows))]["file"] = name
        self.write_values(values)

    def move_trees(self) -> None:
        """Replace one part of the manifest by another."""
        values = self.fresh()
        container, key = self.place(values)
        other, name = self.place(values)
        container[key] = copy.deepcopy(other[name])
        self.write_values(values)

    def damage_manifest(self) -> None:
        self.write(FILE_NAME, self.damaged(self.contents[FILE_NAME]))

    def replace_manifest(self) -> None:
        self.write(FILE_NAME, self.random.choice(PIECES).encode("utf-8", "surrogatepass"))

    def damage_graph(self) -> None:
        name = self.random.choice(self.graphs)
        self.write(name, self.damaged(self.contents[name]))
        self.deep = self.random.random() < 0.5

    def move_weights(self) -> None:
        """Put a tensor with its data in another file into a graph."""
        name = self.random.choice(self.graphs)
        location = self.random.choice(LOCATIONS)
        model = onnx.ModelProto.FromString(self.contents[name])
        data = self.random.choice(PLACES)(model, external(location))
        if self.random.random() < 0.2:
            data = self.damaged(data)
        self.write(name, data)
        self.deep = self.random.random() < 0.5

    def damage_voice(self) -> None:
        name = self.random.choice([n for n in self.contents if n.startswith("voices/")])
        data = self.contents[name]
        size = int.from_bytes(data[:8], "little")
        if self.random.random() < 0.5:
            header = json.loads(data[8 : 8 + size])
            container, key = self.place(header)
            container[key] = self.hostile()
            text = json.dumps(header).encode("utf-8", "surrogatepass")
            data = len(text).to_bytes(8, "little") + text + data[8 + size :]
        elif self.random.random() < 0.3:
            data = self.random.choice([0, 7, 2**20, 2**31, 2**63, 2**64 - 1]).to_bytes(8, "little") + data[8:]
        else:
            data = self.damaged(data)
        self.write(name, data)

    def damage_text(self) -> None:
        name = self.random.choice([n for n in self.contents if n.startswith("text/")])
        data = self.damaged(self.contents[name])
        if name.endswith(".json") and self.random.random() < 0.7:
            values = json.loads(self.contents[name])
            container, key = self.place(values)
            container[key] = self.random.choice([self.hostile(), *TOKENIZERS])
            data = json.dumps(values).encode("utf-8", "surrogatepass")
        elif self.random.random() < 0.2:
            data = self.random.choice(
                [b"", b"\t", b"\t\t\n" * 9, b"a\n" * 9, b"the\tx\ty\tz\n", b"\xff\t\xff\n"]
            )
        self.write(name, data)
        self.deep = True

    def damage_preset(self) -> None:
        self.write(PRESET, self.damaged(self.contents[PRESET]))

    def damage_record(self) -> None:
        """Damage a record of `valle2 build`, which a hostile bundle may contain."""
        name = self.random.choice([n for n in self.contents if n.startswith("engines/")])
        data = self.damaged(self.contents[name])
        if name.endswith(".json") and self.random.random() < 0.8:
            values = json.loads(self.contents[name])
            container, key = self.place(values)
            container[key] = self.hostile()
            data = json.dumps(values).encode("utf-8", "surrogatepass")
        self.write(name, data)
        self.deep = self.random.random() < 0.5

    def replace_file(self) -> None:
        """Replace a listed file by a link, a folder, a pipe or nothing."""
        name = self.random.choice([FILE_NAME, *self.values["files"]])
        self.changed.add(name)
        path, kind = self.path / name, self.random.randrange(6)
        path.unlink()
        if kind == 0:
            path.mkdir()
        elif kind == 1:
            os.mkfifo(path)
        elif kind < 5:
            path.symlink_to([self.outside, path, "/dev/zero"][kind - 2])

    # -- reading ----------------------------------------------------------------------------------

    def read(self, path: Path) -> None:
        """Open a bundle as the commands do. Raises Valle2Error if it is refused."""
        if self.kind == "preset":
            read_preset(path / PRESET)
            return
        manifest = read_manifest(path)
        TokenLayout.of(manifest)
        Settings(**manifest.sampling)  # type: ignore[arg-type]
        voice_list(path)
        for precision in PRECISIONS:
            with suppress(HubError):
                self.find(path, manifest, precision)
        if self.deep:
            self.speak(path)

    def find(self, path: Path, manifest: Manifest, precision: str) -> None:
        """Look for builds in the bundle."""
        if (path / "engines" / f"ort-{precision}").is_dir():
            find_graphs(path, manifest, precision)
        for record in engine_records(path / "engines" / "tensorrt").values():
            assert record.profile_names is not None and record.key["graph"]

    def speak(self, path: Path) -> None:
        """Inspect the bundle, load it and speak."""
        parser = argparse.ArgumentParser()
        inspect_arguments(parser)
        for flags in ([], ["--budget"], ["--nodes"]):
            inspect(parser.parse_args([str(path), *flags]), lambda message: None)
        tts = Valle2.load(path, threads=1, slots=2)
        tts.synthesize("hello there, the fox", tts.voice(tts.default_voice()))


# -- graphs that name files ---------------------------------------------------------------------------


def external(location: str) -> TensorProto:
    """A tensor whose data is in a file."""
    tensor = TensorProto(name="hidden", data_type=TensorProto.FLOAT, dims=[4])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": "0", "length": "16"}.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def in_initializer(model: onnx.ModelProto, tensor: TensorProto) -> bytes:
    model.graph.initializer.append(tensor)
    return bytes(model.SerializeToString())


def in_constant(model: onnx.ModelProto, tensor: TensorProto) -> bytes:
    model.graph.node.append(helper.make_node("Constant", [], ["hidden"], value=tensor))
    return bytes(model.SerializeToString())


def subgraph(tensor: TensorProto) -> onnx.GraphProto:
    out = helper.make_tensor_value_info("hidden", TensorProto.FLOAT, [4])
    return helper.make_graph([], "inner", [], [out], [tensor])


def in_subgraph(model: onnx.ModelProto, tensor: TensorProto) -> bytes:
    inner = subgraph(tensor)
    flag = helper.make_tensor("flag", TensorProto.BOOL, [], [True])
    model.graph.initializer.append(flag)
    node = helper.make_node("If", ["flag"], ["chosen"], then_branch=inner, else_branch=inner)
    model.graph.node.append(node)
    return bytes(model.SerializeToString())


def in_function(model: onnx.ModelProto, tensor: TensorProto) -> bytes:
    node = helper.make_node("Constant", [], ["y"], value=tensor)
    opset = helper.make_opsetid("", 18)
    model.functions.append(helper.make_function("own", "hide", [], ["y"], [node], [opset]))
    model.graph.node.append(helper.make_node("hide", [], ["hidden"], domain="own"))
    model.opset_import.append(helper.make_opsetid("own", 1))
    return bytes(model.SerializeToString())


def in_sparse(model: onnx.ModelProto, tensor: TensorProto) -> bytes:
    indices = helper.make_tensor("indices", TensorProto.INT64, [4], [0, 1, 2, 3])
    model.graph.sparse_initializer.add(values=tensor, indices=indices, dims=[8])
    return bytes(model.SerializeToString())


def in_training(model: onnx.ModelProto, tensor: TensorProto) -> bytes:
    model.training_info.add(initialization=subgraph(tensor), algorithm=subgraph(tensor))
    return bytes(model.SerializeToString())


def in_list(model: onnx.ModelProto, tensor: TensorProto) -> bytes:
    node = helper.make_node(
        "Constant", [], ["hidden"], value=helper.make_tensor("x", TensorProto.FLOAT, [1], [0.0])
    )
    node.attribute.append(helper.make_attribute("several", [tensor, tensor]))
    model.graph.node.append(node)
    return bytes(model.SerializeToString())


def in_second_graph(model: onnx.ModelProto, tensor: TensorProto) -> bytes:
    """A protobuf field given twice, which readers merge."""
    more = onnx.ModelProto()
    more.graph.initializer.append(tensor)
    return bytes(model.SerializeToString() + more.SerializeToString())


PLACES: list[Callable[[onnx.ModelProto, TensorProto], bytes]] = [
    in_initializer,
    in_constant,
    in_subgraph,
    in_function,
    in_sparse,
    in_training,
    in_list,
    in_second_graph,
]


TOKENIZERS: list[Any] = [
    {"Regex": "(a+)+$"},
    {"Regex": "("},
    {"Regex": "a{50000}"},
    {"strategy": {"Fixed": 2**40}, "direction": "Right", "pad_id": 0, "pad_type_id": 0, "pad_token": "x"},
    {"type": "Replace", "pattern": {"String": "a"}, "content": "b" * 5000},
    {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
    {"type": "Unigram", "unk_id": 2**31, "vocab": [["a", 0.0]]},
    {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]},
]


def files_of(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def remove(path: Path) -> None:
    """Delete a file, a link or a folder."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
