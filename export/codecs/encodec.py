"""EnCodec at 24 kHz (Défossez et al., 2022, section 3.2), and SpeechTokenizer (Zhang et al., 2024).

EnCodec's convolutions are causal. Its decoder can therefore run chunk by chunk, with the state of each layer
carried over, and gives the same speech as in one call. SpeechTokenizer's convolutions also look ahead. Eight
codebooks are used. The modules are written for export: no padding depends on the data, and a transposed
convolution is written as a convolution of width two. Axes: B batch, C channels, N samples, T frames.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from valle2.engine.bundle.contract import CODEBOOK_SIZE, CODEBOOKS
from valle2.export.codecs.common import SAMPLE_RATES, Limits, check_sizes, embedded, residual_codes

WIDE, NARROW, LSTM_LAYERS = 7, 3, 2
ENCODEC_LIMITS: Limits = {
    "levels": (1, 8),
    "filters": (2, 256),
    "ratio": (2, 64),
    "hop": (2, 2048),
    "sample_rate": SAMPLE_RATES,
}
"""Smallest and greatest sizes. dimension and width lie between 1 and `common.MAX_WIDTH`.

levels: the number of ratios. EnCodec has 32 filters, dimension 128 and hop 320; SpeechTokenizer 64, 1024
and 320.
"""


@dataclass(frozen=True, slots=True)
class EncodecConfig:
    """Sizes of the codec.

    Args:
        filters: channels of the first convolution; each level doubles them. dimension: of the latent.
        ratios: the encoder's strides, in its order; their product is the hop. sample_rate: in Hz.
        causal: convolutions look only back. both_ways: the encoder's LSTM also runs backwards.

    Raises:
        ValueError: a size is not a whole number within `ENCODEC_LIMITS`.
    """

    filters: int = 32
    dimension: int = 128
    ratios: tuple[int, ...] = (2, 4, 5, 8)
    sample_rate: int = 24000
    causal: bool = True
    both_ways: bool = False

    def __post_init__(self) -> None:
        plain = {"levels": len(self.ratios), "filters": self.filters, "dimension": self.dimension}
        check_sizes("EnCodec", plain | {"sample_rate": self.sample_rate}, ENCODEC_LIMITS)
        for ratio in self.ratios:
            check_sizes("EnCodec", {"ratio": ratio}, ENCODEC_LIMITS)
        check_sizes("EnCodec", {"hop": self.hop, "width": self.width}, ENCODEC_LIMITS)

    @property
    def hop(self) -> int:
        return math.prod(self.ratios)

    @property
    def width(self) -> int:
        """Channels at the frame rate, after all levels."""
        return self.filters << len(self.ratios)


class Memory:
    """The state that each layer leaves for the next chunk, in the order of the layers.

    started: scalar bool, whether a chunk came before; None outside streams. states: those of that chunk.
    """

    def __init__(self, started: Tensor | None = None, states: Sequence[Tensor] = ()) -> None:
        self.started, self.old = started, states
        self.new: list[Tensor] = []

    def before(self, fresh: Tensor, later: int = 0) -> Tensor:
        """The next stored state, or `fresh` at the start of an utterance. later: skip this many states."""
        if self.started is None:
            return fresh
        return torch.where(self.started, self.old[len(self.new) + later], fresh)

    def keep(self, state: Tensor) -> None:
        self.new.append(state)


def elu(x: Tensor) -> Tensor:
    """ELU: x, or exp(x) - 1 below zero, from operators that every backend has."""
    return torch.where(x > 0, x, x.clamp(max=0).exp() - 1)


def reflected(x: Tensor, size: int) -> Tensor:
    """The `size` samples before x (B, C, N): its mirror image, zeros where x is too short."""
    longer = torch.cat([x, torch.zeros_like(x[:, :, :1]).expand(-1, -1, size)], dim=2)
    return longer[:, :, 1 : size + 1].flip(2)


def mirrored(x: Tensor, size: int) -> Tensor:
    """The `size` samples after x (B, C, N): its mirror image, zeros where x is too short."""
    longer = torch.cat([torch.zeros_like(x[:, :, :1]).expand(-1, -1, size), x], dim=2)
    return longer[:, :, -size - 1 : -1].flip(2)


class Conv(nn.Module):
    """(B, in, N) -> (B, out, N / stride), N a multiple of the stride. A mirror image pads the start.

    A convolution that is not causal pads half of it at the end.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, causal: bool = True) -> None:
        super().__init__()
        self.causal = causal
        self.conv = nn.Conv1d(inputs, outputs, kernel, stride)
        self.past = kernel - stride

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        if self.past and not self.causal:
            after = self.past // 2
            x = torch.cat([reflected(x, self.past - after), x, mirrored(x, after)], dim=2)
        elif self.past:
            x = torch.cat([memory.before(reflected(x, self.past)), x], dim=2)
            memory.keep(x[:, :, -self.past :])
        out: Tensor = self.conv(x)
        return out


