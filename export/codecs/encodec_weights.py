"""Published weights of EnCodec, in the form of `transformers` or of `encodec`, and of SpeechTokenizer."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from valle2.engine.bundle.untrusted import is_folder, parse_json, read_bounded, shown
from valle2.export.checkpoint import check_backed, put
from valle2.export.codecs.encodec import (
    LSTM_LAYERS,
    Conv,
    EncodecConfig,
    EncodecDecoder,
    EncodecEncoder,
    Recurrent,
    Upsample,
)
from valle2.export.errors import CheckpointError
from valle2.export.models.config import CODEBOOK_SIZE, CODEBOOKS
from valle2.export.weights.state_dict import read_tensors
from valle2.export.weights.tensors import Claims


@dataclass(frozen=True, slots=True)
class Form:
    """How a code base names things. layers: of a side; conv, up: below it."""

    layers: str
    conv: str
    up: str
    table: str


FORMS = (
    Form("model", "conv.conv", "convtr.convtr", "quantizer.vq.layers.{}._codebook.embed"),
    Form("layers", "conv", "conv", "quantizer.layers.{}.codebook.embed"),
)
OLD_PAIR = ("weight_g", "weight_v")
NEW_PAIR = ("parametrizations.weight.original0", "parametrizations.weight.original1")
"""Length and direction of a weight, as old and new torch name them."""
TOKENIZER_RATE = 16000
MAX_CONFIG = 1 << 20
"""Bytes of a configuration."""
TOKENIZER_FILES = ("SpeechTokenizer.pt", "config.json")
BUILT = {
    "activation": "ELU",
    "bidirectional": True,
    "n_residual_layers": 1,
    "residual_kernel_size": 3,
    "lstm_layers": LSTM_LAYERS,
}
"""What SpeechTokenizer's configuration must say, where it says anything."""
TEACHER = ("transform.weight", "transform.bias")
"""SpeechTokenizer's projection onto its semantic teacher, which is not for coding."""
TRAINING = tuple(f"._codebook.{part}" for part in ("inited", "cluster_size", "embed_avg", "embed"))
"""What training left in the codebooks; `embed` alone is used, of the first eight."""


def read_encodec(path: Path) -> tuple[EncodecEncoder, EncodecDecoder, EncodecConfig]:
    """Load EnCodec's 24 kHz model, or SpeechTokenizer, whose encoder's LSTM also runs backwards.

    Args:
        path: `model.safetensors` of transformers' form, encodec's own `.th` file, or `SpeechTokenizer.pt`;
            of this one, also its folder. A `config.json` beside it is heeded.

    Raises:
        CheckpointError: another file, the 48 kHz model, or weights missing or misshapen.
    """
    path = codec_file(path)
    claims = Claims(path, read_tensors(path, lambda names: form_of(names) is not None))
    form = form_of(claims.tensors)
    if form is None:
        raise CheckpointError(
            f"{path} is no EnCodec checkpoint (it has {shown(min(claims.tensors))}); expected encodec_24khz, "
            "as model.safetensors of transformers or as encodec's .th file, or SpeechTokenizer.pt"
        )
    config = sizes(claims, form)
    with torch.device("meta"):  # they take no memory until the file's weights are in them
        encoder, decoder = EncodecEncoder(config).eval(), EncodecDecoder(config).eval()
    decoder.tables = encoder.tables
    check_backed(path, encoder, decoder)
    tables = [claims.take(form.table.format(k), CODEBOOK_SIZE, config.dimension) for k in range(CODEBOOKS)]
    put(encoder, {"tables": torch.stack(tables)})
    decoder.tables = encoder.tables
    for side, module in (("encoder", encoder), ("decoder", decoder)):
        for name, place in places(side, len(config.ratios)):
            load(module.get_submodule(name), claims, form, f"{side}.{place}")
    if config.both_ways:
        claims.finish(*TEACHER, *TRAINING)
    return encoder, decoder, config


def form_of(names: Container[str]) -> Form | None:
    """The code base whose names these are."""
    return next((form for form in FORMS if form.table.format(0) in names), None)


def codec_file(path: Path) -> Path:
    """The weights' file of a folder of SpeechTokenizer, or the file itself."""
    return path / TOKENIZER_FILES[0] if is_folder(path) else path


def tokenizer_rate(claims: Claims, config: EncodecConfig) -> int:
    """Samples a second: of `config.json` where there is one, whose other values must be ours."""
    file = claims.path.with_name(TOKENIZER_FILES[1])
    if not file.is_file():
        return TOKENIZER_RATE
    try:
        said = parse_json(read_bounded(file, MAX_CONFIG))
        rate = said.get("sample_rate", TOKENIZER_RATE)
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{file} is not a readable JSON object: {error}") from None
    wanted = BUILT | {"strides": list(config.ratios[::-1])}
    for name, value in wanted.items():
        if said.get(name, value) != value:
            raise CheckpointError(f"{file}: {name} is {shown(said[name])}; expected {value!r}")
    if type(rate) is not int or rate <= 0:
        raise CheckpointError(f"{file}: sample_rate is {shown(rate)}; expected a positive integer")
    return rate


