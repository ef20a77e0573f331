"""EnCodec at 24 kHz, causal, 75 frames a second (Défossez et al., 2022, section 3.2).

Every convolution looks back only, so speech decoded chunk by chunk, with what each layer leaves behind
handed on, is the speech decoded at once. Only the first eight of its codebooks are kept (6 kbps). Written
for export: no padding depends on the data, and a transposed convolution is one of width two, reordered.
Axes: B batch, C channels, N samples, T frames.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from valle2.export.codec import embedded, residual_codes
from valle2.export.config import CODEBOOK_SIZE, CODEBOOKS

WIDE, NARROW, LSTM_LAYERS = 7, 3, 2


@dataclass(frozen=True, slots=True)
class EncodecConfig:
    """Sizes. ratios: samples to frames, in the encoder's order; `filters` double with each."""

    filters: int = 32
    dimension: int = 128
    ratios: tuple[int, ...] = (2, 4, 5, 8)
    sample_rate: int = 24000

    @property
    def hop(self) -> int:
        return math.prod(self.ratios)

    @property
    def width(self) -> int:
        """Channels at the frame rate."""
        return self.filters << len(self.ratios)


class Memory:
    """What each layer leaves for the next chunk, in the order of the layers.

    started: scalar bool, or None where there are no chunks; states: what was left by the last chunk.
    """

    def __init__(self, started: Tensor | None = None, states: Sequence[Tensor] = ()) -> None:
        self.started, self.old = started, states
        self.new: list[Tensor] = []

    def before(self, fresh: Tensor, later: int = 0) -> Tensor:
        """The next state (`later`: after so many others); `fresh` is what precedes an utterance."""
        if self.started is None:
            return fresh
        return torch.where(self.started, self.old[len(self.new) + later], fresh)

    def keep(self, state: Tensor) -> None:
        self.new.append(state)


def elu(x: Tensor) -> Tensor:
    """x or, below zero, exp(x) - 1, of operators that every backend has."""
    return torch.where(x > 0, x, x.clamp(max=0).exp() - 1)


def reflected(x: Tensor, size: int) -> Tensor:
    """The `size` samples before x (B, C, N): its mirror image, zeros where x is shorter."""
    longer = torch.cat([x, torch.zeros_like(x[:, :, :1]).expand(-1, -1, size)], dim=2)
    return longer[:, :, 1 : size + 1].flip(2)


