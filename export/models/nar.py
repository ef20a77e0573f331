"""The VALL-E 2 NAR model in eager PyTorch: codebooks 1..7, one full-attention pass each.

It knows token ids and codes, never text or audio, and is written for export like the AR (`model`).
Axes: B batch, L text, T frames.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from valle2.export.codecs.demo import nearest
from valle2.export.models.ar import Block
from valle2.export.models.config import CODEBOOK_SIZE, ModelConfig
from valle2.export.models.layers import INIT_STD, Angles, Norm, Rotary, TextPrenet, code_prenet, initialise

MEAN_DOUBT = 30
"""Frames: a mean of so many is half believed, since it is of what they say as much as of who says it."""
TAIL = 2
"""Positions behind the frames: `<eos>` and the stage."""
FullAttend = Callable[[Tensor, Tensor, Tensor, int, Tensor], Tensor]
"""(query, key, value: (B, S, H*D), heads, lengths (B,): how many positions are seen) -> (B, S, H*D)."""


class NARModel(nn.Module):
    """Non-autoregressive model of codebooks 1..7 (section 3.3.2, Eq. 12-17).

    A row is: text, `<eos>`, prompt and target frames, `<eos>`, stage id. With full attention and
    learned positions the place of padding does not matter, so text and frames are padded apart.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, style, books = config.nar_d_model, config.style, config.codebooks
        self.config = config
        self.text_table = nn.Embedding(config.nar_text_rows, width)
        tables = 1 if style.one_table else books
        self.code_tables = nn.Parameter(torch.empty(tables, CODEBOOK_SIZE, width).normal_(std=INIT_STD))
        stages = books if style.stage == "norm" else 0
        if not stages:
            self.stage_table = nn.Embedding(books, width)
            self.code_eos = nn.Parameter(torch.empty(width).normal_(std=INIT_STD))
        if style.nar_rotary:
            self.rotary = Rotary(config.nar_head, config.max_text + config.max_frames + TAIL)
        else:
            self.text_positions = nn.Embedding(config.max_text, width)
            self.code_positions = nn.Embedding(config.max_frames + TAIL, width)
        if style.prenet:
            self.text_prenet, self.code_prenet = TextPrenet(width), code_prenet(width)
        block = (width, config.nar_heads, config.nar_head, config.nar_ffn)
        self.blocks = nn.ModuleList(Block(*block, style, stages) for _ in range(config.nar_layers))
        self.norm = Norm(width, style.norm, stages) if style.norm_first else None
        if style.head != "tied":
            heads = 1 if style.head == "one" else books - 1
            self.heads = nn.Parameter(torch.empty(heads, CODEBOOK_SIZE, width).normal_(std=INIT_STD))
            self.head_bias = nn.Parameter(torch.zeros(heads, CODEBOOK_SIZE)) if style.head_bias else None
        if config.vector_width:
            sizes = (books - 1, CODEBOOK_SIZE, config.vector_width)
            self.vectors = nn.Parameter(torch.empty(sizes).normal_(std=INIT_STD))
        self.apply(initialise)

    def embed_frames(self, codes: Tensor, prompt_lengths: Tensor, stage: Tensor) -> Tensor:
        """codes (B, T, 8) -> (B, T, d): prompt frames sum all codebooks, targets those < stage (Eq. 12)."""
        whole = prompt_lengths if self.config.style.whole_prompt else torch.zeros_like(prompt_lengths)
        in_prompt = torch.arange(codes.shape[1])[None, :] < whole[:, None]
        tables = self.code_rows()
        total = functional.embedding(codes[:, :, 0], tables)
        for book in range(1, self.config.codebooks):
            first = 0 if self.config.style.one_table else CODEBOOK_SIZE * book
            seen = (in_prompt | (book < stage)).to(total.dtype)
            total = total + seen[..., None] * functional.embedding(first + codes[:, :, book], tables)
        return self.code_prenet(total) if self.config.style.prenet else total

    def code_rows(self) -> Tensor:
        """All code tables in one, (K * 1024, d): a graph that picked a table would hold it twice."""
        return self.code_tables.flatten(0, 1)

    def tail(self, frame_lengths: Tensor, stage: Tensor) -> Tensor:
        """The closing `<eos>` and stage id (Eq. 13, 14), continuing the code positions: (B, 2, d)."""
        table = not self.config.style.nar_rotary
        eos = self.code_eos.expand(frame_lengths.shape[0], -1)
        if table:
            eos = eos + self.code_positions(frame_lengths)
        token = self.stage_table(stage).expand_as(eos)
        if table and self.config.style.stage_position:
            token = token + self.code_positions(frame_lengths + 1)
        return torch.stack([eos, token], dim=1)

    def forward(
        self,
        text: Tensor,
        text_lengths: Tensor,
        codes: Tensor,
        prompt_lengths: Tensor,
        frame_lengths: Tensor,
        stage: Tensor,
        attend: FullAttend | None = None,
    ) -> Tensor:
        """One pass of one stage.

        Args:
            text: (B, L) int64 ids with `<eos>`, right-padded. text_lengths: (B,) int64, `<eos>` counted.
            codes: (B, T, 8) int64, prompt then target; target codebooks >= stage are not read.
            prompt_lengths, frame_lengths: (B,) int64, prompt frames, and prompt + target frames.
            stage: () int64 in 1..7. attend: in place of a mask, over positions moved together at the left.

        Returns:
            (B, T - min(prompt_lengths), 1024) float32: row b's target frame i is at
            prompt_lengths[b] - min(prompt_lengths) + i.
        """
        inputs = self.embed(text, text_lengths, codes, prompt_lengths, frame_lengths, stage)
        first = text.shape[1] + prompt_lengths.min()
        steps = torch.arange(codes.shape[1] + text.shape[1])[first:]
        if attend is None:
            return self.head(self.masked(*inputs, stage, steps), stage)
        return self.head(self.packed(*inputs, stage, steps, attend), stage)

    def head(self, hidden: Tensor, stage: Tensor) -> Tensor:
        """hidden (B, T, d) -> logits (B, T, 1024) of one stage."""
        style = self.config.style
        if self.norm is not None:
            hidden = self.norm(hidden, stage if style.stage == "norm" else None)
        if style.head == "tied":
            rows = CODEBOOK_SIZE * stage + torch.arange(CODEBOOK_SIZE)
            return functional.linear(hidden, self.code_rows().index_select(0, rows))
        row = torch.zeros_like(stage) if style.head == "one" else stage - 1
        weight = self.heads.index_select(0, row.reshape(1))[0]
        bias = None if self.head_bias is None else self.head_bias.index_select(0, row.reshape(1))[0]
        return functional.linear(hidden, weight, bias)

    def choose(
        self, logits: Tensor, codes: Tensor, prompt_lengths: Tensor, frame_lengths: Tensor, stage: Tensor
    ) -> Tensor:
        """logits (B, T', 1024) of one stage, the rest as for `forward` -> its codes (B, T').

        The likeliest ones (Eq. 17); with vectors of the stage's codes, those of least risk, which may be
        moved towards the prompt's mean before they are chosen.
        """
        if not self.config.vector_width:
            return logits.argmax(dim=2)
        return nearest(*self.wanted(logits, codes, prompt_lengths, frame_lengths, stage))

    def wanted(
        self, logits: Tensor, codes: Tensor, prompt_lengths: Tensor, frame_lengths: Tensor, stage: Tensor
    ) -> tuple[Tensor, Tensor]:
        """As for `choose` -> the vectors (B, T', D) to choose codes by, and the stage's own (1024, D)."""
        vectors = self.vectors.index_select(0, (stage - 1).reshape(1))[0]
        wanted = expected(logits, vectors)
        if self.config.style.prompt_mean:
            wanted = wanted + self.to_prompt(wanted, codes, prompt_lengths, frame_lengths, stage)
        return wanted, vectors

    def to_prompt(
        self, wanted: Tensor, codes: Tensor, prompt_lengths: Tensor, frame_lengths: Tensor, stage: Tensor
    ) -> Tensor:
        """From the target's mean vector, all books together, to the prompt's, as far as both are believed.

        A mean over many frames tells the voice more than the words. A NAR gives one that it has not heard
        the mean of those that it has. What the stages before have said counts, what later ones will does not.

        Args:
            wanted: (B, T', D), the stage's expected vectors of the target; the rest as for `forward`.

        Returns:
            (B, 1, D) to add to each of them.
        """
        rows, books = self.vectors.flatten(0, 1), torch.arange(self.config.codebooks - 1)
        frames = torch.arange(codes.shape[1])
        in_prompt = frames < prompt_lengths[:, None]
        in_target = ~in_prompt & (frames < frame_lengths[:, None])
        known = in_prompt[:, :, None] | (books + 1 < stage)
        said = functional.embedding(codes[:, :, 1:] + CODEBOOK_SIZE * books, rows)
        said = (said * known[:, :, :, None].to(rows.dtype)).sum(dim=2)
        heard = in_target[:, prompt_lengths.min() :, None].to(rows.dtype)
        prompt = (said * in_prompt[:, :, None].to(rows.dtype)).sum(dim=1)
        target = (said * in_target[:, :, None].to(rows.dtype)).sum(dim=1) + (wanted * heard).sum(dim=1)
        return mean_shift(prompt, target, prompt_lengths, frame_lengths)[:, None]

    def hidden(
        self,
        text: Tensor,
        text_lengths: Tensor,
        codes: Tensor,
        prompt_lengths: Tensor,
        frame_lengths: Tensor,
        stage: Tensor,
    ) -> Tensor:
        """The last block's output over [text | frames | eos, stage]: (B, L + T + 2, d).

        Where the stage is in the norms there is nothing after the frames.
        """
        inputs = self.embed(text, text_lengths, codes, prompt_lengths, frame_lengths, stage)
        return self.masked(*inputs, stage)

    def embed(
        self,
        text: Tensor,
        text_lengths: Tensor,
        codes: Tensor,
        prompt_lengths: Tensor,
        frame_lengths: Tensor,
        stage: Tensor,
    ) -> tuple[Tensor, Tensor, Angles | None]:
        """What the first block reads (B, S, d), which positions are seen (B, S) bool, rotary angles.

        Rotary positions count what is seen: frames follow the valid text, the end the valid frames.
        """
        text_index, frame_index = torch.arange(text.shape[1]), torch.arange(codes.shape[1])
        seen = [text_index < text_lengths[:, None], frame_index < frame_lengths[:, None]]
        words, frames = self.text_table(text), self.embed_frames(codes, prompt_lengths, stage)
        style, angles = self.config.style, None
        if style.prenet:
            words = self.text_prenet(words, seen[0])
        places = [text_index.expand(text.shape[0], -1), text_lengths[:, None] + frame_index]
        if not style.nar_rotary:
            words, frames = words + self.text_positions(text_index), frames + self.code_positions(frame_index)
        parts = [words, frames]
        if style.stage == "token":
            parts.append(self.tail(frame_lengths, stage))
            seen.append(torch.ones_like(text[:, :1].expand(-1, TAIL), dtype=torch.bool))
            places.append((text_lengths + frame_lengths)[:, None] + torch.arange(TAIL))
        if style.nar_rotary:
            angles = self.rotary(torch.cat(places, dim=1))
        return torch.cat(parts, dim=1), torch.cat(seen, dim=1), angles

    def masked(
        self, x: Tensor, seen: Tensor, angles: Angles | None, stage: Tensor, wanted: Tensor | None = None
    ) -> Tensor:
        """All blocks, with a mask over what is not seen; -> the wanted positions (T',) of the end, or all."""
        mask = seen[:, None, None, :].expand(-1, 1, x.shape[1], -1)

        def attended(block: Block, x: Tensor, staged: Tensor | None) -> Tensor:
            return block.attend(x, mask, staged, angles)

        return self.through(x, stage, attended, lambda x: x if wanted is None else x.index_select(1, wanted))

    def packed(
        self,
        x: Tensor,
        seen: Tensor,
        angles: Angles | None,
        stage: Tensor,
        wanted: Tensor,
        attend: FullAttend,
    ) -> Tensor:
        """All blocks over the seen positions moved to the left; -> the wanted ones (T',) of the last."""
        lengths = seen.to(torch.int64).sum(dim=1)
        order = torch.topk(seen.to(torch.float32), seen.shape[1], dim=1)[1]
        place = order.argsort(dim=1).index_select(1, wanted)
        moved = None if angles is None else take_angles(angles, order)

        def attended(block: Block, x: Tensor, staged: Tensor | None) -> Tensor:
            return attend(*block.project(x, staged, moved), block.heads, lengths)

        return self.through(take(x, order), stage, attended, lambda x: take(x, place))

    def through(
        self,
        x: Tensor,
        stage: Tensor,
        attended: Callable[[Block, Tensor, Tensor | None], Tensor],
        pick: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """All blocks. Nothing but what is picked goes through the end of the last."""
        staged = stage if self.config.style.stage == "norm" else None
        for index, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            heard = attended(block, x, staged)
            if index + 1 == len(self.blocks):
                x, heard = pick(x), pick(heard)
            x = block.finish(x, heard, staged)
        return x


def expected(logits: Tensor, vectors: Tensor) -> Tensor:
    """logits (B, T, 1024), vectors (1024, D) -> the mean vector (B, T, D) under the logits' probabilities.

    The code nearest to it has the least expected squared distance to the true one (minimum Bayes risk). Where
    a thousand codes are all unlikely the likeliest one is noise, and the mean is not.
    """
    return logits.softmax(dim=2) @ vectors


def mean_shift(prompt: Tensor, target: Tensor, prompt_lengths: Tensor, frame_lengths: Tensor) -> Tensor:
    """From the target's mean to the prompt's, as far as both are believed: (B, D).

    prompt, target: (B, D), the sums of their vectors; prompt_lengths, frame_lengths: (B,), see `forward`.
    """
    lengths = torch.stack([prompt_lengths, frame_lengths - prompt_lengths]).to(prompt.dtype)
    means = torch.stack([prompt, target]) / lengths.clamp(min=1)[:, :, None]
    believed = (lengths / (lengths + MEAN_DOUBT)).prod(dim=0)
    return believed[:, None] * (means[0] - means[1])


def take(x: Tensor, index: Tensor) -> Tensor:
    """Positions (B, N) of x (B, S, d) -> (B, N, d)."""
    return x.gather(1, index[:, :, None].expand(-1, -1, x.shape[2]))


def take_angles(angles: Angles, index: Tensor) -> Angles:
    """Positions (B, N) of angles (B, S, 1, D/2)."""
    cosines, sines = (take(part[:, :, 0], index)[:, :, None] for part in angles)
    return cosines, sines
