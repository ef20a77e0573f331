"""Reads published weights of EnCodec (`transformers` or `encodec` format) and of SpeechTokenizer."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from valle2.engine.bundle.contract import CODEBOOK_SIZE, CODEBOOKS
from valle2.engine.bundle.untrusted import is_folder, parse_json, read_bounded, shown
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
from valle2.export.weights import TensorReader, check_file_size, read_tensors, set_parameters


@dataclass(frozen=True, slots=True)
class Form:
    """Names in a code base. layers: the list of a side's layers; conv, up: the convolution in a layer."""

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
"""Norm and direction of a weight-normalised weight, as old and new PyTorch name them."""
TOKENIZER_RATE = 16000
MAX_CONFIG = 1 << 20
"""Most bytes of a configuration file."""
TOKENIZER_FILES = ("SpeechTokenizer.pt", "config.json")
BUILT = {
    "activation": "ELU",
    "bidirectional": True,
    "n_residual_layers": 1,
    "residual_kernel_size": 3,
    "lstm_layers": LSTM_LAYERS,
}
"""Values that SpeechTokenizer's configuration must have, where it has these keys."""
TEACHER = ("transform.weight", "transform.bias")
"""SpeechTokenizer's projection to its semantic teacher. Coding does not use it."""
TRAINING = tuple(f"._codebook.{part}" for part in ("inited", "cluster_size", "embed_avg", "embed"))
"""Training state of the codebooks, and `embed` of codebooks after the eighth. Neither is read."""


def read_encodec(path: Path) -> tuple[EncodecEncoder, EncodecDecoder, EncodecConfig]:
    """Load EnCodec's 24 kHz model, or SpeechTokenizer, whose encoder's LSTM also runs backwards.

    Args:
        path: `model.safetensors` of transformers, a `.th` file of encodec, or `SpeechTokenizer.pt` or its
            folder. A `config.json` beside `SpeechTokenizer.pt` is read too.

    Returns:
        Encoder and decoder in evaluation mode, and their sizes.

    Raises:
        CheckpointError: another file, the 48 kHz model, or weights missing or of another shape.
    """
    path = codec_file(path)
    reader = TensorReader(path, read_tensors(path, lambda names: form_of(names) is not None))
    form = form_of(reader.tensors)
    if form is None:
        raise CheckpointError(
            f"{path} is no EnCodec checkpoint (it has {shown(min(reader.tensors))}); expected encodec_24khz, "
            "as model.safetensors of transformers or as encodec's .th file, or SpeechTokenizer.pt"
        )
    config = sizes(reader, form)
    with torch.device("meta"):  # no memory until the file's weights are set
        encoder, decoder = EncodecEncoder(config).eval(), EncodecDecoder(config).eval()
    decoder.tables = encoder.tables
    check_file_size(path, encoder, decoder)
    tables = [reader.take(form.table.format(k), CODEBOOK_SIZE, config.dimension) for k in range(CODEBOOKS)]
    set_parameters(encoder, {"tables": torch.stack(tables)})
    decoder.tables = encoder.tables
    for side, module in (("encoder", encoder), ("decoder", decoder)):
        for name, place in places(side, len(config.ratios)):
            load(module.get_submodule(name), reader, form, f"{side}.{place}")
    if config.both_ways:
        reader.finish(*TEACHER, *TRAINING)
    return encoder, decoder, config


def form_of(names: Container[str]) -> Form | None:
    """The code base with these names."""
    return next((form for form in FORMS if form.table.format(0) in names), None)


def codec_file(path: Path) -> Path:
    """The weights file of a SpeechTokenizer folder, or the file itself."""
    return path / TOKENIZER_FILES[0] if is_folder(path) else path


def tokenizer_rate(reader: TensorReader, config: EncodecConfig) -> int:
    """Samples per second from `config.json`, if there is one. Its other values must be as expected."""
    file = reader.path.with_name(TOKENIZER_FILES[1])
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


