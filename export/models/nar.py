"""The VALL-E 2 NAR model in eager PyTorch: codebooks 1..Q-1, one pass with full attention each.

It knows token ids and codes, never text or audio, and is written for export as the AR is.
Axes: B batch, L text, T frames, T' frames of the output, Q codebooks.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from valle2.engine.bundle.contract import CODEBOOK_SIZE
from valle2.engine.bundle.nar_inputs import NARInputs
from valle2.export.models.ar import Block
from valle2.export.models.config import ModelConfig
from valle2.export.models.layers import (
    INIT_STD,
    Angles,
    Norm,
    Rotary,
    TextPrenet,
    code_prenet,
    initialise,
    nearest,
)

MEAN_DOUBT = 30
"""Frames after which a mean counts half: it depends on the words as much as on the voice."""
TAIL = 2
"""Positions after the frames: `<eos>` and the stage."""
Inputs = NARInputs[Tensor]
FullAttend = Callable[[Tensor, Tensor, Tensor, int, Tensor], Tensor]
"""(query, key, value: (B, S, H*D), heads, lengths (B,): positions that are seen) -> (B, S, H*D)."""


class NARModel(nn.Module):
    """Non-autoregressive model of codebooks 1..Q-1 (section 3.3.2, Eq. 12-17).

    A row is: text, `<eos>`, prompt and target frames, `<eos>`, stage id. Attention is full and positions are
    learned, so padding may be anywhere: text and frames are padded separately.
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

    def embed_frames(self, inputs: Inputs) -> Tensor:
        """Embed the frames (B, T, d): all codebooks of the prompt, and those below the stage of the target.

        This is Eq. 12.
        """
        codes, lengths, stage = inputs.codes, inputs.prompt_lengths, inputs.stage
        whole = lengths if self.config.style.whole_prompt else torch.zeros_like(lengths)
        in_prompt = torch.arange(codes.shape[1])[None, :] < whole[:, None]
        tables = self.code_rows()
        total = functional.embedding(codes[:, :, 0], tables)
        for book in range(1, self.config.codebooks):
            first = 0 if self.config.style.one_table else CODEBOOK_SIZE * book
            seen = (in_prompt | (book < stage)).to(total.dtype)
            total = total + seen[..., None] * functional.embedding(first + codes[:, :, book], tables)
        return self.code_prenet(total) if self.config.style.prenet else total

    def code_rows(self) -> Tensor:
        """All code tables as one (K * 1024, d). A graph that picked one table would store it twice."""
        return self.code_tables.flatten(0, 1)

    def tail(self, frame_lengths: Tensor, stage: Tensor) -> Tensor:
        """The closing `<eos>` and stage id (Eq. 13, 14) at the next code positions: (B, 2, d)."""
        table = not self.config.style.nar_rotary
        eos = self.code_eos.expand(frame_lengths.shape[0], -1)
        if table:
            eos = eos + self.code_positions(frame_lengths)
        token = self.stage_table(stage).expand_as(eos)
        if table and self.config.style.stage_position:
            token = token + self.code_positions(frame_lengths + 1)
        return torch.stack([eos, token], dim=1)

    def forward(self, inputs: Inputs, attend: FullAttend | None = None) -> Tensor:
        """One pass of one stage.

        Args:
            inputs: see `NARInputs`.
            attend: attention over packed positions, which replaces the mask; see `packed`.

        Returns:
            (B, T', 1024) float32 with T' = T - min(prompt_lengths). Target frame i of row b is at
            prompt_lengths[b] - min(prompt_lengths) + i.
        """
        embedded = self.embed(inputs)
        text, stage = inputs.text.shape[1], inputs.stage
        first = text + inputs.prompt_lengths.min()
        steps = torch.arange(inputs.codes.shape[1] + text)[first:]
        if attend is None:
            return self.head(self.masked(*embedded, stage, steps), stage)
        return self.head(self.packed(*embedded, stage, steps, attend), stage)

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

    def choose(self, logits: Tensor, inputs: Inputs) -> Tensor:
        """Choose the codes of one stage: logits (B, T', 1024) of `forward` -> codes (B, T') int64.

        Without vectors, the likeliest codes (Eq. 17). With vectors, the codes of least expected risk; with
        `Style.prompt_mean` their expected vectors are first moved towards the prompt's mean.
        """
        if not self.config.vector_width:
            return logits.argmax(dim=2)
        return nearest(*self.wanted(logits, inputs))

    def wanted(self, logits: Tensor, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """The vectors (B, T', D) by which `choose` chooses codes, and the vectors (1024, D) of all codes."""
        stage = inputs.stage
        vectors = self.vectors.index_select(0, (stage - 1).reshape(1))[0]
        wanted = expected(logits, vectors)
        if self.config.style.prompt_mean:
            wanted = wanted + self.to_prompt(wanted, inputs)
        return wanted, vectors

    def to_prompt(self, wanted: Tensor, inputs: Inputs) -> Tensor:
        """The shift from the target's mean vector, over all codebooks, to the prompt's mean vector.

        A mean over many frames depends more on the voice than on the words. For an unseen speaker the NAR
        falls back to the average voice of its training speakers; the shift moves it towards the prompt's
        voice. Codebooks of earlier stages count, later ones do not.

        Args:
            wanted: (B, T', D), the stage's expected vectors of the target.

        Returns:
            (B, 1, D), to be added to each of them.
        """
        codes, stage = inputs.codes, inputs.stage
        prompt_lengths, frame_lengths = inputs.prompt_lengths, inputs.frame_lengths
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

    def hidden(self, inputs: Inputs) -> Tensor:
        """The last block's output over [text | frames | eos, stage]: (B, L + T + 2, d).

        If the stage is in the norms, nothing follows the frames.
        """
        return self.masked(*self.embed(inputs), inputs.stage)

    def embed(self, inputs: Inputs) -> tuple[Tensor, Tensor, Angles | None]:
        """The first block's input (B, S, d), the valid positions (B, S) bool, and rotary angles.

        Rotary positions count valid positions: frames follow the valid text, the end the valid frames.
        """
        text, text_lengths, codes = inputs.text, inputs.text_lengths, inputs.codes
        frame_lengths, stage = inputs.frame_lengths, inputs.stage
        text_index, frame_index = torch.arange(text.shape[1]), torch.arange(codes.shape[1])
        seen = [text_index < text_lengths[:, None], frame_index < frame_lengths[:, None]]
        words, frames = self.text_table(text), self.embed_frames(inputs)
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
        """Run all blocks with a mask over padding -> the wanted positions (T',) of the output, or all."""
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
        """Run all blocks over the valid positions, moved to the left -> the wanted positions (T',)."""
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
        """Run all blocks. After the last attention, only the picked positions are computed."""
        staged = stage if self.config.style.stage == "norm" else None
        for index, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            heard = attended(block, x, staged)
            if index + 1 == len(self.blocks):
                x, heard = pick(x), pick(heard)
            x = block.finish(x, heard, staged)
        return x


def expected(logits: Tensor, vectors: Tensor) -> Tensor:
    """The mean vector (B, T, D) under the probabilities of logits (B, T, 1024); vectors (1024, D).

    The code nearest to it has the least expected squared distance to the true code (minimum Bayes risk). If
    all of a thousand codes are unlikely, the likeliest code is noise, while the mean is not.
    """
    return logits.softmax(dim=2) @ vectors


def mean_shift(prompt: Tensor, target: Tensor, prompt_lengths: Tensor, frame_lengths: Tensor) -> Tensor:
    """The shift (B, D) from the target's mean to the prompt's mean, scaled by the confidence in both.

    prompt, target: (B, D), sums of their vectors. prompt_lengths, frame_lengths: (B,), see `NARInputs`.
    """
    lengths = torch.stack([prompt_lengths, frame_lengths - prompt_lengths]).to(prompt.dtype)
    means = torch.stack([prompt, target]) / lengths.clamp(min=1)[:, :, None]
    believed = (lengths / (lengths + MEAN_DOUBT)).prod(dim=0)
    return believed[:, None] * (means[0] - means[1])


def take(x: Tensor, index: Tensor) -> Tensor:
    """x (B, S, d) at positions index (B, N) -> (B, N, d)."""
    return x.gather(1, index[:, :, None].expand(-1, -1, x.shape[2]))


def take_angles(angles: Angles, index: Tensor) -> Angles:
    """Angles (B, S, 1, D/2) at positions index (B, N)."""
    cosines, sines = (take(part[:, :, 0], index)[:, :, None] for part in angles)
    return cosines, sines
