"""Amphion's VALL-E v2: two Llama-like networks in two files.

Its AR reads phones, marks and codes from one table; ours has a table for each. Output rows that are neither
codes nor the end mark are dropped, so they are never sampled.
"""

from __future__ import annotations

import torch
from torch import Tensor

from valle2.engine.bundle.contract import CODEBOOK_SIZE
from valle2.export.checkpoint import Checkpoint
from valle2.export.errors import CheckpointError
from valle2.export.importers.family import MAX_FRAMES, MAX_TEXT, assemble, heads_of, staged
from valle2.export.models import ModelConfig, Style
from valle2.export.options import ImportOptions
from valle2.export.weights import TensorReader

MARKS = 10
BOS_TARGET, EOS_TARGET, BOS_PHONE, EOS_PHONE = 1, 2, 3, 4
"""Indices among the marks, which follow codes and phones in the table."""
PUBLISHED_HEADS = {1024: 16}
MAX_POSITIONS = 2000
IGNORED = ("rotary_emb.inv_freq", "model.model.embed_tokens.weight")
Weights = dict[str, Tensor]


def read_amphion(ar: TensorReader, nar: TensorReader, options: ImportOptions) -> Checkpoint:
    """Build a checkpoint from both files."""
    rows, width = ar.shape("model.model.embed_tokens.weight", 2)
    phones = rows - CODEBOOK_SIZE - MARKS
    if phones < 1:
        raise CheckpointError(
            f"{ar.path}: {rows} embeddings; expected phones, {CODEBOOK_SIZE} codes and {MARKS} marks"
        )
    nar_rows, nar_width = nar.shape("phone_embedder.weight", 2)
    heads = head_count(ar, options, width)
    nar_heads = nar_width // (width // heads)
    config = ModelConfig(
        vocab_size=min(phones, nar_rows),
        d_model=width,
        heads=heads,
        layers=ar.count("model.model.layers.{}.mlp.up_proj.weight"),
        ffn=ar.shape("model.model.layers.0.mlp.up_proj.weight", 2)[0],
        group_size=1,
        max_text=MAX_TEXT,
        max_frames=MAX_FRAMES,
        nar_d_model=nar_width,
        nar_heads=nar_heads,
        nar_layers=nar.count("model.model.layers.{}.mlp.up_proj.weight"),
        nar_ffn=nar.shape("model.model.layers.0.mlp.up_proj.weight", 2)[0],
        codebooks=nar.count("prompt_embedder.embeddings.{}.weight"),
        text_rows=phones + 2,
        nar_text_rows=nar_rows,
        style=Style(
            norm="rms",
            activation="silu",
            gated=True,
            qkv_bias=False,
            bias=False,
            positions="rotary",
            head="own",
            stage="norm",
        ),
    )
    weights = ar_weights(ar, config, rows), nar_weights(nar, config, rows)
    ar.finish(IGNORED[0])
    nar.finish(*IGNORED)
    rules = {
        "text_begin": [phones],
        "text_end": [phones + 1],
        "nar_text": "bare",
        "frames_per_token": 0,
        "max_positions": MAX_POSITIONS,
    }
    return assemble(config, *weights, "amphion", rules, [ar.path, nar.path])


def head_count(reader: TensorReader, options: ImportOptions, width: int) -> int:
    """The number of heads, from the stored rotary frequencies (half a head's width) or from the options."""
    name = "model.model.layers.0.self_attn.rotary_emb.inv_freq"
    said = PUBLISHED_HEADS.get(width)
    if name in reader:
        said = width // (2 * reader.shape(name, 1)[0])
    return heads_of(reader.path, said, options, width)


def ar_weights(reader: TensorReader, config: ModelConfig, rows: int) -> Weights:
    """The AR's weights."""
    first = rows - MARKS
    table = reader.take("model.model.embed_tokens.weight", rows, config.d_model)
    head = reader.take("model.lm_head.weight", rows, config.d_model)
    found = decoder(reader, config.layers, config.d_model, config.ffn, None)
    found["text_table.weight"] = torch.cat(
        [table[CODEBOOK_SIZE:first], table[first + BOS_PHONE : first + EOS_PHONE + 1]]
    )
    ended = first + EOS_TARGET
    found["code_table.weight"] = torch.cat([table[:CODEBOOK_SIZE], table[ended : ended + 1]])
    found["predict.weight"] = torch.cat([head[:CODEBOOK_SIZE], head[ended : ended + 1]])
    found["bos"] = table[first + BOS_TARGET].clone()
    return found


def nar_weights(reader: TensorReader, config: ModelConfig, rows: int) -> Weights:
    """The NAR's weights. The stage scales its norms."""
    width, books = config.nar_d_model, config.codebooks
    stages = reader.take("model.model.embed_cond.weight", books, width)[1:]
    tables = [
        reader.take(f"prompt_embedder.embeddings.{j}.weight", CODEBOOK_SIZE, width) for j in range(books)
    ]
    heads = [reader.take(f"model.lm_head.{j}.weight", rows, width)[:CODEBOOK_SIZE] for j in range(books - 1)]
    found = decoder(reader, config.nar_layers, width, config.nar_ffn, stages)
    found["text_table.weight"] = reader.take("phone_embedder.weight", config.nar_text_rows, width)
    found["code_tables"], found["heads"] = torch.stack(tables), torch.stack(heads)
    return found


def decoder(reader: TensorReader, layers: int, width: int, ffn: int, stages: Tensor | None) -> Weights:
    """Blocks and final norm."""
    found = Weights()
    for layer in range(layers):
        source, target = f"model.model.layers.{layer}", f"blocks.{layer}"
        parts = [reader.take(f"{source}.self_attn.{n}_proj.weight", width, width) for n in "qkv"]
        gates = [reader.take(f"{source}.mlp.{n}_proj.weight", ffn, width) for n in ("gate", "up")]
        found[f"{target}.qkv.weight"], found[f"{target}.up.weight"] = torch.cat(parts), torch.cat(gates)
        found[f"{target}.out.weight"] = reader.take(f"{source}.self_attn.o_proj.weight", width, width)
        found[f"{target}.down.weight"] = reader.take(f"{source}.mlp.down_proj.weight", width, ffn)
        found[f"{target}.norm1.weight"] = norm(reader, f"{source}.input_layernorm", width, stages)
        found[f"{target}.norm2.weight"] = norm(reader, f"{source}.post_attention_layernorm", width, stages)
    found["norm.weight"] = norm(reader, "model.model.norm", width, stages)
    return found


def norm(reader: TensorReader, source: str, width: int, stages: Tensor | None) -> Tensor:
    """A norm's gain (d,), or one gain per stage (Q, d)."""
    if stages is None:
        return reader.take(f"{source}.weight", width)
    matrix = reader.take(f"{source}.to_weight.weight", width, width).double()
    bias = reader.take(f"{source}.to_weight.bias", width).double()
    return staged((stages.double() @ matrix.T + bias).float())
