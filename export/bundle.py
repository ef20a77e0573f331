"""Checkpoint to bundle: export every graph, compare it with eager PyTorch, write the folder in one step.

All files are made in a hidden folder beside the target, which is renamed at the end. A failure or Ctrl-C
leaves no half-written bundle, and keeps an earlier one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import torch

from valle2.engine import GraphSpec, Manifest, TensorSpec, hash_files, open_backend, write_manifest
from valle2.engine.bundle.contract import AR, CODEBOOKS, DECODER, NAR, STREAM
from valle2.engine.bundle.files import replacing_folder, sha256
from valle2.engine.bundle.manifest import FILE_NAME, Variant
from valle2.engine.bundle.schema import NEUTRAL
from valle2.engine.errors import Valle2Error
from valle2.export.attention import LOWERINGS, OPSETS
from valle2.export.carried import copy_carried
from valle2.export.checkpoint import Checkpoint, Codec, weights_file
from valle2.export.codecs import codec_file, read_encodec, read_vocos, vocos_file
from valle2.export.codecs.common import neutral_codes
from valle2.export.errors import CheckpointError
from valle2.export.graphs import Graph, ar_graph, codec_graphs, export_graph, nar_graph
from valle2.export.importers import find_files, is_own, read_any
from valle2.export.importers.text_files import write_text_file
from valle2.export.options import AUTO, DEFAULT_LOWERING, OWN, ImportOptions
from valle2.export.verify import Judge, verify_ar, verify_codec, verify_nar, verify_stream
from valle2.export.weights import unload

WEIGHTS_OF = {STREAM: DECODER}
"""Graphs that share the weights of a graph written before them."""
EXAMPLE_CAPACITY = 128
"""Cache positions for tracing and comparison, if the graph leaves their number free."""
ACCEPTED, WARNING = "accepted_difference", "warning: "
"""A key of the provenance, and the start of messages to `progress` that a user must see."""
Progress = Callable[[str], None]


def export_checkpoint(
    checkpoint: str | Path,
    out: str | Path,
    *,
    second: str | Path | None = None,
    form: str = AUTO,
    heads: int = 0,
    prefix_mode: int | None = None,
    codec: bool | str | Path = True,
    vocoder: str | Path | None = None,
    text: str | Path | None = None,
    lowering: str | Sequence[str] = DEFAULT_LOWERING,
    cache_length: int = 0,
    accept_difference: bool = False,
    progress: Progress = lambda message: None,
) -> Path:
    """Turn a checkpoint into a bundle.

    Args:
        checkpoint: a folder in valle2's format, or its safetensors file (see `export.carried` for text and
            voices); a file of another code base (see docs/your-weights.md); or either on the hub, as
            `owner/name[/file][@revision]`.
        out: the bundle's folder. An earlier bundle there is replaced; any other folder is refused.
        second: the other file of a model in two files. form: its format, one of `options.FORMATS`.
        heads, prefix_mode: settings that the files do not hold, see `ImportOptions`.
        codec: True for the checkpoint's own, False for none, or the weights of EnCodec or SpeechTokenizer.
        vocoder: the folder or file of a Vocos for EnCodec's codes, which replaces EnCodec's decoder.
        lowering: "ort" (fused attention), "portable" (standard operators, fixed cache length) or "primitive"
            (as portable, without attention and cache operators, for TensorRT before 10.15). A bundle with
            several shares their weights; whatever loads it takes the first that it can run.
        cache_length: cache positions of a graph with a fixed number; 0 covers the position tables.
        text: the symbols or the tokenizer of an imported model (see `export.importers.text_files`).
        accept_difference: write the bundle even if a graph differs from PyTorch by more than rounding. The
            manifest records it in `provenance["accepted_difference"]`.
        progress: called with one line per stage.

    Returns:
        The bundle's folder.

    Raises:
        CheckpointError: the checkpoint does not fit. ParityError: a graph differs from PyTorch.
        Valle2Error: an unknown lowering, or a target that cannot be written.
    """
    first, *others = lowerings = list(dict.fromkeys([lowering] if isinstance(lowering, str) else lowering))
    for name in lowerings:
        if name not in LOWERINGS:
            raise Valle2Error(f"unknown lowering {name!r}; expected one of {', '.join(LOWERINGS)}")
    target = Path(out)
    check_target(target)
    found = find_files([checkpoint] if second is None else [checkpoint, second])
    files, source = list(found.paths), found.paths[0]
    wanted = codec if isinstance(codec, bool) else Path(codec)
    voice = None if vocoder is None else Path(vocoder)
    loaded = with_codec(read_any(files, ImportOptions(form, heads, prefix_mode)), wanted, voice, source)
    capacity = cache_length or loaded.config.max_text + loaded.config.max_groups
    own = form == OWN or (form == AUTO and is_own(source))
    files = [weights_file(source)] if own else files
    codec_files = [codec_file(wanted)] if isinstance(wanted, Path) else []
    codec_files += [vocos_file(voice)] if voice else []
    with replacing_folder(target) as folder:
        if own:
            beside = files[0].parent
            copy_carried(beside, folder, beside.parents[1] if found.hub else beside)
        if text is not None:
            write_text_file(folder, Path(text), loaded)
        judge = Judge(accept_difference)
        main = export_lowering(loaded, folder, first, capacity, judge, progress)
        further = {
            name: export_lowering(loaded, folder, name, capacity, judge, progress, beside=first)
            for name in others
        }
        manifest = replace(describe(loaded, main, judge, first), others=further)
        provenance = manifest.provenance | {"checkpoint_sha256": " ".join(map(sha256, files + codec_files))}
        provenance |= {"hub": found.hub} if found.hub else {}
        write_manifest(folder, replace(manifest, provenance=provenance, files=hash_files(folder)))
    return target


def with_codec(checkpoint: Checkpoint, wanted: bool | Path, vocoder: Path | None, source: Path) -> Checkpoint:
    """The checkpoint with the chosen codec. Raises CheckpointError if it would silently have none."""
    if isinstance(wanted, Path):
        return replace(checkpoint, codec=read_codec(wanted, vocoder, checkpoint.config.codebooks))
    if vocoder is not None:
        raise CheckpointError(f"{vocoder} decodes EnCodec's codes; give EnCodec's file with --codec, too")
    if wanted and checkpoint.codec is None and "family" in checkpoint.rules:
        raise CheckpointError(
            f"{source} holds no codec; give one with --codec, or pass --no-codec for a bundle that "
            "predicts codes but no audio"
        )
    return checkpoint if wanted else replace(checkpoint, codec=None)


def read_codec(path: Path, vocoder: Path | None, codebooks: int) -> Codec:
    """EnCodec or SpeechTokenizer. A vocoder replaces EnCodec's decoder."""
    if codebooks != CODEBOOKS:
        raise CheckpointError(
            f"the model has {codebooks} codebooks and the codec {CODEBOOKS}; pass --no-codec"
        )
    encoder, decoder, config = read_encodec(path)
    if vocoder is None:
        return encoder, decoder, config
    if not config.causal:
        raise CheckpointError(
            f"{vocoder} decodes EnCodec's codes; {path} is SpeechTokenizer, leave --vocoder out"
        )
    voice, sizes = read_vocos(vocoder)
    if sizes.hop != config.hop:
        raise CheckpointError(f"{vocoder} has {sizes.hop} samples per frame; expected EnCodec's {config.hop}")
    return encoder, voice, config


