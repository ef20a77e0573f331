"""Attention for training the NAR on a CPU, with a backward pass of matrix products.

Rows are padded at their end. The backward pass of PyTorch's fused attention does not use a CPU's matrix
units: it took half of a NAR training step on one core with AMX. With this one a step takes two thirds of the
time. Weights are rounded to bfloat16, which adds noise of about 6 % to a gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from valle2.engine.bundle.nar_inputs import NARInputs
from valle2.export.models.ar import Block, merge_heads, split_heads
from valle2.export.models.nar import NARModel

QUERIES = 512
"""Queries per block of the backward pass, so that the scores fit into the processor's cache."""
HIDDEN = -1e4


class Attention(torch.autograd.Function):
    """(query, key, value: (B, H, S, D), bias (B, 1, S, S) with equal rows; all bfloat16) -> (B, H, S, D)."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
        fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        out: Tensor
        out, total = fused(query, key, value, attn_mask=bias)
        ctx.save_for_backward(query, key, value, bias, out, total)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, bias, out, total = ctx.saved_tensors
        scale, (batch, heads, steps, _) = query.shape[3] ** -0.5, query.shape
        pull = (gradient.float() * out.float()).sum(3, keepdim=True).to(query.dtype)
        total = total.view(batch, heads, steps, 1).to(query.dtype)
        of_query, of_key, of_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        for row, head in ((row, head) for row in range(batch) for head in range(heads)):
            keys, values = key[row, head], value[row, head]
            for start in range(0, steps, QUERIES):
                part = (row, head, slice(start, start + QUERIES))
                queries, wanted = query[part] * scale, gradient[part]
                weights = torch.addmm(bias[row, 0, :1], queries, keys.T).sub_(total[part]).exp_()
                of_value[row, head].addmm_(weights.T, wanted)
                change = torch.addmm(pull[part], wanted, values.T, beta=-1).mul_(weights)
                of_query[part] = change @ keys
                of_key[row, head].addmm_(change.T, queries)
        return of_query.mul_(scale), of_key, of_value, None


def hidden(model: NARModel, inputs: NARInputs[Tensor]) -> Tensor:
    """`NARModel.hidden` with this attention, in bfloat16."""
    x, seen, angles = model.embed(inputs)
    turned = None if angles is None else (angles[0].bfloat16(), angles[1].bfloat16())
    bias = torch.zeros(seen.shape, dtype=torch.bfloat16).masked_fill(~seen, HIDDEN)
    bias = bias[:, None, None].expand(-1, 1, seen.shape[1], -1)

    def attended(block: Block, x: Tensor, staged: Tensor | None) -> Tensor:
        parts = (split_heads(part, block.heads).bfloat16() for part in block.project(x, staged, turned))
        return merge_heads(Attention.apply(*parts, bias))  # type: ignore[no-untyped-call]

    return model.through(x, inputs.stage, attended, lambda x: x)
