"""lifeiteng/vall-e, icefall's descendants of it, and Plachtaa's VALL-E X.

They share one network: sinusoidal positions with learned scales, an AR whose text attends to all of the text,
and a NAR with the stage in its norms. Settings that a file does not hold come from `ImportOptions`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from valle2.engine.bundle.contract import CODEBOOK_SIZE
from valle2.engine.bundle.untrusted import shown
from valle2.export.checkpoint import Checkpoint
from valle2.export.errors import CheckpointError
from valle2.export.importers.family import MAX_FRAMES, MAX_TEXT, assemble, heads_of, staged
from valle2.export.models import ModelConfig, Style
from valle2.export.models.layers import PRENET_CONVOLUTIONS, PRENET_KERNEL, PRENET_WIDTH
from valle2.export.options import ImportOptions
from valle2.export.weights import TensorReader

LANGUAGES = 3
BOS, EOS = 1, 2
PREFIX_MODES = (0, 1, 2, 4)
NAMES = ("vall-e", "valle")
PUBLISHED_HEADS = {1024: 16}
ROWS = 64
"""Rows of a position table that are computed at once, to bound memory."""
BATCH_NORM_EPSILON = 1e-5
Weights = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Part:
    """Sizes of one half of the file. name: `ar` or `nar`."""

    name: str
    width: int
    ffn: int
    layers: int


def part_of(reader: TensorReader, name: str) -> Part:
    """Read the sizes of a half from its shapes."""
    width = reader.shape(f"{name}_text_embedding.word_embeddings.weight", 2)[1]
    layers = reader.count(f"{name}_decoder.layers.{{}}.linear1.weight")
    ffn = reader.shape(f"{name}_decoder.layers.0.linear1.weight", 2)[0]
    return Part(name, width, ffn, layers)


def read_lifeiteng(reader: TensorReader, extras: Mapping[str, Any], options: ImportOptions) -> Checkpoint:
    """lifeiteng/vall-e: `<bos>` and `<eos>` around the text, hyper-parameters beside the weights."""
    name = str(extras.get("model_name", NAMES[0])).lower()
    if name not in NAMES or "ar_decoder.layers.0.multihead_attn.in_proj_weight" in reader:
        kind = name if name not in NAMES else "vall-f"
        raise CheckpointError(
            f"{reader.path} is another kind of network, {shown(kind.upper())}; expected VALL-E"
        )
    mode = prefix_mode(reader, extras, options)
    rules = {"text_begin": [BOS], "text_end": [EOS], "nar_text": "target" if mode in (2, 4) else "same"}
    return read_network(reader, extras, options, "lifeiteng", mode, rules)


def read_vallex(reader: TensorReader, extras: Mapping[str, Any], options: ImportOptions) -> Checkpoint:
    """VALL-E X: one language per phone, no marks around the text."""
    if options.prefix_mode not in (None, 1):
        raise CheckpointError(f"--prefix-mode is {options.prefix_mode}; VALL-E X has 1: leave it out")
    rules = {"text_begin": [], "text_end": [], "languages": LANGUAGES}
    return read_network(reader, {}, options, "vallex", 1, rules)


def prefix_mode(reader: TensorReader, extras: Mapping[str, Any], options: ImportOptions) -> int:
    """How the NAR sees the prompt, from the file or from the options."""
    said, given = extras.get("prefix_mode"), options.prefix_mode
    if said is not None and given is not None and said != given:
        raise CheckpointError(f"--prefix-mode is {given}, but {reader.path} says {shown(said)}: leave it out")
    mode = said if said is not None else given
    if mode is None:
        heads = "" if extras.get("nhead") or options.heads else "its attention heads and "
        flags = "--heads (often its width / 64) and " if heads else ""
        raise CheckpointError(
            f"{reader.path} does not say {heads}its prefix mode; pass {flags}--prefix-mode "
            "(the published recipes use 1)"
        )
    if mode not in PREFIX_MODES:
        raise CheckpointError(f"{reader.path}: prefix mode is {shown(mode)}; expected one of {PREFIX_MODES}")
    return int(mode)


def read_network(
    reader: TensorReader,
    extras: Mapping[str, Any],
    options: ImportOptions,
    family: str,
    mode: int,
    rules: dict[str, Any],
) -> Checkpoint:
    """Build a checkpoint from both halves of the file."""
    books = reader.count("nar_audio_embeddings.{}.word_embeddings.weight")
    if books < 2:
        raise CheckpointError(f"{reader.path} has no NAR half; expected a model of two or more codebooks")
    ar, nar = part_of(reader, "ar"), part_of(reader, "nar")
    vocab = reader.shape("ar_text_embedding.word_embeddings.weight", 2)[0]
    rows = reader.shape("ar_audio_embedding.word_embeddings.weight", 2)[0]
    bos = rows == CODEBOOK_SIZE + 2
    norm_first = "ar_decoder.norm.weight" in reader
    prenet = "ar_audio_prenet.0.weight" in reader
    derived = {
        "prepend_bos": bos,
        "norm_first": norm_first,
        "add_prenet": prenet,
        "num_quantizers": books,
        "decoder_dim": ar.width,
        "num_decoder_layers": ar.layers,
    }
    agree(reader, extras, derived)
    heads, nar_heads = head_counts(reader, extras, options, ar, nar)
    style = Style(
        norm_first=norm_first,
        activation="relu",
        text_ahead=True,
        code_bos=bos,
        head="own",
        stage="norm",
        whole_prompt=mode != 0,
        prenet=prenet,
        argmax_ends=family == "lifeiteng",
    )
    languages = rules.get("languages", 1)
    config = ModelConfig(
        vocab_size=vocab,
        d_model=ar.width,
        heads=heads,
        layers=ar.layers,
        ffn=ar.ffn,
        group_size=1,
        max_text=MAX_TEXT,
        max_frames=MAX_FRAMES,
        nar_d_model=nar.width,
        nar_heads=nar_heads,
        nar_layers=nar.layers,
        nar_ffn=nar.ffn,
        codebooks=books,
        text_rows=vocab * languages,
        nar_text_rows=vocab * languages,
        style=style,
    )
    weights = ar_weights(reader, ar, config, rows), nar_weights(reader, nar, config)
    scales = [position_scales(reader, part) for part in (ar, nar)]
    reader.finish("num_batches_tracked")
    for part, found, pair in zip((ar, nar), weights, scales, strict=True):  # last, since they are large
        found |= positions(part, config, *pair)
    ends = {
        "frames_per_token": 16,
        "frames_extra": int(not bos),
        "frames_least": 0,
        "limit_counts_prompt": True,
        "code_bos": bos,
    }
    return assemble(config, *weights, family, rules | ends, [reader.path])


def agree(reader: TensorReader, extras: Mapping[str, Any], derived: Mapping[str, Any]) -> None:
    """Check that the hyper-parameters in the file agree with its tensors."""
    for name, value in derived.items():
        if extras.get(name) is not None and extras[name] != value:
            raise CheckpointError(
                f"{reader.path} says {name} is {shown(extras[name])}, but its weights make it {value!r}; "
                "it is damaged or another network"
            )


def head_counts(
    reader: TensorReader, extras: Mapping[str, Any], options: ImportOptions, ar: Part, nar: Part
) -> tuple[int, int]:
    """Attention heads of the AR, and of the NAR, which scale with its width."""
    published = (
        PUBLISHED_HEADS.get(ar.width) if "ar_language_embedding.word_embeddings.weight" in reader else None
    )
    said = extras.get("nhead") or published
    heads = heads_of(reader.path, said, options, ar.width)
    scale = extras.get("scale_factor") or nar.width / ar.width
    if isinstance(scale, str) or not abs(ar.width * scale - nar.width) < 1:  # refuses NaN, too
        raise CheckpointError(
            f"{reader.path} says scale_factor is {shown(scale)}, but its halves are {ar.width} "
            f"and {nar.width} wide; it is damaged or another network"
        )
    return heads, max(1, int(heads * scale + 1e-6))


def sinusoids(rows: int, width: int, scale: Tensor) -> Tensor:
    """Interleaved sines and cosines (rows, width) times a learned scale, in float32 as in training."""
    rate = torch.exp(torch.arange(0, width, 2, dtype=torch.float32) * -(math.log(10000.0) / width))
    table = torch.empty(rows, width)
    for first in range(0, rows, ROWS):
        part = table[first : first + ROWS]
        phase = torch.arange(first, first + len(part), dtype=torch.float32)[:, None] * rate
        part[:, 0::2] = phase.sin()
        part[:, 1::2] = phase.cos()[:, : width // 2]
    return table.mul_(scale)


def text_weights(reader: TensorReader, part: Part, config: ModelConfig) -> Weights:
    """The text table. Each language is one more copy of its rows, with the language's vector added."""
    name, width = part.name, part.width
    rows = config.vocab_size
    table = reader.take(f"{name}_text_embedding.word_embeddings.weight", rows, width)
    if config.text_rows > rows:
        tongues = reader.take(f"{name}_language_embedding.word_embeddings.weight", LANGUAGES, width)
        table = (table[None] + tongues[:, None]).flatten(0, 1)
    return {"text_table.weight": table}


