"""Weights of lifeiteng/vall-e (and icefall's descendants) and of Plachtaa's VALL-E X, on our modules.

Both are one network: sinusoidal positions with learned scales, a text that sees all of itself, and a NAR
whose stage is in its norms. What a file does not say comes from `Options`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from valle2.engine.bundle.untrusted import shown
from valle2.export.checkpoint import Checkpoint
from valle2.export.errors import CheckpointError
from valle2.export.importers.family import MAX_FRAMES, MAX_TEXT, Options, assemble, heads_of
from valle2.export.importers.prenets import code_prenet, text_prenet, through_prenet
from valle2.export.models.config import CODEBOOK_SIZE, ModelConfig, Style
from valle2.export.weights.pickles import printable
from valle2.export.weights.tensors import Claims

LANGUAGES = 3
BOS, EOS = 1, 2
PREFIX_MODES = (0, 1, 2, 4)
NAMES = ("vall-e", "valle")
PUBLISHED_HEADS = {1024: 16}
ROWS = 64
"""Of a table of positions, computed at once."""
Weights = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Part:
    """One half of the file. name: `ar` or `nar`."""

    name: str
    width: int
    ffn: int
    layers: int


def part_of(claims: Claims, name: str) -> Part:
    """Sizes of a half, read from its shapes."""
    width = claims.shape(f"{name}_text_embedding.word_embeddings.weight", 2)[1]
    layers = claims.count(f"{name}_decoder.layers.{{}}.linear1.weight")
    ffn = claims.shape(f"{name}_decoder.layers.0.linear1.weight", 2)[0]
    return Part(name, width, ffn, layers)


def read_lifeiteng(claims: Claims, extras: Mapping[str, Any], options: Options) -> Checkpoint:
    """lifeiteng/vall-e: `<bos>` and `<eos>` around the text, hyper-parameters beside the weights."""
    name = str(extras.get("model_name", NAMES[0])).lower()
    if name not in NAMES or "ar_decoder.layers.0.multihead_attn.in_proj_weight" in claims:
        kind = name if name not in NAMES else "vall-f"
        raise CheckpointError(
            f"{claims.path} is a {printable(kind.upper())} network, which is another one; expected VALL-E"
        )
    mode = prefix_mode(claims, extras, options)
    rules = {"text_begin": [BOS], "text_end": [EOS], "nar_text": "target" if mode in (2, 4) else "same"}
    return read_network(claims, extras, options, "lifeiteng", mode, rules)


def read_vallex(claims: Claims, extras: Mapping[str, Any], options: Options) -> Checkpoint:
    """VALL-E X: a language per phone, nothing around the text."""
    if options.prefix_mode not in (None, 1):
        raise CheckpointError(f"--prefix-mode is {options.prefix_mode}; VALL-E X has 1: leave it out")
    rules = {"text_begin": [], "text_end": [], "languages": LANGUAGES}
    return read_network(claims, {}, options, "vallex", 1, rules)


def prefix_mode(claims: Claims, extras: Mapping[str, Any], options: Options) -> int:
    """How the NAR sees the prompt: from the file, or given."""
    said, given = extras.get("prefix_mode"), options.prefix_mode
    if said is not None and given is not None and said != given:
        raise CheckpointError(f"--prefix-mode is {given}, but {claims.path} says {shown(said)}: leave it out")
    mode = said if said is not None else given
    if mode is None:
        heads = "" if extras.get("nhead") or options.heads else "its attention heads and "
        flags = "--heads (often its width / 64) and " if heads else ""
        raise CheckpointError(
            f"{claims.path} does not say {heads}its prefix mode; pass {flags}--prefix-mode "
            "(the published recipes use 1)"
        )
    if mode not in PREFIX_MODES:
        raise CheckpointError(f"{claims.path}: prefix mode is {shown(mode)}; expected one of {PREFIX_MODES}")
    return int(mode)


def read_network(
    claims: Claims, extras: Mapping[str, Any], options: Options, family: str, mode: int, rules: dict[str, Any]
) -> Checkpoint:
    """Both halves of the file."""
    books = claims.count("nar_audio_embeddings.{}.word_embeddings.weight")
    if books < 2:
        raise CheckpointError(f"{claims.path} has no NAR half; expected a model of two or more codebooks")
    ar, nar = part_of(claims, "ar"), part_of(claims, "nar")
    vocab = claims.shape("ar_text_embedding.word_embeddings.weight", 2)[0]
    rows = claims.shape("ar_audio_embedding.word_embeddings.weight", 2)[0]
    bos = rows == CODEBOOK_SIZE + 2
    norm_first = "ar_decoder.norm.weight" in claims
    prenet = "ar_audio_prenet.0.weight" in claims
    derived = {
        "prepend_bos": bos,
        "norm_first": norm_first,
        "add_prenet": prenet,
        "num_quantizers": books,
        "decoder_dim": ar.width,
        "num_decoder_layers": ar.layers,
    }
    agree(claims, extras, derived)
    heads, nar_heads = head_counts(claims, extras, options, ar, nar)
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
    weights = ar_weights(claims, ar, config, rows), nar_weights(claims, nar, config)
    scales = [position_scales(claims, part) for part in (ar, nar)]
    claims.finish("num_batches_tracked")
    for part, found, pair in zip((ar, nar), weights, scales, strict=True):  # last: they are large
        found |= positions(part, config, *pair)
    ends = {
        "frames_per_token": 16,
        "frames_extra": int(not bos),
        "frames_least": 0,
        "limit_counts_prompt": True,
        "code_bos": bos,
    }
    return assemble(config, *weights, family, rules | ends, [claims.path])


def agree(claims: Claims, extras: Mapping[str, Any], derived: Mapping[str, Any]) -> None:
    """What the file says of itself must be what its tensors are."""
    for name, value in derived.items():
        if extras.get(name) is not None and extras[name] != value:
            raise CheckpointError(
                f"{claims.path} says {name} is {shown(extras[name])}, but its weights make it {value!r}; "
                "it is damaged or another network"
            )


def head_counts(
    claims: Claims, extras: Mapping[str, Any], options: Options, ar: Part, nar: Part
) -> tuple[int, int]:
    """Attention heads of the AR and of the NAR, whose width they are scaled with."""
    published = (
        PUBLISHED_HEADS.get(ar.width) if "ar_language_embedding.word_embeddings.weight" in claims else None
    )
    said = extras.get("nhead") or published
    heads = heads_of(claims.path, said, options, ar.width)
    scale = extras.get("scale_factor") or nar.width / ar.width
    if isinstance(scale, str) or not abs(ar.width * scale - nar.width) < 1:  # NaN too
        raise CheckpointError(
            f"{claims.path} says scale_factor is {shown(scale)}, but its halves are {ar.width} "
            f"and {nar.width} wide; it is damaged or another network"
        )
    return heads, max(1, int(heads * scale + 1e-6))


def sinusoids(rows: int, width: int, scale: Tensor) -> Tensor:
    """Interleaved sines and cosines (rows, width) times a learned scale, in float32 as they were trained."""
    rate = torch.exp(torch.arange(0, width, 2, dtype=torch.float32) * -(math.log(10000.0) / width))
    table = torch.empty(rows, width)
    for first in range(0, rows, ROWS):
        part = table[first : first + ROWS]
        phase = torch.arange(first, first + len(part), dtype=torch.float32)[:, None] * rate
        part[:, 0::2] = phase.sin()
        part[:, 1::2] = phase.cos()[:, : width // 2]
    return table.mul_(scale)


def text_weights(claims: Claims, part: Part, config: ModelConfig) -> Weights:
    """Text table; a language is another copy of the rows, with its vector added."""
    name, width = part.name, part.width
    rows = config.vocab_size
    table = claims.take(f"{name}_text_embedding.word_embeddings.weight", rows, width)
    if config.text_rows > rows:
        tongues = claims.take(f"{name}_language_embedding.word_embeddings.weight", LANGUAGES, width)
        table = (table[None] + tongues[:, None]).flatten(0, 1)
    return {"text_table.weight": table}


def position_scales(claims: Claims, part: Part) -> tuple[Tensor, Tensor]:
    """The learned scales of the text's positions and of the codes'."""
    text, audio = (claims.take(f"{part.name}_{kind}_position.alpha", 1) for kind in ("text", "audio"))
    return text, audio


def positions(part: Part, config: ModelConfig, text: Tensor, audio: Tensor) -> Weights:
    """Position tables, which the file does not hold, of the scales that it does."""
    frames = config.max_groups if part.name == "ar" else config.max_frames + 2
    return {
        "text_positions.weight": sinusoids(config.max_text, part.width, text),
        "code_positions.weight": sinusoids(frames, part.width, audio),
    }


def ar_weights(claims: Claims, part: Part, config: ModelConfig, rows: int) -> Weights:
    """The AR half; the prenet of the codes is folded into their table."""
    width = part.width
    if rows not in (CODEBOOK_SIZE + 1, CODEBOOK_SIZE + 2):
        raise CheckpointError(f"{claims.path}: {rows} rows of AR audio embeddings; expected 1025 or 1026")
    codes = claims.take("ar_audio_embedding.word_embeddings.weight", rows, width)
    found = text_weights(claims, part, config)
    if config.style.prenet:
        found |= text_prenet(claims, part.name, width)
        codes = through_prenet(codes, code_prenet(claims, part.name, width))
    found["code_table.weight"] = codes[: CODEBOOK_SIZE + 1]
    if config.style.code_bos:
        found["bos"] = codes[CODEBOOK_SIZE + 1]
    found["predict.weight"] = claims.take("ar_predict_layer.weight", CODEBOOK_SIZE + 1, width)
    found |= decoder(claims, part, config, None)
    return found


def nar_weights(claims: Claims, part: Part, config: ModelConfig) -> Weights:
    """The NAR half."""
    width, books = part.width, config.codebooks
    found = text_weights(claims, part, config)
    if config.style.prenet:
        found |= text_prenet(claims, part.name, width) | code_prenet(claims, part.name, width)
    first = claims.take("nar_audio_embeddings.0.word_embeddings.weight", CODEBOOK_SIZE + 1, width)
    tables = [first[:CODEBOOK_SIZE]] + [
        claims.take(f"nar_audio_embeddings.{j}.word_embeddings.weight", CODEBOOK_SIZE, width)
        for j in range(1, books)
    ]
    heads = [claims.take(f"nar_predict_layers.{j}.weight", CODEBOOK_SIZE, width) for j in range(books - 1)]
    stages = [
        claims.take(f"nar_stage_embeddings.{j}.word_embeddings.weight", 1, width) for j in range(books - 1)
    ]
    found["code_tables"], found["heads"] = torch.stack(tables), torch.stack(heads)
    return found | decoder(claims, part, config, torch.cat(stages))


def decoder(claims: Claims, part: Part, config: ModelConfig, stages: Tensor | None) -> Weights:
    """Blocks and final norm. stages: (Q - 1, d) where the norms depend on the stage."""
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
        found |= claims.take_all(source, target, shapes)
        for name in ("norm1", "norm2"):
            found |= norm(claims, f"{source}.{name}", f"{target}.{name}", width, stages)
    if config.style.norm_first:
        found |= norm(claims, f"{part.name}_decoder.norm", "norm", width, stages)
    return found


def norm(claims: Claims, source: str, target: str, width: int, stages: Tensor | None) -> Weights:
    """A norm's gain and shift; per stage, the stage's own scale and shift are folded in."""
    if stages is None:
        gain, shift = (claims.take(f"{source}.{kind}", width) for kind in ("weight", "bias"))
    else:
        inner, offset = (claims.take(f"{source}.norm.{kind}", width).double() for kind in ("weight", "bias"))
        matrix = claims.take(f"{source}.project_layer.weight", 2 * width, width).double()
        bias = claims.take(f"{source}.project_layer.bias", 2 * width).double()
        scale, move = (stages.double() @ matrix.T + bias).chunk(2, dim=1)
        gain, shift = (staged(table.float()) for table in (scale * inner, scale * offset + move))
    return {f"{target}.weight": gain, f"{target}.bias": shift}


def staged(table: Tensor) -> Tensor:
    """Rows of stages 1, 2, ... with an unused row 0 before them."""
    return torch.cat([torch.zeros_like(table[:1]), table])
