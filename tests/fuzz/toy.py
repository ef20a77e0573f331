"""The smallest bundle that speaks: graphs of a few operators, written in milliseconds without PyTorch.

Its AR gives two groups and `<eos>`, its NAR copies codebook 0, and its codec is silent. It has every part of
a real bundle: external weights, a lexicon, two voices, a second lowering.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from valle2.engine import GraphSpec, Manifest, TensorSpec, hash_files, write_manifest
from valle2.engine.bundle.contract import CODEBOOKS
from valle2.engine.bundle.manifest import Variant
from valle2.engine.bundle.nar_inputs import CODEBOOK_AXIS, NAR_AXES
from valle2.runtime import Prompt
from valle2.runtime.presets import ENTRIES
from valle2.runtime.voices import store_prompt

SYMBOLS = " ,.?!abcdefghijklmnopqrstuvwxyzˈəðɪ"
HOP, GROUP, WIDTH, HEADS, MAX_TEXT, MAX_FRAMES = 16, 2, 4, 2, 64, 64
SLOTS = MAX_TEXT + 1 + MAX_FRAMES // GROUP
INT, FLOAT, BOOL = TensorProto.INT64, TensorProto.FLOAT, TensorProto.BOOL
SIZES = {
    "vocab_size": len(SYMBOLS),
    "d_model": WIDTH * HEADS,
    "heads": HEADS,
    "layers": 1,
    "ffn": 8,
    "group_size": GROUP,
    "max_text": MAX_TEXT,
    "max_frames": MAX_FRAMES,
    "codebooks": CODEBOOKS,
    "head_width": 0,
}
Axes = Sequence[int | str]


def write_toy(folder: Path) -> Manifest:
    """Write the bundle into a new folder."""
    (folder / "text").mkdir(parents=True)
    (folder / "voices").mkdir()
    main, other = (
        {"ar": ar(folder, "ar", "cache")},
        {"ar": ar(folder, "ar-portable", SLOTS)},
    )
    main |= {"nar": nar(folder), "codec_encoder": encoder(folder), "codec_decoder": decoder(folder)}
    write_text(folder / "text")
    for index, name in enumerate(("amber", "basalt")):
        codes = np.random.default_rng(index).integers(0, 1024, (10, 8))
        prompt = Prompt(codes, "hello there", name, "a toy", "CC0", "given")
        store_prompt(folder / "voices" / f"{name}.safetensors", prompt)
    manifest = Manifest(
        name="toy",
        sizes=SIZES,
        lowering="ort",
        cache_length=0,
        graphs=main,
        codec={"sample_rate": 8000, "hop": HOP},
        text={"kind": "phonemes", "max_tokens": 40},
        rules={"fewest_per_token": 0},  # its weights are no speech
        sampling={"top_p": 0.2, "threshold": 1.0},
        provenance={"licence": "Apache-2.0", "default_voice": "amber"},
        parity={"ar": 0.0, "nar": 1e-5},
        files=hash_files(folder),
        others={"portable": Variant(SLOTS, other)},
    )
    write_manifest(folder, manifest)
    return manifest


def write_text(folder: Path) -> None:
    """Tokenizer, lexicon and letter rules."""
    tokenizer = Tokenizer(models.WordLevel({s: i for i, s in enumerate(SYMBOLS)}, unk_token="<none>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.save(str(folder / "tokenizer.json"))
    words = {"hello": "hˈelo\tpause=hˈelo", "there": "ðˈer", "the": "ði", "fox": "fˈoks"}
    (folder / "lexicon.tsv").write_text("".join(f"{w}\t{s}\n" for w, s in words.items()), encoding="utf-8")
    (folder / "letters.tsv").write_text("".join(f">{c}\t{c}\n" for c in "abcdefgh"), encoding="utf-8")


def write_preset(path: Path) -> Path:
    """A preset of VALL-E X."""
    arrays = (np.zeros((1, 4, 8), np.int64), np.ones((1, 3), np.int64), np.array(2))
    np.savez_compressed(path, **dict(zip(ENTRIES, arrays, strict=True)))  # type: ignore[arg-type]
    return path


# -- graphs -----------------------------------------------------------------------------------------


def number(name: str, *values: int) -> TensorProto:
    return numpy_helper.from_array(np.array(values, np.int64), name)


def ar(folder: Path, stem: str, slots: int | str) -> GraphSpec:
    """Group 0 is zeros, group 1 is 512, then `<eos>`. The logits are weights in `ar.weights`."""
    cache = ("batch", HEADS, slots, WIDTH)
    row: Axes = ("batch",)
    inputs: list[tuple[str, int, Axes]] = [
        ("text", INT, ("batch", "new")),
        ("codes", INT, ("batch", "new", GROUP)),
        *((name, INT, row) for name in ("text_lengths", "past_lengths", "new_lengths", "steps")),
        ("history", INT, ("batch", "slots")),
        ("uniforms", FLOAT, ("batch", "draws", GROUP, 2)),
        ("top_p", FLOAT, row),
        ("repeat_window", INT, row),
        ("threshold", FLOAT, row),
        *((name, FLOAT, cache) for name in ("cache_key_0", "cache_value_0")),
    ]
    outputs: list[tuple[str, int, Axes]] = [
        ("codes_out", INT, ("batch", 1, GROUP)),
        ("past_lengths_out", INT, row),
        ("steps_out", INT, row),
        ("history_out", INT, ("batch", "slots")),
        ("finished", BOOL, row),
        ("log_probs", FLOAT, ("batch", GROUP)),
        ("logits", FLOAT, ("batch", GROUP, 1025)),
        *((f"{name}_out", FLOAT, cache) for name in ("cache_key_0", "cache_value_0")),
    ]
    nodes = [
        ("Mul", ["steps", "rise"], "risen"),
        ("Min", ["risen", "end"], "least"),
        ("Unsqueeze", ["least", "last_axes"], "rowed"),
        ("Expand", ["rowed", "group_shape"], "codes_out"),
        ("Add", ["past_lengths", "new_lengths"], "past_lengths_out"),
        ("Add", ["steps", "one"], "steps_out"),
        ("Identity", ["history"], "history_out"),
        ("Equal", ["least", "end"], "finished"),
        ("Cast", ["codes_out"], "floats"),
        ("Squeeze", ["floats", "middle"], "log_probs"),
        ("Unsqueeze", ["log_probs", "end_axis"], "wide"),
        ("Mul", ["wide", "weights"], "logits"),
        ("Identity", ["cache_key_0"], "cache_key_0_out"),
        ("Identity", ["cache_value_0"], "cache_value_0_out"),
    ]
    weights = [
        number("rise", 512),
        number("end", 1024),
        number("one", 1),
        number("last_axes", 1, 2),
        number("group_shape", 1, 1, GROUP),
        number("middle", 1),
        number("end_axis", 2),
        numpy_helper.from_array(np.linspace(0, 1, 1025, dtype=np.float32), "weights"),
    ]
    return save(folder, stem, nodes, inputs, outputs, weights)


def nar(folder: Path) -> GraphSpec:
    """Every codebook copies codebook 0."""
    inputs: list[tuple[str, int, Axes]] = [
        (name, INT, tuple(CODEBOOKS if axis == CODEBOOK_AXIS else axis for axis in axes))
        for name, axes in NAR_AXES.items()
    ]
    outputs: list[tuple[str, int, Axes]] = [
        ("codes_out", INT, ("batch", "u")),
        ("logits", FLOAT, ("batch", "u", 1024)),
    ]
    nodes = [
        ("ReduceMin", ["prompt_lengths", "zero"], "first"),
        ("Slice", ["codes", "first", "most", "one"], "target"),
        ("Gather", ["target", "nought"], "codes_out"),
        ("Cast", ["codes_out"], "floats"),
        ("Unsqueeze", ["floats", "two"], "wide"),
        ("Mul", ["wide", "ones"], "logits"),
    ]
    weights = [
        number("zero", 0),
        number("most", 2**31),
        number("one", 1),
        numpy_helper.from_array(np.array(0, np.int64), "nought"),
        number("two", 2),
        numpy_helper.from_array(np.ones(1024, np.float32), "ones"),
    ]
    return save(folder, "nar", nodes, inputs, outputs, weights)


def encoder(folder: Path) -> GraphSpec:
    """Zeros for every frame."""
    nodes = [
        ("Reshape", ["audio", "frames"], "framed"),
        ("Floor", ["framed"], "whole"),
        ("Cast", ["whole"], "numbers"),
        ("Mul", ["numbers", "nothing"], "zeros"),
        ("Slice", ["zeros", "nothing", "eight", "axis"], "codes"),
    ]
    weights = [number("frames", 1, -1, HOP), number("nothing", 0), number("eight", 8), number("axis", 2)]
    return save(
        folder,
        "codec_encoder",
        nodes,
        [("audio", FLOAT, ("batch", "samples"))],
        [("codes", INT, ("one", "frames", 8))],
        weights,
    )


def decoder(folder: Path) -> GraphSpec:
    """A constant, because silence counts as a failure of the model."""
    nodes = [
        ("Cast", ["codes"], "floats"),
        ("Concat", ["floats", "floats"], "hops"),
        ("Mul", ["hops", "nothing"], "silence"),
        ("Add", ["silence", "level"], "constant"),
        ("Reshape", ["constant", "flat"], "audio"),
    ]
    weights = [
        number("flat", 1, -1),
        numpy_helper.from_array(np.zeros((1, 1, HOP), np.float32), "nothing"),
        numpy_helper.from_array(np.array([0.1], np.float32), "level"),
    ]
    return save(
        folder,
        "codec_decoder",
        nodes,
        [("codes", INT, ("batch", "frames", 8))],
        [("audio", FLOAT, ("one", "samples"))],
        weights,
    )


ATTRIBUTES: dict[str, dict[str, int]] = {"Gather": {"axis": 2}, "Concat": {"axis": 2}}
CASTS = {"numbers": INT}


def save(
    folder: Path,
    stem: str,
    nodes: Sequence[tuple[str, list[str], str]],
    inputs: Sequence[tuple[str, int, Axes]],
    outputs: Sequence[tuple[str, int, Axes]],
    weights: Sequence[TensorProto],
) -> GraphSpec:
    """Write a graph, with large weights in a file beside it. Returns the specification of its tensors."""
    made = []
    for kind, names, out in nodes:
        given = dict(ATTRIBUTES.get(kind, {})) | ({"to": CASTS.get(out, FLOAT)} if kind == "Cast" else {})
        node = helper.make_node(kind, names, [out])
        node.attribute.extend(helper.make_attribute(name, value) for name, value in given.items())
        made.append(node)
    ins, outs = ([helper.make_tensor_value_info(*row) for row in rows] for rows in (inputs, outputs))
    graph = helper.make_graph(made, stem, ins, outs, list(weights))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    weights_name, path = f"{stem.partition('-')[0]}.weights", folder / f"{stem}.onnx"
    outside = not (folder / weights_name).exists()  # the second lowering keeps its few weights inside
    onnx.save_model(
        model, str(path), save_as_external_data=outside, location=weights_name, size_threshold=1024
    )
    return GraphSpec(f"{stem}.onnx", specs(inputs), specs(outputs))


def specs(rows: Sequence[tuple[str, int, Axes]]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(name, helper.tensor_dtype_to_np_dtype(kind).name, tuple(axes)) for name, kind, axes in rows
    )