def position_scales(reader: TensorReader, part: Part) -> tuple[Tensor, Tensor]:
    """The learned scales of the text positions and of the code positions."""
    text, audio = (reader.take(f"{part.name}_{kind}_position.alpha", 1) for kind in ("text", "audio"))
    return text, audio


def positions(part: Part, config: ModelConfig, text: Tensor, audio: Tensor) -> Weights:
    """Position tables from their scales. The file does not hold the tables."""
    frames = config.max_groups if part.name == "ar" else config.max_frames + 2
    return {
        "text_positions.weight": sinusoids(config.max_text, part.width, text),
        "code_positions.weight": sinusoids(frames, part.width, audio),
    }


def ar_weights(reader: TensorReader, part: Part, config: ModelConfig, rows: int) -> Weights:
    """The AR half. The code prenet is folded into the code table."""
    width = part.width
    if rows not in (CODEBOOK_SIZE + 1, CODEBOOK_SIZE + 2):
        expected = f"{CODEBOOK_SIZE + 1} or {CODEBOOK_SIZE + 2}"
        raise CheckpointError(f"{reader.path}: {rows} rows of AR audio embeddings; expected {expected}")
    codes = reader.take("ar_audio_embedding.word_embeddings.weight", rows, width)
    found = text_weights(reader, part, config)
    if config.style.prenet:
        found |= text_prenet(reader, part.name, width)
        codes = through_prenet(codes, code_prenet(reader, part.name, width))
    found["code_table.weight"] = codes[: CODEBOOK_SIZE + 1]
    if config.style.code_bos:
        found["bos"] = codes[CODEBOOK_SIZE + 1]
    found["predict.weight"] = reader.take("ar_predict_layer.weight", CODEBOOK_SIZE + 1, width)
    found |= decoder(reader, part, config, None)
    return found