def sizes(reader: TensorReader, form: Form) -> EncodecConfig:
    """Derive the sizes from the shapes.

    Raises:
        CheckpointError: the stereo model, too few codebooks, or a size out of range.
    """
    try:
        return derived_sizes(reader, form)
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"{reader.path}: {error}") from None


def derived_sizes(reader: TensorReader, form: Form) -> EncodecConfig:
    """Derive the sizes from the shapes. Raises ValueError for a size out of range."""
    first = Layer(reader, form, "encoder.0", form.conv)
    filters, channels, _ = first.shape()
    if channels != 1:
        raise CheckpointError(
            f"{reader.path} is an EnCodec model of {channels} channels; expected the 24 kHz mono model"
        )
    found = reader.count(form.table)
    if found < CODEBOOKS:
        raise CheckpointError(f"{reader.path} has {found} codebooks; expected at least {CODEBOOKS} (6 kbps)")
    ratios, index = [], 3  # the last one found is the convolution after the LSTM
    while (layer := Layer(reader, form, f"encoder.{index}", form.conv)).there():
        ratios.append(layer.shape()[2] // 2)
        index += 3
    found_sizes = EncodecConfig(filters, reader.shape(form.table.format(0), 2)[1], tuple(ratios[:-1]))
    recurrent = f"encoder.{form.layers}.{3 * len(found_sizes.ratios) + 1}.lstm.weight_ih_l0_reverse"
    if recurrent not in reader and TEACHER[0] not in reader:
        return found_sizes
    rate = tokenizer_rate(reader, found_sizes)
    return replace(found_sizes, sample_rate=rate, causal=False, both_ways=True)


def places(side: str, levels: int) -> list[tuple[str, str]]:
    """(our module, its index in the published sequence). The sequence counts activations too."""
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
    """A convolution of the file. Its weight is stored as norm and direction (weight normalisation)."""

    reader: TensorReader
    form: Form
    place: str
    kind: str

    def name(self, part: str) -> str:
        side, rest = self.place.split(".", 1)
        return f"{side}.{self.form.layers}.{rest}.{self.kind}.{part}"

    def pair(self) -> tuple[str, str]:
        """Names of norm and direction, as this file writes them."""
        new = self.name(NEW_PAIR[1]) in self.reader
        length, direction = NEW_PAIR if new else OLD_PAIR
        return self.name(length), self.name(direction)

    def there(self) -> bool:
        return self.pair()[1] in self.reader

    def shape(self) -> tuple[int, ...]:
        return self.reader.shape(self.pair()[1], 3)

    def weight(self, *shape: int) -> Tensor:
        """norm * direction / |direction|, with one norm per first index."""
        length, direction = self.pair()
        towards = self.reader.take(direction, *shape)
        size: Tensor = torch.linalg.vector_norm(towards, dim=(1, 2), keepdim=True)
        return (self.reader.take(length, shape[0], 1, 1) * towards).div_(size)


def load(module: nn.Module, reader: TensorReader, form: Form, place: str) -> None:
    """Fill one layer from the file."""
    if isinstance(module, Recurrent):
        side, rest = place.split(".", 1)
        place = f"{side}.{form.layers}.{rest}.lstm"
        shapes = {name: value.shape for name, value in module.lstm.named_parameters()}
        set_parameters(
            module.lstm, {name: reader.take(f"{place}.{name}", *shape) for name, shape in shapes.items()}
        )
        return
    assert isinstance(module, Conv | Upsample)
    conv = module.conv
    if isinstance(module, Upsample):
        layer = Layer(reader, form, place, form.up)
        weight = layer.weight(conv.in_channels, module.outputs, 2 * module.ratio)
        weight = Upsample.rearranged(weight)
        bias = reader.take(layer.name("bias"), module.outputs).repeat_interleave(module.ratio)
    else:
        layer = Layer(reader, form, place, form.conv)
        weight = layer.weight(*conv.weight.shape)
        bias = reader.take(layer.name("bias"), conv.out_channels)
    set_parameters(conv, {"weight": weight, "bias": bias})
