"""Weights of supervoice-vall-e-2 (two files) on our modules: VALL-E 2 of group size 1, nearly.

Its norms divide by the length, its heads are narrow, one table and one output matrix serve all codebooks
of the NAR, and the stage token has no position.
"""

from __future__ import annotations

import torch
from torch import Tensor

from valle2.export.checkpoint import Checkpoint, CheckpointError
from valle2.export.claims import Claims
from valle2.export.config import CODEBOOK_SIZE, ModelConfig, Style
from valle2.export.families import MAX_TEXT, Options, assemble, heads_of
from valle2.export.lifeiteng import staged

MAX_FRAMES = 2000
PUBLISHED_HEADS = {(1024, 256): 16}
Weights = dict[str, Tensor]


def read_supervoice(ar: Claims, nar: Claims, options: Options) -> Checkpoint:
    """Both files."""
    vocab, width = ar.shape("text_embedding.weight", 2)
    inner = ar.shape("transformer.layers.0.attention_output.weight", 2)[1]
    texts, frames = (ar.shape(f"positional_embedding_{kind}.weight", 2)[0] for kind in ("text", "audio"))
    heads = heads_of(ar.path, PUBLISHED_HEADS.get((width, inner)), options, inner)
    sizes = {
        part: (
            claims.count("transformer.layers.{}.mlp_input.weight"),
            claims.shape("transformer.layers.0.mlp_input.weight", 2)[0],
        )
        for part, claims in (("ar", ar), ("nar", nar))
    }
    config = ModelConfig(
        vocab_size=vocab,
        d_model=width,
        heads=heads,
        layers=sizes["ar"][0],
        ffn=sizes["ar"][1],
        group_size=1,
        max_text=min(texts, MAX_TEXT),
        max_frames=min(frames - 1, MAX_FRAMES),
        nar_layers=sizes["nar"][0],
        nar_ffn=sizes["nar"][1],
        head_width=inner // heads,
        nar_head_width=inner // heads,
        codebooks=nar.shape("codec_index_embedding.weight", 2)[0] + 1,
        style=Style(
            norm="l2", qkv_bias=False, head="one", head_bias=True, one_table=True, stage_position=False
        ),
    )
    weights = ar_weights(ar, config, (texts, frames)), nar_weights(nar, config, (texts, frames))
    ar.finish()
    nar.finish()
    return assemble(config, *weights, "supervoice", {"frames_per_token": 0}, [ar.path, nar.path])


def ar_weights(claims: Claims, config: ModelConfig, positions: tuple[int, int]) -> Weights:
    """The AR; the end mark's embedding is never read as a code."""
    width, classes = config.d_model, CODEBOOK_SIZE + 1
    found = shared(claims, config, positions, config.max_groups)[0]
    found |= decoder(claims, config, config.layers, config.ffn)
    codes = claims.take("audio_embedding.weight", CODEBOOK_SIZE, width)
    found["code_table.weight"] = torch.cat([codes, torch.zeros_like(codes[:1])])
    found["bos"] = claims.take("bos_embedding.weight", 1, width)[0]
    found["predict.weight"] = claims.take("prediction.weight", classes, width)
    found["predict.bias"] = claims.take("prediction.bias", classes)
    return found


def nar_weights(claims: Claims, config: ModelConfig, positions: tuple[int, int]) -> Weights:
    """The NAR; its frames are closed by the same vector as its text."""
    width = config.nar_d_model
    found, eos = shared(claims, config, positions, config.max_frames + 2)
    found |= decoder(claims, config, config.nar_layers, config.nar_ffn)
    stages = claims.take("codec_index_embedding.weight", config.codebooks - 1, width)
    found["stage_table.weight"], found["code_eos"] = staged(stages), eos[0]
    found["code_tables"] = claims.take("audio_embedding.weight", CODEBOOK_SIZE, width)[None]
    found["heads"] = claims.take("prediction.weight", CODEBOOK_SIZE, width)[None]
    found["head_bias"] = claims.take("prediction.bias", CODEBOOK_SIZE)[None]
    return found


def shared(
    claims: Claims, config: ModelConfig, positions: tuple[int, int], rows: int
) -> tuple[Weights, Tensor]:
    """Text and position tables, cut or filled to ours; and the end mark (1, d)."""
    width, (texts, frames) = config.d_model, positions
    eos = claims.take("eos_embedding.weight", 1, width)
    text = claims.take("text_embedding.weight", config.vocab_size, width)
    code_positions = claims.take("positional_embedding_audio.weight", frames, width)[:rows]
    filling = torch.zeros(rows - len(code_positions), width)
    return {
        "text_table.weight": torch.cat([text, eos]),
        "text_positions.weight": claims.take("positional_embedding_text.weight", texts, width)[
            : config.max_text
        ],
        "code_positions.weight": torch.cat([code_positions, filling]),
    }, eos


def decoder(claims: Claims, config: ModelConfig, layers: int, ffn: int) -> Weights:
    """Blocks and final norm."""
    width, inner = config.d_model, config.heads * config.ar_head
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
    if not layers:
        raise CheckpointError(f"{claims.path} has no layers; is the file complete?")
    found = {
        f"blocks.{layer}.{ours}": claims.take(f"transformer.layers.{layer}.{name}", *shape)
        for layer in range(layers)
        for name, (ours, shape) in shapes.items()
    }
    return found | {"norm.weight": claims.take("transformer.output_norm.gamma", width)}