def nar_weights(reader: TensorReader, part: Part, config: ModelConfig) -> Weights:
    """The NAR half."""
    width, books = part.width, config.codebooks
    found = text_weights(reader, part, config)
    if config.style.prenet:
        found |= text_prenet(reader, part.name, width) | code_prenet(reader, part.name, width)
    first = reader.take("nar_audio_embeddings.0.word_embeddings.weight", CODEBOOK_SIZE + 1, width)
    tables = [first[:CODEBOOK_SIZE]] + [
        reader.take(f"nar_audio_embeddings.{j}.word_embeddings.weight", CODEBOOK_SIZE, width)
        for j in range(1, books)
    ]
    heads = [reader.take(f"nar_predict_layers.{j}.weight", CODEBOOK_SIZE, width) for j in range(books - 1)]
    stages = [
        reader.take(f"nar_stage_embeddings.{j}.word_embeddings.weight", 1, width) for j in range(books - 1)
    ]
    found["code_tables"], found["heads"] = torch.stack(tables), torch.stack(heads)
    return found | decoder(reader, part, config, torch.cat(stages))


def decoder(reader: TensorReader, part: Part, config: ModelConfig, stages: Tensor | None) -> Weights:
    """Blocks and final norm. stages: (Q - 1, d) if the norms depend on the stage."""
    width, found = part.width, Weights()
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {
        "self_attn.in_proj_weight": ("qkv.weight", (3 * width, width)),
        "self_attn.in_proj_bias": ("qkv.bias", (3 * width,)),
        "self_attn.out_proj.weight": ("out.weight", (width, width)),
        "self_attn.out_proj.bias": ("out.bias", (width,)),
        "linear1.weight": ("up.weight", (part.ffn, width)),
        "linear1.bias": ("up.bias", (part.ffn,)),
        "linear2.weight": ("down.weight", (width, part.ffn)),
        "linear2.bias": ("down.bias", (width,)),
    }
    for layer in range(part.layers):
        source, target = f"{part.name}_decoder.layers.{layer}", f"blocks.{layer}"
        found |= reader.take_all(source, target, shapes)
        for name in ("norm1", "norm2"):
            found |= norm(reader, f"{source}.{name}", f"{target}.{name}", width, stages)
    if config.style.norm_first:
        found |= norm(reader, f"{part.name}_decoder.norm", "norm", width, stages)
    return found