def sizes(claims: Claims, form: Form) -> EncodecConfig:
    """What the shapes say; refuses the stereo model, fewer codebooks than are used, sizes out of range."""
    try:
        return said_sizes(claims, form)
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"{claims.path}: {error}") from None


def said_sizes(claims: Claims, form: Form) -> EncodecConfig:
    """What the shapes say.

    Raises:
        ValueError: a size is out of range.
    """
    first = Layer(claims, form, "encoder.0", form.conv)
    filters, channels, _ = first.shape()
    if channels != 1:
        raise CheckpointError(
            f"{claims.path} is an EnCodec model of {channels} channels; expected the 24 kHz mono model"
        )
    found = claims.count(form.table)
    if found < CODEBOOKS:
        raise CheckpointError(f"{claims.path} has {found} codebooks; expected at least {CODEBOOKS} (6 kbps)")
    ratios, index = [], 3  # the last found is the convolution after the LSTM
    while (layer := Layer(claims, form, f"encoder.{index}", form.conv)).there():
        ratios.append(layer.shape()[2] // 2)
        index += 3
    found_sizes = EncodecConfig(filters, claims.shape(form.table.format(0), 2)[1], tuple(ratios[:-1]))
    recurrent = f"encoder.{form.layers}.{3 * len(found_sizes.ratios) + 1}.lstm.weight_ih_l0_reverse"
    if recurrent not in claims and TEACHER[0] not in claims:
        return found_sizes
    rate = tokenizer_rate(claims, found_sizes)
    return replace(found_sizes, sample_rate=rate, causal=False, both_ways=True)


def places(side: str, levels: int) -> list[tuple[str, str]]:
    """(our module, index in the published sequence), activations counted there."""
    if side == "encoder":
        rows = [("first", "0"), ("recurrent", str(3 * levels + 1)), ("last", str(3 * levels + 3))]
        change, start = "downs", 1
    else:
        rows = [("first", "0"), ("recurrent", "1"), ("last", str(3 * levels + 3))]
        change, start = "ups", 4
    for level in range(levels):
        at = start + 3 * level
        rows.append((f"{change}.{level}", str(at + 2 if side == "encoder" else at - 1)))
        parts = {"narrow": "block.1", "widen": "block.3", "shortcut": "shortcut"}
        rows += [(f"blocks.{level}.{ours}", f"{at}.{theirs}") for ours, theirs in parts.items()]
    return rows


@dataclass(frozen=True, slots=True)
class Layer:
    """A convolution in a file, its weight stored as length times direction."""

    claims: Claims
    form: Form
    place: str
    kind: str

    def name(self, part: str) -> str:
        side, rest = self.place.split(".", 1)
        return f"{side}.{self.form.layers}.{rest}.{self.kind}.{part}"

    def pair(self) -> tuple[str, str]:
        """Names of length and direction, as old or new torch writes them."""
        new = self.name(NEW_PAIR[1]) in self.claims
        length, direction = NEW_PAIR if new else OLD_PAIR
        return self.name(length), self.name(direction)

    def there(self) -> bool:
        return self.pair()[1] in self.claims

    def shape(self) -> tuple[int, ...]:
        return self.claims.shape(self.pair()[1], 3)

    def weight(self, *shape: int) -> Tensor:
        """length * direction / |direction|, a length for each first index."""
        length, direction = self.pair()
        towards = self.claims.take(direction, *shape)
        size: Tensor = torch.linalg.vector_norm(towards, dim=(1, 2), keepdim=True)
        return (self.claims.take(length, shape[0], 1, 1) * towards).div_(size)


def load(module: nn.Module, claims: Claims, form: Form, place: str) -> None:
    """Fill one of our layers from the file."""
    if isinstance(module, Recurrent):
        side, rest = place.split(".", 1)
        place = f"{side}.{form.layers}.{rest}.lstm"
        shapes = {name: value.shape for name, value in module.lstm.named_parameters()}
        put(module.lstm, {name: claims.take(f"{place}.{name}", *shape) for name, shape in shapes.items()})
        return
    assert isinstance(module, Conv | Upsample)
    conv = module.conv
    if isinstance(module, Upsample):
        layer = Layer(claims, form, place, form.up)
        weight = layer.weight(conv.in_channels, module.outputs, 2 * module.ratio)
        weight = Upsample.rearranged(weight)
        bias = claims.take(layer.name("bias"), module.outputs).repeat_interleave(module.ratio)
    else:
        layer = Layer(claims, form, place, form.conv)
        weight = layer.weight(*conv.weight.shape)
        bias = claims.take(layer.name("bias"), conv.out_channels)
    put(conv, {"weight": weight, "bias": bias})
