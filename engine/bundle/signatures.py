"""The tensors that each graph must have: their names, types and axes, from the manifest's sizes.

A manifest that lists other tensors is refused when it is read, so code may index tensors by these names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from valle2.engine.bundle.contract import (
    AR,
    BUILT_GRAPHS,
    CACHE_PREFIX,
    CODEBOOKS,
    DECODER,
    ENCODER,
    FUSED_DECODER,
    GRAPHS,
    LOGITS,
    NAR,
    NAR_BATCH,
    NAR_ROW,
    OUT_SUFFIX,
    PADDED_DECODER,
    PREFILL,
    REQUIRED_GRAPHS,
    STATE_PREFIX,
    STEP,
    STREAM,
)
from valle2.engine.bundle.nar_inputs import BATCH_AXIS, CODEBOOK_AXIS, NAR_AXES
from valle2.engine.bundle.schema import MAX_CACHE, head_width
from valle2.engine.bundle.specs import GraphSpec, TensorSpec
from valle2.engine.bundle.untrusted import shown

MAX_STATES, MAX_STATE = 64, 2**24
INT, FLOAT, BOOL = ("int64",), ("float32",), ("bool",)
CACHE_TYPES = ("float32", "float16", "int8")
"""The types of numbers in a KV cache."""

Axes = tuple[int | str | None, ...]
Tensor = tuple[tuple[str, ...], Axes]
"""Types, and axes: a number is a fixed size, a name is any dynamic axis, None is not checked."""


@dataclass(frozen=True, slots=True)
class Signature:
    """The tensors of one graph. It has exactly these inputs, and may have more outputs."""

    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]


def check_graphs(graphs: Mapping[str, GraphSpec], sizes: Mapping[str, int], cache_length: int) -> None:
    """Compare the graphs of one lowering with their signatures.

    Raises:
        ValueError: a graph is missing or unknown, or a tensor of one is.
    """
    missing = [name for name in REQUIRED_GRAPHS if name not in graphs]
    if missing:
        raise ValueError(f"no graph {', '.join(missing)}")
    if (ENCODER in graphs) != (DECODER in graphs) or (STREAM in graphs and DECODER not in graphs):
        raise ValueError("a codec needs both its encoder and its decoder")
    built = [name for name in graphs if name in BUILT_GRAPHS]
    if built:
        raise ValueError(f"unknown graph {built[0]}: valle2 build makes it, and no bundle lists it")
    for name, spec in graphs.items():
        check_graph(name, spec, sizes, cache_length)


def check_graph(name: str, spec: GraphSpec, sizes: Mapping[str, int], cache_length: int) -> None:
    """Compare one graph with its signature.

    Raises:
        ValueError: the graph is unknown, or a tensor is missing, unknown, or of another type or shape.
    """
    if name not in (*GRAPHS, *BUILT_GRAPHS) or spec.graph != name:
        raise ValueError(f"graph {shown(name)} of {shown(spec.file)}; expected one of {', '.join(GRAPHS)}")
    wanted = signature_of(name, spec, sizes, cache_length)
    known = {tensor.name for tensor in spec.inputs}
    if known != set(wanted.inputs):
        raise ValueError(f"{name} has other inputs: {shown(sorted(known ^ set(wanted.inputs)))}")
    absent = sorted(set(wanted.outputs) - {tensor.name for tensor in spec.outputs})
    if absent:
        raise ValueError(f"{name} lacks the outputs {shown(absent)}")
    for tensor in spec.inputs:
        check_tensor(f"input {tensor.name} of {name}", tensor, *wanted.inputs[tensor.name])
        if 0 in tensor.axes:
            raise ValueError(f"input {tensor.name} of {name} has an axis of size 0")
    for tensor in spec.outputs:
        if tensor.name in wanted.outputs:
            check_tensor(f"output {tensor.name} of {name}", tensor, *wanted.outputs[tensor.name])
    kinds = {tensor.name: tensor.dtype for tensor in (*spec.inputs, *spec.outputs)}
    for tensor in spec.inputs:
        if kinds.get(tensor.name + OUT_SUFFIX, tensor.dtype) != tensor.dtype:
            raise ValueError(f"{name} returns {tensor.name} in another type than it takes it")


def check_tensor(what: str, tensor: TensorSpec, dtypes: tuple[str, ...], axes: Axes) -> None:
    """Compare one tensor."""
    fits = len(tensor.axes) == len(axes) and all(map(axis_matches, tensor.axes, axes))
    if tensor.dtype not in dtypes or not fits:
        raise ValueError(
            f"{what} is {tensor.dtype} {shown(tensor.axes)}; expected {' or '.join(dtypes)} {axes}"
        )


def axis_matches(found: int | str, wanted: int | str | None) -> bool:
    """Does an axis match?"""
    return wanted is None or (found == wanted if isinstance(wanted, int) else isinstance(found, str))


def signature_of(name: str, spec: GraphSpec, sizes: Mapping[str, int], cache_length: int) -> Signature:
    """The signature of a graph."""
    if name == AR:
        return ar_tensors(sizes, cache_length)
    if name == STEP:
        return step_tensors(sizes, cache_length, 0)
    if name == PREFILL:
        return prefill_tensors(sizes, cache_length)
    if name in (NAR, NAR_ROW, NAR_BATCH):
        return nar_tensors(sizes.get("codebooks", CODEBOOKS), one_row=name == NAR_ROW)
    audio, codes = (FLOAT, ("batch", "samples")), (INT, ("batch", "frames", CODEBOOKS))
    if name == ENCODER:
        return Signature({"audio": audio}, {"codes": (INT, (None, None, None))})
    made: dict[str, Tensor] = {"audio": (FLOAT, (None, None))}
    if name in (DECODER, FUSED_DECODER):
        return Signature({"codes": codes}, made)
    if name == PADDED_DECODER:
        return Signature({"codes": codes, "frame_lengths": (INT, ("batch",))}, made)
    states = stream_states(spec)
    inputs: dict[str, Tensor] = {"codes": codes, "started": (BOOL, ())}
    return Signature(
        inputs | states, made | {f"{state}{OUT_SUFFIX}": tensor for state, tensor in states.items()}
    )


def ar_tensors(sizes: Mapping[str, int], cache_length: int) -> Signature:
    """The signature of the AR (docs/bundle-format.md).

    Raises:
        ValueError: its caches are larger than any machine's memory.
    """
    group, width, layers, heads = sizes["group_size"], head_width(sizes), sizes["layers"], sizes["heads"]
    length = cache_length or sizes["max_text"] + 1 + sizes["max_frames"] // group
    if 2 * layers * heads * length * width > MAX_CACHE:
        raise ValueError(
            f"a row's caches have {2 * layers} times {heads} x {length} x {width} numbers; "
            f"expected at most {MAX_CACHE}"
        )
    row: Axes = ("batch",)
    parts = [f"{CACHE_PREFIX}{part}_{layer}" for layer in range(layers) for part in ("key", "value")]
    inputs: dict[str, Tensor] = {
        "text": (INT, ("batch", "new")),
        "codes": (INT, ("batch", "new", group)),
        "text_lengths": (INT, row),
        "past_lengths": (INT, row),
        "new_lengths": (INT, row),
        "steps": (INT, row),
        "history": (INT, ("batch", "slots")),
        "uniforms": (FLOAT, ("batch", "draws", group, 2)),
        "top_p": (FLOAT, row),
        "repeat_window": (INT, row),
        "threshold": (FLOAT, row),
    }
    outputs: dict[str, Tensor] = {
        "codes_out": (INT, (None, None, None)),
        "past_lengths_out": (INT, (None,)),
        "steps_out": (INT, (None,)),
        "history_out": (INT, (None, None)),
        "finished": (BOOL, (None,)),
        "log_probs": (FLOAT, (None, None)),
        LOGITS: (("float32", "float16"), (None, None, None)),
    }
    slots = cache_length or "cache"
    for name in parts:
        inputs[name] = (CACHE_TYPES, ("batch", heads, slots, width))
        outputs[f"{name}{OUT_SUFFIX}"] = (CACHE_TYPES, (None, None, None, None))
    return Signature(inputs, outputs)


def step_tensors(sizes: Mapping[str, int], cache_length: int, window: int) -> Signature:
    """The signature of the decode graph: the AR's for one new position of every row (docs/bundle-format.md).

    Args:
        window: codes of history, any number if it is 0.
    """
    whole = ar_tensors(sizes, cache_length)
    absent = ("text", "finished")
    inputs = {name: tensor for name, tensor in whole.inputs.items() if name not in absent}
    outputs = {name: tensor for name, tensor in whole.outputs.items() if name not in absent}
    group = sizes["group_size"]
    inputs["codes"] = (INT, ("batch", 1, group))
    inputs["history"] = (INT, ("batch", window or None))
    inputs["uniforms"] = (FLOAT, ("batch", sizes["max_frames"] // group, group, 2))
    return Signature(inputs, outputs)


def prefill_tensors(sizes: Mapping[str, int], cache_length: int) -> Signature:
    """The signature of the prefill graph: of the AR, one row's caches and what they follow from."""
    whole = ar_tensors(sizes, cache_length)
    read = ("text", "codes", "text_lengths", "past_lengths")
    taken = [name for name in whole.inputs if name in read or name.startswith(CACHE_PREFIX)]
    return Signature(
        {name: (kind, (1, *axes[1:])) for name, (kind, axes) in whole.inputs.items() if name in taken},
        {name: tensor for name, tensor in whole.outputs.items() if name.startswith(CACHE_PREFIX)},
    )