def norm(reader: TensorReader, source: str, target: str, width: int, stages: Tensor | None) -> Weights:
    """A norm's gain and shift. The stage's own scale and shift are folded in, if there are stages."""
    if stages is None:
        gain, shift = (reader.take(f"{source}.{kind}", width) for kind in ("weight", "bias"))
    else:
        inner, offset = (reader.take(f"{source}.norm.{kind}", width).double() for kind in ("weight", "bias"))
        matrix = reader.take(f"{source}.project_layer.weight", 2 * width, width).double()
        bias = reader.take(f"{source}.project_layer.bias", 2 * width).double()
        scale, move = (stages.double() @ matrix.T + bias).chunk(2, dim=1)
        gain, shift = (staged(table.float()) for table in (scale * inner, scale * offset + move))
    return {f"{target}.weight": gain, f"{target}.bias": shift}


def text_prenet(reader: TensorReader, half: str, width: int) -> Weights:
    """Layers before the text positions: convolutions with their batch norms folded in, and a linear layer.

    half: `ar` or `nar`; also for `code_prenet`.
    """
    source = f"{half}_text_prenet"
    found = Weights()
    for index in range(PRENET_CONVOLUTIONS):
        here, after = 1 + 4 * index, 2 + 4 * index
        weight = reader.take(f"{source}.{here}.weight", width, width, PRENET_KERNEL).double()
        bias = reader.take(f"{source}.{here}.bias", width).double()
        names = ("weight", "bias", "running_mean", "running_var")
        gain, shift, mean, variance = (
            reader.take(f"{source}.{after}.{name}", width).double() for name in names
        )
        scale = gain / (variance + BATCH_NORM_EPSILON).sqrt()
        target = f"text_prenet.convolutions.{index}"
        found[f"{target}.weight"] = (weight * scale[:, None, None]).float()
        found[f"{target}.bias"] = ((bias - mean) * scale + shift).float()
    last = 2 + 4 * PRENET_CONVOLUTIONS
    found["text_prenet.out.weight"] = reader.take(f"{source}.{last}.weight", width, width)
    found["text_prenet.out.bias"] = reader.take(f"{source}.{last}.bias", width)
    return found


def code_prenet(reader: TensorReader, half: str, width: int) -> Weights:
    """The three linear layers before the code positions."""
    widths = (width, PRENET_WIDTH, PRENET_WIDTH, width)
    found = Weights()
    for index, (source, before, after) in enumerate(zip((0, 3, 6), widths[:3], widths[1:], strict=True)):
        name = f"{half}_audio_prenet.{source}"
        found[f"code_prenet.{2 * index}.weight"] = reader.take(f"{name}.weight", after, before)
        found[f"code_prenet.{2 * index}.bias"] = reader.take(f"{name}.bias", after)
    return found


def through_prenet(table: Tensor, layers: Weights) -> Tensor:
    """Apply the code prenet to every row of a table."""
    for index in range(3):
        weight, bias = (layers[f"code_prenet.{2 * index}.{kind}"] for kind in ("weight", "bias"))
        table = functional.linear(table.relu() if index else table, weight, bias)
    return table
