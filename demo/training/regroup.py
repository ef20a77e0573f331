"""Convert a trained AR model to another group size: only the group layers change."""

from __future__ import annotations

import torch
from torch import Tensor

from valle2.export.models.ar import ARModel
from valle2.export.models.config import ModelConfig


def regroup(source: ARModel, config: ModelConfig) -> dict[str, Tensor]:
    """Weights of an AR of `config.group_size` whose embeddings are close to those of `source`.

    Blocks, text embeddings and `<bos>` are copied. In a table of positions, a row is the old row at the same
    time. A code of a group takes the slice of the group matrices that served the same share of the old group.
    With G = 1 there are no such matrices, so the code table is multiplied with them.
    """
    state, group, old = dict(source.state_dict()), config.group_size, source.config.group_size
    if (table := state.get("code_positions.weight")) is not None:
        state["code_positions.weight"] = positions(table, config.max_groups, group / old)
    embed, predict = state.pop("group_embed.weight", None), state.pop("group_predict.weight", None)
    if embed is None or predict is None:
        raise ValueError(f"the source has group size {old}; expected one above 1, which has group layers")
    parts = embed.reshape(config.d_model, old, config.d_model)
    share = [index * old // group for index in range(group)]
    if group == 1:
        state["code_table.weight"] = state["code_table.weight"] @ parts.sum(dim=1).T
        return state
    state["group_embed.weight"] = (parts[:, share] * old / group).flatten(1)
    state["group_predict.weight"] = predict.reshape(old, config.d_model, config.d_model)[share].flatten(0, 1)
    return state


def positions(table: Tensor, rows: int, scale: float) -> Tensor:
    """Rows (R, d) read at `scale` times their spacing; row 0 is `<bos>`, group t has row t + 1."""
    at = ((torch.arange(rows) - 0.5) * scale + 0.5).clamp(0, len(table) - 1)
    at[0], low = 0, at.long()
    high, share = (low + 1).clamp(max=len(table) - 1), (at - low)[:, None]
    return table[low] * (1 - share) + table[high] * share
