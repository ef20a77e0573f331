"""The VALL-E 2 AR model and its Transformer blocks in eager PyTorch: the reference for the exported AR graph.

The modules know token ids and codes, never text or audio. They are written for export: caches and lengths are
input tensors, and no Python branch depends on data. Attention over the cache is a function argument
(`Attend`), so one module serves the reference and every lowering. `Style` lists how other code bases differ.
Axes: B batch, S new positions, C cache positions, H heads, D head width, G group size, T frames.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from valle2.engine.bundle.contract import CODEBOOK_SIZE
from valle2.export.models.config import ModelConfig, Style
from valle2.export.models.layers import (
    INIT_STD,
    Activation,
    Angles,
    Norm,
    Rotary,
    TextPrenet,
    initialise,
    rotate,
)

Cache = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class Window:
    """Where the new positions of each row lie in its cache.

    past: (B,) int64, valid positions before this call. new: (B,) int64, valid new positions. Positions after
    `new` are padding. mask: (B, 1, S, C) bool, which cache positions a query sees. causal: whether the mask
    is plainly causal, so that a fused kernel may build it.
    """

    past: Tensor
    new: Tensor
    mask: Tensor
    causal: bool = True


Attend = Callable[[Tensor, Tensor, Tensor, Cache, Window], tuple[Tensor, Cache]]
"""(query, key, value: (B, S, H*D), cache: 2 x (B, H, C, D), window) -> (output (B, S, H*D), cache)."""


def causal_window(past: Tensor, new: Tensor, steps: int, capacity: int) -> Window:
    """A causal call: query s of row b sees cache positions up to past[b] + s."""
    query = past[:, None, None, None] + torch.arange(steps)[None, None, :, None]
    return Window(past, new, torch.arange(capacity)[None, None, None, :] <= query)


def text_window(past: Tensor, new: Tensor, steps: int, capacity: int, text_lengths: Tensor) -> Window:
    """A causal call in which the text sees all of the text. A row's text must come in one call."""
    position = torch.arange(capacity)[None, None, None, :]
    query = past[:, None, None, None] + torch.arange(steps)[None, None, :, None]
    length = text_lengths[:, None, None, None]
    mask = (position <= query) | ((query < length) & (position < length))
    return Window(past, new, mask, causal=False)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, S, H*D) -> (B, H, S, D)."""
    return x.reshape(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, H, S, D) -> (B, S, H*D)."""
    return x.transpose(1, 2).flatten(2)


def write_cache(key: Tensor, value: Tensor, cache: Cache, window: Window) -> Cache:
    """Write the new keys and values at each row's next positions. Padding leaves the cache unchanged.

    Positions wrap around, so that at the cache's end padding never shares a position with a valid entry.
    """
    heads, capacity = cache[0].shape[1], cache[0].shape[2]
    offset = torch.arange(key.shape[1])[None, :]
    position = (window.past[:, None] + offset) % capacity
    index = position[:, None, :, None].expand(-1, heads, -1, cache[0].shape[3])
    valid = (offset < window.new[:, None])[:, None, :, None]

    def written(old: Tensor, fresh: Tensor) -> Tensor:
        return old.scatter(2, index, torch.where(valid, split_heads(fresh, heads), old.gather(2, index)))

    return written(cache[0], key), written(cache[1], value)


def attend_eager(
    query: Tensor, key: Tensor, value: Tensor, cache: Cache, window: Window
) -> tuple[Tensor, Cache]:
    """Write the new keys and values to the cache, then attend over the cache."""
    keys, values = write_cache(key, value, cache, window)
    split = split_heads(query, keys.shape[1])
    out = functional.scaled_dot_product_attention(split, keys, values, attn_mask=window.mask)
    return merge_heads(out), (keys, values)