def export_lowering(
    checkpoint: Checkpoint,
    folder: Path,
    lowering: str,
    capacity: int,
    judge: Judge,
    progress: Progress,
    beside: str = "",
) -> Variant:
    """Export all graphs in a lowering and compare each with its module.

    Args:
        capacity: cache positions. beside: the lowering that is already in the folder. Its weights are shared,
            and its codec graphs are if both lowerings use the same opset.
    """
    fixed, opset = lowering != "ort", OPSETS[lowering]
    slots = capacity if fixed else min(capacity, EXAMPLE_CAPACITY)
    rows = [ar_graph(checkpoint.ar, lowering, slots), nar_graph(checkpoint.nar, lowering)]
    if checkpoint.codec and (not beside or OPSETS[beside] != opset):
        encoder, decoder, sizes = checkpoint.codec
        rows += codec_graphs(encoder, decoder, sizes.hop)
    specs = {}
    for row in rows:
        stem, owner = (f"{row.name}-{lowering}", row.name) if beside else (row.name, WEIGHTS_OF.get(row.name))
        shared = folder / f"{owner}.onnx" if owner else None
        progress(f"exporting {stem}")
        path = export_graph(replace(row, opset=opset), folder / f"{stem}.onnx", shared)
        specs[row.name] = graph_spec(path, row)
    progress("comparing with PyTorch")
    known = len(judge.accepted)
    compare(checkpoint, folder, specs, slots, replace(judge, suffix=f"-{lowering}" if beside else ""))
    for line in judge.accepted[known:]:
        progress(f"{WARNING}{line}; written all the same")
    return Variant(capacity if fixed else 0, specs)