class Upsample(nn.Module):
    """(B, in, N) -> (B, out, N * ratio): the transposed convolution of kernel 2 * ratio.

    Each output sample depends on two inputs, so this is a convolution of width two with `ratio` outputs per
    channel. It gives (N + 1) * ratio samples. The causal form drops the last `ratio`, the other form drops
    samples on both sides.
    """

    def __init__(self, inputs: int, outputs: int, ratio: int, causal: bool = True) -> None:
        super().__init__()
        self.outputs, self.ratio, self.causal = outputs, ratio, causal
        self.conv = nn.Conv1d(inputs, outputs * ratio, 2)

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        silence = torch.zeros_like(x[:, :, :1])
        if self.causal:
            x = torch.cat([memory.before(silence), x], dim=2)
            memory.keep(x[:, :, -1:])
        else:
            x = torch.cat([silence, x, silence], dim=2)
        parts: Tensor = self.conv(x).unflatten(1, (self.outputs, self.ratio))
        out = parts.transpose(2, 3).flatten(2)
        return out if self.causal else out[:, :, self.ratio - self.ratio // 2 : -(self.ratio // 2)]

    @staticmethod
    def rearranged(weight: Tensor) -> Tensor:
        """The weight (in, out, 2 * ratio) of the transposed convolution as (out * ratio, in, 2)."""
        now, before = weight.chunk(2, dim=2)
        return torch.stack([before, now], dim=3).permute(1, 2, 0, 3).flatten(0, 1).contiguous()


class Residual(nn.Module):
    """A bottleneck of two convolutions plus a pointwise shortcut: (B, C, N) -> (B, C, N)."""

    def __init__(self, width: int, causal: bool = True) -> None:
        super().__init__()
        self.narrow = Conv(width, width // 2, NARROW, causal=causal)
        self.widen = Conv(width // 2, width, 1)
        self.shortcut = Conv(width, width, 1)

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        hidden = elu(self.narrow(elu(x), memory))
        out: Tensor = self.shortcut(x, memory) + self.widen(hidden, memory)
        return out


class Recurrent(nn.Module):
    """Two LSTM layers and a skip connection: (B, C, T) -> (B, C, T). Call `arrange` before export.

    both_ways: each layer also runs backwards, and the output is (B, 2 * C, T).
    """

    def __init__(self, width: int, both_ways: bool = False) -> None:
        super().__init__()
        self.ways = ("", "_reverse") if both_ways else ("",)
        self.lstm = nn.LSTM(width, width, LSTM_LAYERS, bidirectional=both_ways)

    def forward(self, x: Tensor, memory: Memory) -> Tensor:
        frames = x.permute(2, 0, 1)
        zero = x.new_zeros(x.shape[0], len(self.ways) * LSTM_LAYERS, x.shape[1])
        hidden, cell = (memory.before(zero, later).transpose(0, 1).contiguous() for later in (0, 1))
        run = self.nodes if torch.compiler.is_exporting() else self.lstm
        out, states = run(frames, (hidden, cell))
        for state in states:
            memory.keep(state.transpose(0, 1))
        return (out + frames.repeat(1, 1, len(self.ways))).permute(1, 2, 0)

    def arrange(self) -> None:
        """Copy the weights in the gate order of ONNX's `LSTM`: input, output, forget, cell."""

        def ordered(name: str, layer: int) -> Tensor:
            parts = (getattr(self.lstm, f"{name}_l{layer}{way}").detach().chunk(4) for way in self.ways)
            return torch.stack(
                [torch.cat([enter, leave, forget, new]) for enter, forget, new, leave in parts]
            )

        for layer in range(LSTM_LAYERS):
            self.register_buffer(f"inputs_{layer}", ordered("weight_ih", layer), persistent=False)
            self.register_buffer(f"hidden_{layer}", ordered("weight_hh", layer), persistent=False)
            bias = torch.cat([ordered("bias_ih", layer), ordered("bias_hh", layer)], dim=1)
            self.register_buffer(f"bias_{layer}", bias, persistent=False)

    def nodes(self, x: Tensor, start: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """`self.lstm` as one ONNX node per layer. The exporter would unroll it over time."""
        hidden, cell, ways = [], [], len(self.ways)
        shape = (ways, x.shape[1], self.lstm.hidden_size)
        for layer in range(LSTM_LAYERS):
            weights = [self.get_buffer(f"{part}_{layer}") for part in ("inputs", "hidden", "bias")]
            before = [state[ways * layer : ways * (layer + 1)] for state in start]
            x, *after = torch.onnx.ops.symbolic_multi_out(
                "LSTM",
                [x, *weights, None, *before],
                {
                    "hidden_size": self.lstm.hidden_size,
                    "direction": "bidirectional" if ways > 1 else "forward",
                },
                dtypes=[x.dtype] * 3,
                shapes=[(x.shape[0], *shape), shape, shape],
                version=14,
            )
            x = x.transpose(1, 2).flatten(2)
            hidden.append(after[0])
            cell.append(after[1])
        return x, (torch.cat(hidden), torch.cat(cell))


class EncodecEncoder(nn.Module):
    """audio (B, N) float32, N a multiple of the hop -> codes (B, N / hop, 8) int64."""

    def __init__(self, config: EncodecConfig) -> None:
        super().__init__()
        widths = [config.filters * 2**level for level in range(len(config.ratios) + 1)]
        causal = config.causal
        self.first = Conv(1, config.filters, WIDE, causal=causal)
        self.blocks = nn.ModuleList(Residual(width, causal) for width in widths[:-1])
        self.downs = nn.ModuleList(
            Conv(width, 2 * width, 2 * ratio, ratio, causal)
            for width, ratio in zip(widths, config.ratios, strict=False)
        )
        self.recurrent = Recurrent(config.width, config.both_ways)
        self.last = Conv(config.width << config.both_ways, config.dimension, WIDE, causal=causal)
        self.tables = nn.Parameter(torch.empty(CODEBOOKS, CODEBOOK_SIZE, config.dimension))

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
        """(B, T, dimension) -> codes (B, T, 8). Each codebook quantises the residual of the ones before."""
        return torch.stack(residual_codes(latent, self.tables), dim=2)


class EncodecDecoder(nn.Module):
    """codes (B, T, 8) int64 -> audio (B, T * hop) float32."""

    def __init__(self, config: EncodecConfig) -> None:
        super().__init__()
        widths = [config.width // 2**level for level in range(len(config.ratios) + 1)]
        self.tables = nn.Parameter(torch.empty(CODEBOOKS, CODEBOOK_SIZE, config.dimension))
        self.causal = config.causal
        self.first = Conv(config.dimension, config.width, WIDE, causal=config.causal)
        self.recurrent = Recurrent(config.width)
        self.ups = nn.ModuleList(
            Upsample(width, width // 2, ratio, config.causal)
            for width, ratio in zip(widths, config.ratios[::-1], strict=False)
        )
        self.blocks = nn.ModuleList(Residual(width, config.causal) for width in widths[1:])
        self.last = Conv(config.filters, 1, WIDE, causal=config.causal)

    def forward(self, codes: Tensor) -> Tensor:
        return self.decode(codes, Memory())

    def decode(self, codes: Tensor, memory: Memory) -> Tensor:
        """Codes (B, T, 8) -> audio (B, T * hop), continued from the memory's state."""
        latent = embedded(codes, self.tables)
        x = self.recurrent(self.first(latent.transpose(1, 2), memory), memory)
        for up, block in zip(self.ups, self.blocks, strict=True):
            x = block(up(elu(x), memory), memory)
        out: Tensor = self.last(elu(x), memory)
        return out[:, 0]


class EncodecStream(nn.Module):
    """The decoder on the next chunk of an utterance.

    started: scalar bool, False for an utterance's first chunk. The first chunk has at least seven frames,
    unless it is also the last. states: the outputs of the chunk before; any values for the first chunk.
    """

    def __init__(self, decoder: EncodecDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, codes: Tensor, started: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        memory = Memory(started, states)
        audio = self.decoder.decode(codes, memory)
        return (audio, *memory.new)

    def zero_states(self, batch: int) -> list[Tensor]:
        """Zero states for a batch, in their order."""
        memory = Memory()
        with torch.no_grad():
            self.decoder.decode(torch.zeros(batch, WIDE, CODEBOOKS, dtype=torch.int64), memory)
        return [torch.zeros_like(state) for state in memory.new]
