"""The VALL-E 2 AR and NAR models in eager PyTorch: the reference that every graph is compared with.

The modules know token ids and codes, never text or audio. They are written for export: caches and
lengths come in as tensors and nothing branches on data. How attention over the cache is computed is
a function passed in (`attend`), so one module serves the eager reference and every lowering.
Axes: B batch, S new positions, C cache positions, H heads, D head width, G group size, T frames.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from valle2.export.config import CODEBOOK_SIZE, CODEBOOKS, ModelConfig

Cache = tuple[Tensor, Tensor]
INIT_STD = 0.02


@dataclass(frozen=True, slots=True)
class Window:
    """Where the new positions of each row lie in its cache.

    past: (B,) int64, valid positions before this call. new: (B,) int64, valid new positions; a row's
    positions beyond `new` are padding. mask: (B, 1, S, C) bool, which cache slots a query may see.
    """

    past: Tensor
    new: Tensor
    mask: Tensor


Attend = Callable[[Tensor, Tensor, Tensor, Cache, Window], tuple[Tensor, Cache]]
"""(query, key, value: (B, S, H*D), cache: 2 x (B, H, C, D), window) -> (output (B, S, H*D), cache)."""


def causal_window(past: Tensor, new: Tensor, steps: int, capacity: int) -> Window:
    """Build the mask of a causal call: query s of row b sees cache slots <= past[b] + s."""
    query = past[:, None, None, None] + torch.arange(steps)[None, None, :, None]
    return Window(past, new, torch.arange(capacity)[None, None, None, :] <= query)


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, S, H*D) -> (B, H, S, D)."""
    return x.reshape(x.shape[0], x.shape[1], heads, -1).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, H, S, D) -> (B, S, H*D)."""
    return x.transpose(1, 2).flatten(2)


def write_cache(key: Tensor, value: Tensor, cache: Cache, window: Window) -> Cache:
    """Put the new keys and values at each row's own position; padding leaves its slots as they were.

    Slots wrap around, so that no padded position shares a slot with a valid one at the cache's end.
    """
    heads, capacity = cache[0].shape[1], cache[0].shape[2]
    offset = torch.arange(key.shape[1])[None, :]
    slot = (window.past[:, None] + offset) % capacity
    index = slot[:, None, :, None].expand(-1, heads, -1, cache[0].shape[3])
    valid = (offset < window.new[:, None])[:, None, :, None]

    def written(old: Tensor, fresh: Tensor) -> Tensor:
        return old.scatter(2, index, torch.where(valid, split_heads(fresh, heads), old.gather(2, index)))

    return written(cache[0], key), written(cache[1], value)


def attend_eager(
    query: Tensor, key: Tensor, value: Tensor, cache: Cache, window: Window
) -> tuple[Tensor, Cache]:
    """Write the new keys and values at each row's own position, then attend over the cache."""
    keys, values = write_cache(key, value, cache, window)
    split = split_heads(query, keys.shape[1])
    out = functional.scaled_dot_product_attention(split, keys, values, attn_mask=window.mask)
    return merge_heads(out), (keys, values)


class Block(nn.Module):
    """Pre-LayerNorm Transformer block with fused query, key and value (paper section 4.1.1)."""

    def __init__(self, width: int, heads: int, ffn: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, ffn)
        self.down = nn.Linear(ffn, width)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, S, d) -> query, key, value, each (B, S, d)."""
        query, key, value = self.qkv(self.norm1(x)).chunk(3, dim=-1)
        return query, key, value

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """Add the attention output and the feed-forward part to the residual stream."""
        x = x + self.out(attended)
        out: Tensor = x + self.down(functional.gelu(self.up(self.norm2(x))))
        return out

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Attend without a cache. mask: broadcastable to (B, H, S, S) bool, None for no mask."""
        query, key, value = (split_heads(part, self.heads) for part in self.project(x))
        attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.finish(x, merge_heads(attended))