def nar_tensors(codebooks: int, *, one_row: bool = False) -> Signature:
    """The signature of the NAR (docs/bundle-format.md). one_row: of the graph for one row."""
    sizes: dict[str, int] = {CODEBOOK_AXIS: codebooks} | ({BATCH_AXIS: 1} if one_row else {})
    inputs: dict[str, Tensor] = {
        name: (INT, tuple(sizes.get(axis, axis) for axis in axes)) for name, axes in NAR_AXES.items()
    }
    logits: Tensor = (("float32", "float16"), (None, None, None))
    return Signature(inputs, {"codes_out": (INT, (None, None)), LOGITS: logits})


def stream_states(spec: GraphSpec) -> dict[str, Tensor]:
    """The states that a decoder carries from chunk to chunk.

    Raises:
        ValueError: there are too many, or one is too large.
    """
    states = [tensor for tensor in spec.inputs if tensor.name.startswith(STATE_PREFIX)]
    if len(states) > MAX_STATES:
        raise ValueError(f"{spec.file} has {len(states)} states; expected at most {MAX_STATES}")
    for tensor in states:
        size = prod(axis for axis in tensor.axes if isinstance(axis, int))
        if size > MAX_STATE:
            raise ValueError(f"{tensor.name} of {spec.file} has {size} numbers; expected at most {MAX_STATE}")
    return {tensor.name: (FLOAT, tuple(None for _ in tensor.axes)) for tensor in states}
