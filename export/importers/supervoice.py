"""Weights of supervoice-vall-e-2 (two files) on our modules: VALL-E 2 of group size 1, nearly.

Its norms divide by the length, its heads are narrow, one table and one output matrix serve all codebooks
of the NAR, and the stage token has no position.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from valle2.export.checkpoint import Checkpoint
from valle2.export.errors import CheckpointError
from valle2.export.importers.family import MAX_TEXT, Options, assemble, heads_of
from valle2.export.importers.lifeiteng import staged
from valle2.export.models.config import CODEBOOK_SIZE, ModelConfig, Style
from valle2.export.weights.tensors import Claims

MAX_FRAMES = 2000
PUBLISHED_HEADS = {(1024, 256): 16}
Weights = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Part:
    """Sizes of one file. inner: of query, key and value. texts, frames: rows of the position tables."""

    vocab: int
    width: int
    inner: int
    layers: int
    ffn: int
    texts: int
    frames: int


def read_supervoice(ar: Claims, nar: Claims, options: Options) -> Checkpoint:
    """Both files."""
    one, other = part_of(ar), part_of(nar)
    heads = heads_of(ar.path, PUBLISHED_HEADS.get((one.width, one.inner)), options, one.inner)
    head_width = one.inner // heads
    if other.vocab != one.vocab or other.inner % head_width:
        raise CheckpointError(f"{nar.path} does not belong to {ar.path}; expected the two files of one model")
    config = ModelConfig(
        vocab_size=one.vocab,
        d_model=one.width,
        heads=heads,
        layers=one.layers,
        ffn=one.ffn,
        group_size=1,
        max_text=min(one.texts, other.texts, MAX_TEXT),
        max_frames=min(one.frames - 1, other.frames - 1, MAX_FRAMES),
        nar_d_model=other.width,
        nar_heads=other.inner // head_width,
        nar_layers=other.layers,
        nar_ffn=other.ffn,
        head_width=head_width,
        nar_head_width=head_width,
        codebooks=nar.shape("codec_index_embedding.weight", 2)[0] + 1,
        style=Style(
            norm="l2", qkv_bias=False, head="one", head_bias=True, one_table=True, stage_position=False
        ),
    )
    weights = ar_weights(ar, config, one), nar_weights(nar, config, other)
    ar.finish()
    nar.finish()
    return assemble(config, *weights, "supervoice", {"frames_per_token": 0}, [ar.path, nar.path])


def part_of(claims: Claims) -> Part:
    """Sizes of one file, read from its shapes."""
    vocab, width = claims.shape("text_embedding.weight", 2)
    texts, frames = (claims.shape(f"positional_embedding_{kind}.weight", 2)[0] for kind in ("text", "audio"))
    return Part(
        vocab,
        width,
        inner=claims.shape("transformer.layers.0.attention_output.weight", 2)[1],
        layers=claims.count("transformer.layers.{}.mlp_input.weight"),
        ffn=claims.shape("transformer.layers.0.mlp_input.weight", 2)[0],
        texts=texts,
        frames=frames,
    )


def ar_weights(claims: Claims, config: ModelConfig, part: Part) -> Weights:
    """The AR; the end mark's embedding is never read as a code."""
    width, classes = part.width, CODEBOOK_SIZE + 1
    found = shared(claims, config, part, config.max_groups)[0] | decoder(claims, part)
    codes = claims.take("audio_embedding.weight", CODEBOOK_SIZE, width)
    found["code_table.weight"] = torch.cat([codes, torch.zeros_like(codes[:1])])
    found["bos"] = claims.take("bos_embedding.weight", 1, width)[0]
    found["predict.weight"] = claims.take("prediction.weight", classes, width)
    found["predict.bias"] = claims.take("prediction.bias", classes)
    return found


def nar_weights(claims: Claims, config: ModelConfig, part: Part) -> Weights:
    """The NAR; its frames are closed by the same vector as its text."""
    width = part.width
    found, eos = shared(claims, config, part, config.max_frames + 2)
    found |= decoder(claims, part)
    stages = claims.take("codec_index_embedding.weight", config.codebooks - 1, width)
    found["stage_table.weight"], found["code_eos"] = staged(stages), eos[0]
    found["code_tables"] = claims.take("audio_embedding.weight", CODEBOOK_SIZE, width)[None]
    found["heads"] = claims.take("prediction.weight", CODEBOOK_SIZE, width)[None]
    found["head_bias"] = claims.take("prediction.bias", CODEBOOK_SIZE)[None]
    return found


def shared(claims: Claims, config: ModelConfig, part: Part, rows: int) -> tuple[Weights, Tensor]:
    """Text and position tables, cut or filled to ours; and the end mark (1, d)."""
    width = part.width
    eos = claims.take("eos_embedding.weight", 1, width)
    text = claims.take("text_embedding.weight", part.vocab, width)
    text_positions = claims.take("positional_embedding_text.weight", part.texts, width)
    code_positions = claims.take("positional_embedding_audio.weight", part.frames, width)[:rows]
    filling = torch.zeros(rows - len(code_positions), width)
    return {
        "text_table.weight": torch.cat([text, eos]),
        "text_positions.weight": text_positions[: config.max_text],
        "code_positions.weight": torch.cat([code_positions, filling]),
    }, eos


def decoder(claims: Claims, part: Part) -> Weights:
    """Blocks and final norm."""
    width, inner, ffn = part.width, part.inner, part.ffn
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {
        "attention_ln.gamma": ("norm1.weight", (width,)),
        "attention.weight": ("qkv.weight", (3 * inner, width)),
        "attention_output.weight": ("out.weight", (width, inner)),
        "attention_output.bias": ("out.bias", (width,)),
        "mlp_ln.gamma": ("norm2.weight", (width,)),
        "mlp_input.weight": ("up.weight", (ffn, width)),
        "mlp_input.bias": ("up.bias", (ffn,)),
        "mlp_output.weight": ("down.weight", (width, ffn)),
        "mlp_output.bias": ("down.bias", (width,)),
    }
    found = Weights()
    for layer in range(part.layers):
        found |= claims.take_all(f"transformer.layers.{layer}", f"blocks.{layer}", shapes)
    return found | {"norm.weight": claims.take("transformer.output_norm.gamma", width)}