def compare(
    checkpoint: Checkpoint, folder: Path, specs: dict[str, GraphSpec], capacity: int, judge: Judge
) -> None:
    """Compare every graph with its module. Raises ParityError for a wrong graph.

    One large graph is open at a time, with only its own module's weights in memory.
    """
    unload(checkpoint.nar)
    with open_backend(folder, specs[AR]) as ar:
        verify_ar(checkpoint.ar, ar, capacity, judge)
    unload(checkpoint.ar)
    with open_backend(folder, specs[NAR]) as nar:
        verify_nar(checkpoint.nar, nar, judge)
    if checkpoint.codec and DECODER in specs:
        codec = {name: open_backend(folder, spec) for name, spec in specs.items() if name not in (AR, NAR)}
        verify_codec(*checkpoint.codec, codec, judge)
        if STREAM in codec:
            verify_stream(checkpoint.codec[1], codec[STREAM], judge)


def describe(checkpoint: Checkpoint, main: Variant, judge: Judge, lowering: str) -> Manifest:
    """The manifest, without the hashes."""
    codec: dict[str, Any] = {}
    if checkpoint.codec:
        sizes = checkpoint.codec[2]
        codec = {"sample_rate": sizes.sample_rate, "hop": sizes.hop}
        codec[NEUTRAL] = neutral_codes(checkpoint.codec[1].get_parameter("tables"))
    accepted = {ACCEPTED: "; ".join(judge.accepted)} if judge.accepted else {}
    return Manifest(
        name=checkpoint.name,
        sizes=checkpoint.config.sizes(),
        lowering=lowering,
        cache_length=main.cache_length,
        graphs=main.graphs,
        codec=codec,
        text=checkpoint.text,
        sampling=checkpoint.sampling,
        rules=rules_of(checkpoint),
        provenance=checkpoint.provenance | {"exporter": f"torch {torch.__version__}"} | accepted,
        parity=judge.parity,
    )


def rules_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """The checkpoint's rules, and those that follow from its network. Empty for VALL-E 2."""
    style = checkpoint.config.style
    whole_text = style.text_ahead or style.prenet
    return checkpoint.rules | ({"whole_text": whole_text} if checkpoint.rules or whole_text else {})


def graph_spec(path: Path, graph: Graph) -> GraphSpec:
    """Manifest entries of the tensors of a written graph."""
    model = onnx.load(str(path), load_external_data=False)

    def specs(values: Any) -> tuple[TensorSpec, ...]:
        return tuple(
            TensorSpec(
                value.name,
                onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name,
                tuple(d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim),
            )
            for value in values
        )

    return GraphSpec(path.name, specs(model.graph.input), specs(model.graph.output))


def check_target(target: Path) -> None:
    """Refuse a target that is a file, holds other files, or lies in a missing or read-only folder."""
    if not target.parent.is_dir():
        raise Valle2Error(f"{target.parent} does not exist; make it first with: mkdir -p {target.parent}")
    if not os.access(target.parent, os.W_OK):
        raise Valle2Error(f"{target.parent} is read-only; choose another folder for the bundle")
    if target.is_symlink() or target.is_file():
        raise Valle2Error(f"{target} is not a folder; choose another name for the bundle")
    if target.is_dir() and any(target.iterdir()) and not (target / FILE_NAME).is_file():
        raise Valle2Error(f"{target} holds other files than a bundle; choose an empty or new folder")
