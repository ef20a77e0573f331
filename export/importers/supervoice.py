"""supervoice-vall-e-2: two files, close to VALL-E 2 with group size 1.

Its norms divide by the vector's length, its heads are narrow, and its stage token has no position. One table
and one output matrix serve all codebooks of the NAR.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from valle2.engine.bundle.contract import CODEBOOK_SIZE
from valle2.export.checkpoint import Checkpoint
from valle2.export.errors import CheckpointError
from valle2.export.importers.family import MAX_TEXT, assemble, heads_of, staged
from valle2.export.models import ModelConfig, Style
from valle2.export.options import ImportOptions
from valle2.export.weights import TensorReader

MAX_FRAMES = 2000
PUBLISHED_HEADS = {(1024, 256): 16}
Weights = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Part:
    """Sizes of one file. inner: width of query, key and value. texts, frames: rows of the position tables."""

    vocab: int
    width: int
    inner: int
    layers: int
    ffn: int
    texts: int
    frames: int


def read_supervoice(ar: TensorReader, nar: TensorReader, options: ImportOptions) -> Checkpoint:
    """Build a checkpoint from both files."""
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


def part_of(reader: TensorReader) -> Part:
    """Read the sizes of one file from its shapes."""
    vocab, width = reader.shape("text_embedding.weight", 2)
    texts, frames = (reader.shape(f"positional_embedding_{kind}.weight", 2)[0] for kind in ("text", "audio"))
    return Part(
        vocab,
        width,
        inner=reader.shape("transformer.layers.0.attention_output.weight", 2)[1],
        layers=reader.count("transformer.layers.{}.mlp_input.weight"),
        ffn=reader.shape("transformer.layers.0.mlp_input.weight", 2)[0],
        texts=texts,
        frames=frames,
    )


def ar_weights(reader: TensorReader, config: ModelConfig, part: Part) -> Weights:
    """The AR's weights. The row of `<eos>` in the code table is zero, since `<eos>` is never an input."""
    width, classes = part.width, CODEBOOK_SIZE + 1
    found = shared(reader, config, part, config.max_groups)[0] | decoder(reader, part)
    codes = reader.take("audio_embedding.weight", CODEBOOK_SIZE, width)
    found["code_table.weight"] = torch.cat([codes, torch.zeros_like(codes[:1])])
    found["bos"] = reader.take("bos_embedding.weight", 1, width)[0]
    found["predict.weight"] = reader.take("prediction.weight", classes, width)
    found["predict.bias"] = reader.take("prediction.bias", classes)
    return found


def nar_weights(reader: TensorReader, config: ModelConfig, part: Part) -> Weights:
    """The NAR's weights. One vector ends its text and its frames."""
    width = part.width
    found, eos = shared(reader, config, part, config.max_frames + 2)
    found |= decoder(reader, part)
    stages = reader.take("codec_index_embedding.weight", config.codebooks - 1, width)
    found["stage_table.weight"], found["code_eos"] = staged(stages), eos[0]
    found["code_tables"] = reader.take("audio_embedding.weight", CODEBOOK_SIZE, width)[None]
    found["heads"] = reader.take("prediction.weight", CODEBOOK_SIZE, width)[None]
    found["head_bias"] = reader.take("prediction.bias", CODEBOOK_SIZE)[None]
    return found


def shared(reader: TensorReader, config: ModelConfig, part: Part, rows: int) -> tuple[Weights, Tensor]:
    """Text and position tables, cut or padded to our sizes, and the end mark (1, d)."""
    width = part.width
    eos = reader.take("eos_embedding.weight", 1, width)
    text = reader.take("text_embedding.weight", part.vocab, width)
    text_positions = reader.take("positional_embedding_text.weight", part.texts, width)
    code_positions = reader.take("positional_embedding_audio.weight", part.frames, width)[:rows]
    filling = torch.zeros(rows - len(code_positions), width)
    return {
        "text_table.weight": torch.cat([text, eos]),
        "text_positions.weight": text_positions[: config.max_text],
        "code_positions.weight": torch.cat([code_positions, filling]),
    }, eos


def decoder(reader: TensorReader, part: Part) -> Weights:
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
        found |= reader.take_all(f"transformer.layers.{layer}", f"blocks.{layer}", shapes)
    return found | {"norm.weight": reader.take("transformer.output_norm.gamma", width)}