class ARModel(nn.Module):
    """Grouped autoregressive model of codebook 0 (section 3.3.1, Eq. 7-11).

    A row of positions is: text tokens, text `<eos>`, `<bos>`, then groups of G codes. Which one a
    position is follows from its index and the row's text length, so no marker is passed.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, group = config.d_model, config.group_size
        self.config = config
        self.text_table = nn.Embedding(config.vocab_size + 1, width)
        self.code_table = nn.Embedding(CODEBOOK_SIZE + 1, width)
        self.bos = nn.Parameter(torch.empty(width))
        self.text_positions = nn.Embedding(config.max_text, width)
        self.code_positions = nn.Embedding(config.max_groups, width)
        if group > 1:
            self.group_embed = nn.Linear(group * width, width, bias=False)
            self.group_predict = nn.Linear(width, group * width, bias=False)
        self.blocks = nn.ModuleList(Block(width, config.heads, config.ffn) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width)
        self.apply(initialise)
        nn.init.normal_(self.bos, std=INIT_STD)

    def embed(self, text: Tensor, codes: Tensor, text_lengths: Tensor, start: Tensor) -> Tensor:
        """Embed positions start[b] .. start[b] + S - 1 of each row (Eq. 7, 8).

        text: (B, S) int64, read where the position is text or text `<eos>`. codes: (B, S, G) int64,
        read where it is a group. text_lengths: (B,) int64 with `<eos>` counted. -> (B, S, d)
        """
        index = start[:, None] + torch.arange(text.shape[1])[None, :]
        is_text = index < text_lengths[:, None]
        code_index = (index - text_lengths[:, None]).clamp(0, self.config.max_groups - 1)
        text_index = index.clamp(max=self.config.max_text - 1)
        group = self.code_table(codes).flatten(2)
        if self.config.group_size > 1:
            group = self.group_embed(group)
        group = torch.where((code_index == 0)[..., None], self.bos, group)
        return torch.where(
            is_text[..., None],
            self.text_table(text) + self.text_positions(text_index),
            group + self.code_positions(code_index),
        )

    def head(self, hidden: Tensor) -> Tensor:
        """hidden (..., d) -> logits (..., G, 1025); the weight is the code table itself."""
        hidden = self.norm(hidden)
        if self.config.group_size > 1:
            hidden = self.group_predict(hidden)
        parts = hidden.reshape(*hidden.shape[:-1], self.config.group_size, self.config.d_model)
        return functional.linear(parts, self.code_table.weight)

    def forward(self, text: Tensor, codes: Tensor, text_lengths: Tensor) -> Tensor:
        """Run whole rows without a cache, as in training.

        Args:
            text: (B, S) int64, ids padded on the right. codes: (B, S, G) int64, groups at their
                positions, anything elsewhere. text_lengths: (B,) int64 with `<eos>` counted.

        Returns:
            (B, S, G, 1025) float32: position `<bos>` predicts group 0, group t predicts group t + 1.
        """
        steps = text.shape[1]
        x = self.embed(text, codes, text_lengths, torch.zeros_like(text_lengths))
        mask = torch.ones(steps, steps, dtype=torch.bool).tril()
        for block in self.blocks:
            x = block(x, mask)
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
        """Run S new positions per row against the caches; prefill and decode are the same call.

        Returns:
            Logits (B, G, 1025) after the last valid new position of each row, and the new caches.
        """
        x = self.embed(text, codes, text_lengths, window.past)
        updated = []
        for block, cache in zip(self.blocks, caches, strict=True):
            assert isinstance(block, Block)
            attended, fresh = attend(*block.project(x), cache, window)
            updated.append(fresh)
            x = block.finish(x, attended)
        last = (window.new - 1).clamp(min=0)[:, None, None].expand(-1, 1, x.shape[2])
        return self.head(x.gather(1, last)[:, 0]), updated

    def empty_caches(self, batch: int, capacity: int) -> list[Cache]:
        """Zeroed caches, a (key, value) pair of (B, H, C, D) float32 per layer."""
        config = self.config
        shape = (batch, config.heads, capacity, config.d_model // config.heads)
        return [(torch.zeros(shape), torch.zeros(shape)) for _ in range(config.layers)]


class NARModel(nn.Module):
    """Non-autoregressive model of codebooks 1..7 (section 3.3.2, Eq. 12-17).

    A row is: text, `<eos>`, prompt and target frames, `<eos>`, stage id. With full attention and
    learned positions the place of padding does not matter, so text and frames are padded apart.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.nar_d_model
        self.config = config
        self.text_table = nn.Embedding(config.vocab_size + 1, width)
        self.code_tables = nn.Parameter(torch.empty(CODEBOOKS, CODEBOOK_SIZE, width))
        self.stage_table = nn.Embedding(CODEBOOKS, width)
        self.code_eos = nn.Parameter(torch.empty(width))
        self.text_positions = nn.Embedding(config.max_text, width)
        self.code_positions = nn.Embedding(config.max_frames + 2, width)
        self.blocks = nn.ModuleList(
            Block(width, config.nar_heads, config.nar_ffn) for _ in range(config.nar_layers)
        )
        self.norm = nn.LayerNorm(width)
        self.apply(initialise)
        nn.init.normal_(self.code_tables, std=INIT_STD)
        nn.init.normal_(self.code_eos, std=INIT_STD)

    def embed_frames(self, codes: Tensor, prompt_lengths: Tensor, stage: Tensor) -> Tensor:
        """codes (B, T, 8) -> (B, T, d): prompt frames sum all codebooks, targets those < stage (Eq. 12)."""
        in_prompt = torch.arange(codes.shape[1])[None, :] < prompt_lengths[:, None]
        total = functional.embedding(codes[:, :, 0], self.code_tables[0])
        for book in range(1, CODEBOOKS):
            seen = (in_prompt | (book < stage)).to(total.dtype)
            total = total + seen[..., None] * functional.embedding(codes[:, :, book], self.code_tables[book])
        return total

    def tail(self, frame_lengths: Tensor, stage: Tensor) -> Tensor:
        """The closing `<eos>` and stage id (Eq. 13, 14), continuing the code positions: (B, 2, d)."""
        eos = self.code_eos + self.code_positions(frame_lengths)
        token = self.stage_table(stage) + self.code_positions(frame_lengths + 1)
        return torch.stack([eos, token], dim=1)

    def forward(
        self,
        text: Tensor,
        text_lengths: Tensor,
        codes: Tensor,
        prompt_lengths: Tensor,
        frame_lengths: Tensor,
        stage: Tensor,
    ) -> Tensor:
        """One pass of one stage.

        Args:
            text: (B, L) int64 ids with `<eos>`, right-padded. text_lengths: (B,) int64, `<eos>` counted.
            codes: (B, T, 8) int64, prompt then target; target codebooks >= stage are not read.
            prompt_lengths, frame_lengths: (B,) int64, prompt frames, and prompt + target frames.
            stage: () int64 in 1..7.

        Returns:
            (B, T - min(prompt_lengths), 1024) float32: row b's target frame i is at
            prompt_lengths[b] - min(prompt_lengths) + i.
        """
        hidden = self.hidden(text, text_lengths, codes, prompt_lengths, frame_lengths, stage)
        first = text.shape[1] + prompt_lengths.min()
        steps = torch.arange(codes.shape[1] + text.shape[1])[first:]
        table = self.code_tables.index_select(0, stage.reshape(1))[0]
        return functional.linear(self.norm(hidden.index_select(1, steps)), table)

    def hidden(
        self,
        text: Tensor,
        text_lengths: Tensor,
        codes: Tensor,
        prompt_lengths: Tensor,
        frame_lengths: Tensor,
        stage: Tensor,
    ) -> Tensor:
        """The last block's output over [text | frames | eos, stage]: (B, L + T + 2, d)."""
        text_index, frame_index = torch.arange(text.shape[1]), torch.arange(codes.shape[1])
        frames = self.embed_frames(codes, prompt_lengths, stage) + self.code_positions(frame_index)
        words = self.text_table(text) + self.text_positions(text_index)
        x = torch.cat([words, frames, self.tail(frame_lengths, stage)], dim=1)
        ends = torch.ones_like(text[:, :1].expand(-1, 2), dtype=torch.bool)
        seen = torch.cat(
            [text_index < text_lengths[:, None], frame_index < frame_lengths[:, None], ends], dim=1
        )
        mask = seen[:, None, None, :].expand(-1, 1, x.shape[1], -1)
        for block in self.blocks:
            x = block(x, mask)
        return x


def initialise(module: nn.Module) -> None:
    """N(0, 0.02) for every table and matrix, zero biases; section 10 gives the reason."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=INIT_STD)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
