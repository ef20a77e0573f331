"""A training checkpoint in valle2's own format: a folder with one safetensors file, never a pickle.

model.safetensors holds `ar.*`, `nar.*` and, with a codec, `codec_encoder.*` and `codec_decoder.*`. Its
metadata entry `valle2` is JSON with `model`, `codec`, `name`, `text`, `sampling`, `rules` and `provenance`.
Files of the text front end lie in `text/`, voices in `voices/`.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from valle2.engine.bundle.schema import (
    MAX_NAME,
    check_provenance,
    check_rules,
    check_sampling,
    check_text,
    words,
)
from valle2.engine.bundle.untrusted import is_file, is_folder, parse_json
from valle2.export.codecs import CodecConfig, CodecDecoder, CodecEncoder, EncodecConfig
from valle2.export.errors import CheckpointError
from valle2.export.models import ARModel, ModelConfig, NARModel
from valle2.export.weights.safetensors_file import read_safetensors
from valle2.export.weights.tensors import check_shape, checked_weight, list_names

WEIGHTS = "model.safetensors"
METADATA = "valle2"
CARRIED: dict[str, Callable[[object], Any]] = {
    "name": lambda value: words("name", value, MAX_NAME),
    "text": check_text,
    "sampling": check_sampling,
    "provenance": check_provenance,
    "rules": check_rules,
}
"""Metadata that a bundle's manifest takes over, and the checks of both."""

Codec = tuple[nn.Module, nn.Module, CodecConfig | EncodecConfig]
"""Encoder, decoder and their sizes: this project's codec, EnCodec or SpeechTokenizer, perhaps with Vocos."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Loaded modules in evaluation mode, and the metadata of their file.

    Args:
        codec: None without one. rules: what a related network needs around its tokens, as in a bundle's
            manifest; empty for VALL-E 2.
    """

    config: ModelConfig
    ar: ARModel
    nar: NARModel
    codec: Codec | None = None
    name: str = "model"
    text: dict[str, Any] = field(default_factory=lambda: {"kind": "bpe"})
    sampling: dict[str, float] = field(default_factory=dict)
    provenance: dict[str, str] = field(default_factory=dict)
    rules: dict[str, Any] = field(default_factory=dict)

    def modules(self) -> dict[str, nn.Module]:
        """The modules, by the prefix of their weights."""
        codec = self.codec[:2] if self.codec else ()
        named = zip(("codec_encoder", "codec_decoder"), codec, strict=False)
        return {"ar": self.ar, "nar": self.nar, **dict(named)}


def weights_file(path: Path) -> Path:
    """The safetensors file of a checkpoint: the path itself, or the file in the folder."""
    file = path / WEIGHTS if is_folder(path) else path
    if not is_file(file):
        raise CheckpointError(f"{path}: no checkpoint there; expected a folder with {WEIGHTS}")
    if file.suffix != ".safetensors":
        raise CheckpointError(
            f"{file}: expected a .safetensors file; valle2's own format is never a pickle, which can hold "
            "code: save the state dict with safetensors"
        )
    return file


def read_checkpoint(path: Path) -> Checkpoint:
    """Load a checkpoint in valle2's own format.

    Args:
        path: the folder, or its safetensors file.

    Raises:
        CheckpointError: another file, or weights that are missing, extra, of another shape or not finite.
    """
    file = weights_file(path)
    weights, metadata = read_safetensors(file)
    if METADATA not in metadata:
        raise CheckpointError(
            f"{file} has no {METADATA!r} metadata; write it with valle2.export.save_checkpoint"
        )
    try:
        checkpoint = empty_checkpoint(parse_json(metadata[METADATA].encode()))
    except ValueError as error:
        raise CheckpointError(f"{file}: bad {METADATA!r} metadata: {error}") from None
    fill(checkpoint, weights, file)
    return checkpoint


def empty_checkpoint(values: Any) -> Checkpoint:
    """Build the modules that the metadata describes, on the `meta` device: they take no memory yet.

    Raises:
        ValueError: an entry is missing, of another type, or out of range.
    """
    if not isinstance(values, dict) or not isinstance(values.get("model"), dict):
        raise ValueError("expected an object with the entry 'model'")
    config = ModelConfig.from_dict(values["model"])
    codec: Codec | None = None
    if values.get("codec"):
        sizes = CodecConfig.from_dict(values["codec"])
        with torch.device("meta"):
            codec = (CodecEncoder(sizes).eval(), CodecDecoder(sizes).eval(), sizes)
    rest = {name: check(values[name]) for name, check in CARRIED.items() if name in values}
    with torch.device("meta"):
        ar, nar = ARModel(config).eval(), NARModel(config).eval()
    return Checkpoint(config, ar, nar, codec, **rest)


def fill(checkpoint: Checkpoint, weights: dict[str, Tensor], file: Path) -> None:
    """Put the weights into the modules. float32 weights are not copied.

    All names and shapes are compared before any number is read.

    Raises:
        CheckpointError: weights are missing, extra, of another shape or not finite.
    """
    states = {prefix: module.state_dict() for prefix, module in checkpoint.modules().items()}
    expected = {f"{prefix}.{name}" for prefix, state in states.items() for name in state}
    missing, extra = sorted(expected - set(weights)), sorted(set(weights) - expected)
    if missing or extra:
        raise CheckpointError(
            f"{file}: missing weights {list_names(missing)}, unknown weights {list_names(extra)}"
        )
    shapes = {
        f"{prefix}.{name}": tuple(target.shape)
        for prefix, state in states.items()
        for name, target in state.items()
    }
    for name, shape in shapes.items():
        check_shape(file, name, weights[name], shape)
    for prefix, module in checkpoint.modules().items():
        found = {
            name: checked_weight(file, full := f"{prefix}.{name}", weights[full], shapes[full])
            for name in states[prefix]
        }
        module.load_state_dict(found, strict=True, assign=True)


def save_checkpoint(checkpoint: Checkpoint, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Write `model.safetensors` in the given precision, first to a hidden file; returns its path.

    Raises:
        CheckpointError: its codec is EnCodec, which stays in its own file.
    """
    if checkpoint.codec and not isinstance(checkpoint.codec[2], CodecConfig):
        raise CheckpointError("EnCodec stays in its own file; save the checkpoint with codec=None")
    weights = {
        f"{prefix}.{name}": value.to(dtype).contiguous()
        for prefix, module in checkpoint.modules().items()
        for name, value in module.state_dict().items()
    }
    values = {
        "model": checkpoint.config.to_dict(),
        "codec": asdict(checkpoint.codec[2]) if checkpoint.codec else {},
    } | {name: getattr(checkpoint, name) for name in CARRIED}
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f".{WEIGHTS}"
    save_file(weights, str(aside), metadata={METADATA: json.dumps(values)})
    return aside.replace(folder / WEIGHTS)
