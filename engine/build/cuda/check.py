"""Compares a rewritten graph with the graph that it comes from, in float32 on the CPU.

ONNX Runtime has float32 kernels on the CPU for all operators that the rewritten graphs use. So every build
proves the structure of its own graph before it is converted to half precision.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from valle2.engine.backends.base import Backend
from valle2.engine.backends.registry import open_backend
from valle2.engine.build.cuda.codec_padded import LENGTHS
from valle2.engine.build.cuda.step import written_spec
from valle2.engine.build.external_data import write_graph
from valle2.engine.bundle.contract import (
    CACHE_PREFIX,
    CODEBOOK_SIZE,
    CODEBOOKS,
    DECODER,
    LOGITS,
    NAR,
    NAR_BATCH,
    OUT_SUFFIX,
)
from valle2.engine.bundle.nar_inputs import NARInputs
from valle2.engine.bundle.specs import GraphSpec
from valle2.engine.errors import BackendError

Array = NDArray[Any]
TOLERANCE = 1e-3
"""Of the logits, as a share of the greatest one. The order of sums differs, and nothing else may."""
NEAR_TIES = 0.05
"""The share of codes that may differ: two codes are nearly as likely, and the order of sums decides."""
ROWS, CALLS = 3, 4
CHOSEN, AUDIO = "codes_out", "audio"
CODEC_FRAMES = 1, 2, 30, 75
"""By call, frames of codes."""
QUIET = 1e-6
"""A difference of samples that no 16-bit file holds."""


def check_fused(folder: Path, spec: GraphSpec, model: onnx.ModelProto, sizes: Mapping[str, int]) -> None:
    """Run a few calls with random inputs through a rewritten graph and through the graph that it comes from.

    Args:
        folder: where the source lies. spec: its tensors. model: the rewritten graph in float32.

    Raises:
        BackendError: the logits or samples differ, or the NAR's codes, or the AR's new keys and values or
            the positions.
    """
    with TemporaryDirectory() as made, open_backend(folder, spec) as whole:
        copy = onnx.ModelProto.FromString(model.SerializeToString())
        name = NAR_BATCH if spec.graph == NAR and not takes_one_row(model) else "fused"
        file = write_graph(copy, Path(made) / f"{name}.onnx")
        with open_backend(file.parent, written_spec(model, file.name)) as fused:
            rng = np.random.default_rng(0)
            for call in range(CALLS):
                if LENGTHS in {tensor.name for tensor in fused.spec.inputs} and spec.graph == DECODER:
                    compare_padded_waves(whole, fused, CODEC_FRAMES[call], rng)
                elif spec.graph == DECODER:
                    compare_waves(whole, fused, CODEC_FRAMES[call], rng)
                elif spec.graph == NAR:
                    rows = 1 if takes_one_row(model) else ROWS
                    feeds = random_pass(sizes, 1 + call % (sizes["codebooks"] - 1), rng, rows)
                    compare_passes(whole, fused, feeds)
                else:
                    compare_steps(whole, fused, random_step(fused.spec, sizes, rng))


def compare_passes(whole: Backend, fused: Backend, feeds: Mapping[str, Array]) -> None:
    """Run a pass of the NAR through both graphs: logits, and codes but for a few near ties.

    What they return for padding and prompts is not compared.
    """
    expected, found = (backend.run(feeds, (LOGITS, CHOSEN)) for backend in (whole, fused))
    frames = feeds["codes"].shape[1]
    returned = frames if fused.spec.graph == NAR_BATCH else expected[CHOSEN].shape[1]
    if any(
        found[name].shape != (len(feeds["text"]), returned, *expected[name].shape[2:]) for name in expected
    ):
        refuse(whole.spec, [LOGITS, CHOSEN])
    one, other = (
        {name: of_targets(feeds, values) for name, values in made.items()} for made in (expected, found)
    )
    wrong = [] if close(one[LOGITS], other[LOGITS]) else [LOGITS]
    differ = (one[CHOSEN] != other[CHOSEN]).sum() > NEAR_TIES * other[CHOSEN].size + 1
    refuse(whole.spec, [*wrong, CHOSEN] if differ else wrong)


def of_targets(feeds: Mapping[str, Array], values: Array) -> Array:
    """What a NAR returned for the frames of the targets: (B, T', ...) -> (N, ...).

    T' is T or less. The last of T frames is the last of T'.
    """
    prompts, frames = (feeds[name][:, None] for name in ("prompt_lengths", "frame_lengths"))
    frames_held = feeds["codes"].shape[1]
    places = np.arange(frames_held - values.shape[1], frames_held)
    return np.asarray(values[(places >= prompts) & (places < frames)])


def compare_waves(whole: Backend, fused: Backend, frames: int, rng: np.random.Generator) -> None:
    """Decode random codes, two rows at a time but for one frame, through both graphs."""
    codes = rng.integers(0, CODEBOOK_SIZE, (min(2, frames), frames, CODEBOOKS))
    expected, found = (backend.run({"codes": codes})[AUDIO] for backend in (whole, fused))
    same_shape = expected.shape == found.shape
    loudest = float(np.abs(expected).max())
    right = same_shape and np.abs(expected - found).max() <= TOLERANCE * loudest + QUIET
    refuse(whole.spec, [] if right else [AUDIO])


def compare_padded_waves(whole: Backend, fused: Backend, frames: int, rng: np.random.Generator) -> None:
    """Decode rows of different lengths with random codes behind them, and each row alone with the source."""
    lengths = np.array([frames, max(1, frames // 2), 1])
    codes = rng.integers(0, CODEBOOK_SIZE, (len(lengths), frames + 3, CODEBOOKS))
    found = fused.run({"codes": codes, LENGTHS: lengths})[AUDIO]
    for row, length in enumerate(lengths):
        expected = whole.run({"codes": codes[row : row + 1, :length]})[AUDIO][0]
        differ = np.abs(found[row, : len(expected)] - expected).max()
        refuse(whole.spec, [] if differ <= TOLERANCE * np.abs(expected).max() + QUIET else [AUDIO])


def random_pass(
    sizes: Mapping[str, int], stage: int, rng: np.random.Generator, rows: int = 1
) -> dict[str, Array]:
    """Inputs of the NAR: one row without padding, or rows of different lengths."""
    text = rng.integers(1, min(20, sizes["max_text"]), rows)
    frames = rng.integers(4, max(5, min(40, sizes["max_frames"])), rows)
    return NARInputs(
        text=rng.integers(0, sizes["nar_text_rows"], (rows, text.max())),
        text_lengths=text,
        codes=rng.integers(0, CODEBOOK_SIZE, (rows, frames.max(), sizes["codebooks"])),
        prompt_lengths=frames * (stage % 3) // 4,
        frame_lengths=frames,
        stage=np.array(stage),
    ).feeds()


def random_step(spec: GraphSpec, sizes: Mapping[str, int], rng: np.random.Generator) -> dict[str, Array]:
    """Inputs of a decode graph: `ROWS` rows at different positions, with caches full of random numbers."""
    tensors = {tensor.name: tensor for tensor in spec.inputs}
    capacity, slots = int(tensors[f"{CACHE_PREFIX}key_0"].axes[2]), int(tensors["history"].axes[1])
    text = rng.integers(1, max(2, min(sizes["max_text"], capacity // 2)), ROWS)
    groups = min(sizes["max_frames"] // sizes["group_size"], capacity - 1 - int(text.max()))
    feeds: dict[str, Array] = {
        "codes": rng.integers(0, CODEBOOK_SIZE, (ROWS, 1, sizes["group_size"])),
        "text_lengths": text,
        "past_lengths": text + rng.integers(1, max(2, groups), ROWS),
        "new_lengths": np.ones(ROWS, np.int64),
        "steps": rng.integers(0, int(tensors["uniforms"].axes[1]), ROWS),
        "history": rng.integers(0, CODEBOOK_SIZE, (ROWS, slots)),
        "uniforms": rng.random((ROWS, *map(int, tensors["uniforms"].axes[1:])), np.float32),
        "top_p": np.array([0, 0.5, 0.9], np.float32),
        "repeat_window": np.full(ROWS, min(10, slots)),
        "threshold": np.full(ROWS, 0.1, np.float32),
    }
    for name, tensor in tensors.items():
        if name.startswith(CACHE_PREFIX):
            shape = (ROWS, *map(int, tensor.axes[1:]))
            feeds[name] = rng.standard_normal(shape, np.float32).astype(tensor.dtype)
    return feeds


def compare_steps(whole: Backend, fused: Backend, feeds: Mapping[str, Array]) -> None:
    """Run a decode graph and its AR graph on the same inputs."""
    step_inputs = {tensor.name for tensor in fused.spec.inputs}
    expected = whole.run({**feeds, "text": np.zeros((ROWS, 1), np.int64)})
    found = fused.run({name: value for name, value in feeds.items() if name in step_inputs})
    wrong = [name for name in ("past_lengths", "steps") if not same(expected, found, name + OUT_SUFFIX)]
    written = feeds["past_lengths"]
    for name in expected:
        if name == LOGITS or name.startswith(CACHE_PREFIX):
            one, other = expected[name], found[name]
            if name != LOGITS:  # the positions that this step wrote
                one, other = (part[np.arange(ROWS), :, written] for part in (one, other))
            if not close(one, other):
                wrong.append(name)
    refuse(whole.spec, wrong)


def close(expected: Array, found: Array) -> bool:
    """Whether only the order of sums differs."""
    return bool(np.abs(expected - found).max() <= TOLERANCE * max(1.0, float(np.abs(expected).max())))


def refuse(spec: GraphSpec, wrong: list[str]) -> None:
    """Refuse a graph in which tensors are wrong."""
    if wrong:
        raise BackendError(f"the graph of fused operators differs from {spec.file} in {', '.join(wrong)}")


def same(expected: Mapping[str, Array], found: Mapping[str, Array], name: str) -> bool:
    return np.array_equal(expected[name], found[name])


def takes_one_row(model: onnx.ModelProto) -> bool:
    """Whether the graph's inputs are fixed to one row."""
    text = next(value for value in model.graph.input if value.name == "text")
    return bool(text.type.tensor_type.shape.dim[0].dim_value == 1)