class CausalConv(nn.Module):
    """(B, in, N) -> (B, out, N / stride), N a multiple of the stride; before the start is a mirror image."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv1d(inputs, outputs, kernel, stride)
        self.past = kernel - stride

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        if self.past:
            x = torch.cat([memory.before(reflected(x, self.past)), x], dim=2)
            memory.keep(x[:, :, -self.past :])
        out: Tensor = self.conv(x)
        return out


class Upsample(nn.Module):
    """(B, in, N) -> (B, out, N * ratio): the causal transposed convolution of kernel 2 * ratio.

    An output sample hears two inputs, so it is a convolution of width two with `ratio` outputs a channel.
    """

    def __init__(self, inputs: int, outputs: int, ratio: int) -> None:
        super().__init__()
        self.outputs, self.ratio = outputs, ratio
        self.conv = nn.Conv1d(inputs, outputs * ratio, 2)

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        x = torch.cat([memory.before(torch.zeros_like(x[:, :, :1])), x], dim=2)
        memory.keep(x[:, :, -1:])
        parts: Tensor = self.conv(x).unflatten(1, (self.outputs, self.ratio))
        return parts.transpose(2, 3).flatten(2)

    @staticmethod
    def rearranged(weight: Tensor) -> Tensor:
        """The transposed convolution's weight (in, out, 2 * ratio) as this one's (out * ratio, in, 2)."""
        now, before = weight.chunk(2, dim=2)
        return torch.stack([before, now], dim=3).permute(1, 2, 0, 3).flatten(0, 1).contiguous()


class Residual(nn.Module):
    """Two convolutions around half the channels beside one of width one: (B, C, N) -> (B, C, N)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.narrow = CausalConv(width, width // 2, NARROW)
        self.widen = CausalConv(width // 2, width, 1)
        self.shortcut = CausalConv(width, width, 1)

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        hidden = elu(self.narrow(elu(x), memory))
        out: Tensor = self.shortcut(x, memory) + self.widen(hidden, memory)
        return out


class Recurrent(nn.Module):
    """Two LSTM layers with their input added: (B, C, T) -> (B, C, T). `arrange` it before it is exported."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(width, width, LSTM_LAYERS)

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        frames = x.permute(2, 0, 1)
        zero = x.new_zeros(x.shape[0], LSTM_LAYERS, x.shape[1])
        hidden, cell = (memory.before(zero, later).transpose(0, 1).contiguous() for later in (0, 1))
        run = self.nodes if torch.compiler.is_exporting() else self.lstm
        out, states = run(frames, (hidden, cell))
        for state in states:
            memory.keep(state.transpose(0, 1))
        return (out + frames).permute(1, 2, 0)

    def arrange(self) -> None:
        """Copy the weights as ONNX's `LSTM` takes them: gates input, output, forget, cell."""

        def ordered(name: str, layer: int) -> Tensor:
            enter, forget, new, leave = getattr(self.lstm, f"{name}_l{layer}").detach().chunk(4)
            return torch.cat([enter, leave, forget, new])[None]

        for layer in range(LSTM_LAYERS):
            self.register_buffer(f"inputs_{layer}", ordered("weight_ih", layer), persistent=False)
            self.register_buffer(f"hidden_{layer}", ordered("weight_hh", layer), persistent=False)
            bias = torch.cat([ordered("bias_ih", layer), ordered("bias_hh", layer)], dim=1)
            self.register_buffer(f"bias_{layer}", bias, persistent=False)

    def nodes(self, x: Tensor, start: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """What `self.lstm` computes as one node a layer; the exporter would unroll it over time."""
        hidden, cell = [], []
        shape = (1, x.shape[1], x.shape[2])
        for layer in range(LSTM_LAYERS):
            weights = [self.get_buffer(f"{part}_{layer}") for part in ("inputs", "hidden", "bias")]
            before = [state[layer : layer + 1] for state in start]
            x, *after = torch.onnx.ops.symbolic_multi_out(
                "LSTM",
                [x, *weights, None, *before],
                {"hidden_size": x.shape[2]},
                dtypes=[x.dtype] * 3,
                shapes=[(x.shape[0], *shape), shape, shape],
                version=14,
            )
            x = x[:, 0]
            hidden.append(after[0])
            cell.append(after[1])
        return x, (torch.cat(hidden), torch.cat(cell))


class EncodecEncoder(nn.Module):
    """audio (B, N) float32, N a multiple of the hop -> codes (B, N / hop, 8) int64."""

    def __init__(self, config: EncodecConfig) -> None:
        super().__init__()
        widths = [config.filters * 2**level for level in range(len(config.ratios) + 1)]
        self.first = CausalConv(1, config.filters, WIDE)
        self.blocks = nn.ModuleList(Residual(width) for width in widths[:-1])
        self.downs = nn.ModuleList(
            CausalConv(width, 2 * width, 2 * ratio, ratio)
            for width, ratio in zip(widths, config.ratios, strict=False)
        )
        self.recurrent = Recurrent(config.width)
        self.last = CausalConv(config.width, config.dimension, WIDE)
        self.tables = nn.Parameter(torch.randn(CODEBOOKS, CODEBOOK_SIZE, config.dimension))

    def forward(self, audio: Tensor) -> Tensor:
        return self.quantise(self.latent(audio))

    def latent(self, audio: Tensor) -> Tensor:
        """(B, N) -> (B, T, dimension)."""
        memory = Memory()
        x = self.first(audio[:, None], memory)
        for block, down in zip(self.blocks, self.downs, strict=True):
            x = down(elu(block(x, memory)), memory)
        out: Tensor = self.last(elu(self.recurrent(x, memory)), memory).transpose(1, 2)
        return out

    def quantise(self, latent: Tensor) -> Tensor:
        """(B, T, dimension) -> codes (B, T, 8): each codebook quantises what the ones before left."""
        return torch.stack(residual_codes(latent, self.tables), dim=2)


class EncodecDecoder(nn.Module):
    """codes (B, T, 8) int64 -> audio (B, T * hop) float32."""

    def __init__(self, config: EncodecConfig) -> None:
        super().__init__()
        widths = [config.width // 2**level for level in range(len(config.ratios) + 1)]
        self.tables = nn.Parameter(torch.randn(CODEBOOKS, CODEBOOK_SIZE, config.dimension))
        self.first = CausalConv(config.dimension, config.width, WIDE)
        self.recurrent = Recurrent(config.width)
        self.ups = nn.ModuleList(
            Upsample(width, width // 2, ratio)
            for width, ratio in zip(widths, config.ratios[::-1], strict=False)
        )
        self.blocks = nn.ModuleList(Residual(width) for width in widths[1:])
        self.last = CausalConv(config.filters, 1, WIDE)

    def forward(self, codes: Tensor) -> Tensor:
        return self.decode(codes, Memory())

    def decode(self, codes: Tensor, memory: Memory) -> Tensor:
        """(B, T, 8) -> (B, T * hop), after what the memory holds."""
        latent = embedded(codes, self.tables)
        x = self.recurrent(self.first(latent.transpose(1, 2), memory), memory)
        for up, block in zip(self.ups, self.blocks, strict=True):
            x = block(up(elu(x), memory), memory)
        out: Tensor = self.last(elu(x), memory)
        return out[:, 0]


class EncodecStream(nn.Module):
    """The decoder on the next chunk of an utterance.

    started: scalar bool, False at an utterance's first chunk; that one has at least seven frames, unless it
    is the last too. states: as the chunk before returned them, anything at the first.
    """

    def __init__(self, decoder: EncodecDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, codes: Tensor, started: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        memory = Memory(started, states)
        audio = self.decoder.decode(codes, memory)
        return (audio, *memory.new)

    def zero_states(self, batch: int) -> list[Tensor]:
        """States in their order and shapes."""
        memory = Memory()
        with torch.no_grad():
            self.decoder.decode(torch.zeros(batch, WIDE, CODEBOOKS, dtype=torch.int64), memory)
        return [torch.zeros_like(state) for state in memory.new]