class Block(nn.Module):
    """Transformer block with query, key and value in one matrix (paper section 4.1.1)."""

    def __init__(
        self, width: int, heads: int, head_width: int, ffn: int, style: Style, stages: int = 0
    ) -> None:
        super().__init__()
        self.heads, self.norm_first = heads, style.norm_first
        self.norm1 = Norm(width, style.norm, stages)
        self.qkv = nn.Linear(width, 3 * heads * head_width, style.qkv_bias)
        self.out = nn.Linear(heads * head_width, width, style.bias)
        self.norm2 = Norm(width, style.norm, stages)
        self.up = nn.Linear(width, 2 * ffn if style.gated else ffn, style.bias)
        self.act = Activation(style)
        self.down = nn.Linear(ffn, width, style.bias)

    def project(
        self, x: Tensor, stage: Tensor | None = None, angles: Angles | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, S, d) -> query, key, value, each (B, S, H*D)."""
        query, key, value = self.qkv(self.norm1(x, stage) if self.norm_first else x).chunk(3, dim=-1)
        if angles is not None:
            query, key = rotate(query, angles, self.heads), rotate(key, angles, self.heads)
        return query, key, value

    def finish(self, x: Tensor, attended: Tensor, stage: Tensor | None = None) -> Tensor:
        """Add the attention output and the feed-forward output to the residual stream."""
        x = x + self.out(attended)
        if self.norm_first:
            return x + self.feed(self.norm2(x, stage))
        x = self.norm1(x, stage)
        out: Tensor = self.norm2(x + self.feed(x), stage)
        return out

    def feed(self, x: Tensor) -> Tensor:
        """The feed-forward network: (B, S, d) -> (B, S, d)."""
        out: Tensor = self.down(self.act(self.up(x)))
        return out

    def attend(
        self, x: Tensor, mask: Tensor | None, stage: Tensor | None = None, angles: Angles | None = None
    ) -> Tensor:
        """Attention without a cache: x (B, S, d) -> (B, S, H*D).

        mask: bool, broadcastable to (B, H, S, S); None for full attention.
        """
        query, key, value = (split_heads(part, self.heads) for part in self.project(x, stage, angles))
        return merge_heads(functional.scaled_dot_product_attention(query, key, value, attn_mask=mask))

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None,
        stage: Tensor | None = None,
        angles: Angles | None = None,
    ) -> Tensor:
        """The whole block without a cache. See `attend` for the arguments."""
        return self.finish(x, self.attend(x, mask, stage, angles), stage)


class ARModel(nn.Module):
    """Grouped autoregressive model of codebook 0 (section 3.3.1, Eq. 7-11).

    The positions of a row are: text tokens, text `<eos>`, `<bos>`, then groups of G codes. The index of a
    position and the row's text length tell which of them it is. Other code bases may have other marks in
    their text and no `<bos>` (`Style.code_bos`).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, group, style = config.d_model, config.group_size, config.style
        self.config = config
        self.text_table = nn.Embedding(config.text_rows, width)
        self.code_table = nn.Embedding(CODEBOOK_SIZE + 1, width)
        if style.code_bos:
            self.bos = nn.Parameter(torch.empty(width))
        if style.positions == "table":
            self.text_positions = nn.Embedding(config.max_text, width)
            self.code_positions = nn.Embedding(config.max_groups, width)
        else:
            self.rotary = Rotary(config.ar_head, config.max_text + config.max_groups)
        if style.prenet:
            self.text_prenet = TextPrenet(width)
        if group > 1:
            self.group_embed = nn.Linear(group * width, width, bias=False)
            self.group_predict = nn.Linear(width, group * width, bias=False)
        self.blocks = nn.ModuleList(
            Block(width, config.heads, config.ar_head, config.ffn, style) for _ in range(config.layers)
        )
        self.norm = Norm(width, style.norm) if style.norm_first else nn.Identity()
        if style.head != "tied":
            self.predict = nn.Linear(width, CODEBOOK_SIZE + 1, style.head_bias)
        self.apply(initialise)
        if style.code_bos:
            nn.init.normal_(self.bos, std=INIT_STD)

    def embed(self, text: Tensor, codes: Tensor, text_lengths: Tensor, start: Tensor) -> Tensor:
        """Embed positions start[b] .. start[b] + S - 1 of each row (Eq. 7, 8).

        Args:
            text: (B, S) int64, read where the position is text or text `<eos>`.
            codes: (B, S, G) int64, read where the position is a group.
            text_lengths: (B,) int64, with `<eos>`. start: (B,) int64.

        Returns:
            (B, S, d) float32.
        """
        index = start[:, None] + torch.arange(text.shape[1])[None, :]
        is_text = index < text_lengths[:, None]
        code_index = (index - text_lengths[:, None]).clamp(0, self.config.max_groups - 1)
        words, group = self.text_table(text), self.embed_groups(codes, code_index)
        if self.config.style.prenet:
            words = self.text_prenet(words, is_text)
        if self.config.style.positions == "table":
            words = words + self.text_positions(index.clamp(max=self.config.max_text - 1))
            group = group + self.code_positions(code_index)
        return torch.where(is_text[..., None], words, group)

    def embed_groups(self, codes: Tensor, code_index: Tensor) -> Tensor:
        """Embed groups (B, S, G), or `<bos>` where code_index (B, S) is 0, without positions -> (B, S, d)."""
        group: Tensor = self.code_table(codes).flatten(2)
        if self.config.group_size > 1:
            group = self.group_embed(group)
        if self.config.style.code_bos:
            group = torch.where((code_index == 0)[..., None], self.bos, group)
        return group

    def angles(self, start: Tensor, steps: int) -> Angles | None:
        """Rotary angles of positions start[b] .. start[b] + steps - 1; None with position tables."""
        if self.config.style.positions == "table":
            return None
        found: Angles = self.rotary(start[:, None] + torch.arange(steps)[None, :])
        return found

    def window(self, past: Tensor, new: Tensor, steps: int, capacity: int, text_lengths: Tensor) -> Window:
        """The cache positions that each new position sees."""
        if self.config.style.text_ahead:
            return text_window(past, new, steps, capacity, text_lengths)
        return causal_window(past, new, steps, capacity)

    def head(self, hidden: Tensor) -> Tensor:
        """hidden (..., d) -> logits (..., G, 1025). A tied head uses the code table as its weight."""
        hidden = self.norm(hidden)
        if self.config.group_size > 1:
            hidden = self.group_predict(hidden)
        parts = hidden.reshape(*hidden.shape[:-1], self.config.group_size, self.config.d_model)
        if self.config.style.head == "tied":
            return functional.linear(parts, self.code_table.weight)
        out: Tensor = self.predict(parts)
        return out

    def forward(self, text: Tensor, codes: Tensor, text_lengths: Tensor) -> Tensor:
        """Run whole rows without a cache, as in training.

        Args:
            text: (B, S) int64 ids, right-padded. codes: (B, S, G) int64, groups at their positions and any
                values elsewhere. text_lengths: (B,) int64, with `<eos>`.

        Returns:
            (B, S, G, 1025) float32: `<bos>` predicts group 0, and group t predicts group t + 1.
        """
        steps, start = text.shape[1], torch.zeros_like(text_lengths)
        x = self.embed(text, codes, text_lengths, start)
        mask = self.window(start, start + steps, steps, steps, text_lengths).mask
        angles = self.angles(start, steps)
        for block in self.blocks:
            x = block(x, mask, None, angles)
        return self.head(x)

    def forward_cached(
        self,
        text: Tensor,
        codes: Tensor,
        text_lengths: Tensor,
        window: Window,
        caches: list[Cache],
        attend: Attend = attend_eager,
    ) -> tuple[Tensor, list[Cache]]:
        """Run S new positions per row against the caches. Prefill and decode are the same call.

        Args:
            text, codes, text_lengths: as for `embed`, at the positions after `window.past`.
            caches: by layer, keys and values (B, H, C, D) float32. attend: attention over the cache.

        Returns:
            Logits (B, G, 1025) after each row's last valid new position, and the new caches.
        """
        x = self.embed(text, codes, text_lengths, window.past)
        angles = self.angles(window.past, x.shape[1])
        updated = []
        for block, cache in zip(self.blocks, caches, strict=True):
            assert isinstance(block, Block)
            attended, fresh = attend(*block.project(x, None, angles), cache, window)
            updated.append(fresh)
            x = block.finish(x, attended)
        last = (window.new - 1).clamp(min=0)[:, None, None].expand(-1, 1, x.shape[2])
        return self.head(x.gather(1, last)[:, 0]), updated

    def empty_caches(self, batch: int, capacity: int) -> list[Cache]:
        """Zeroed caches, a (key, value) pair of (B, H, C, D) float32 per layer."""
        config = self.config
        shape = (batch, config.heads, capacity, config.ar_head)
        return [(torch.zeros(shape), torch.zeros(shape)) for _ in range(config.layers)]
