"""A training checkpoint in valle2's own format: a folder, read strictly, never a pickle.

model.safetensors holds `ar.*`, `nar.*` and, where there is a codec, `codec_encoder.*` and `codec_decoder.*`;
its metadata entry `valle2` is JSON with `model`, `codec`, `name`, `text`, `sampling` and `provenance`.
Text files lie in `text/`, ready voices in `voices/`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
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
from valle2.engine.bundle.untrusted import is_file, is_folder, parse_json, shown
from valle2.export.codecs.demo import CodecConfig, CodecDecoder, CodecEncoder
from valle2.export.codecs.encodec import EncodecConfig
from valle2.export.errors import CheckpointError
from valle2.export.models.ar import ARModel
from valle2.export.models.config import ModelConfig
from valle2.export.models.nar import NARModel
from valle2.export.weights.safetensors_file import read_safetensors

WEIGHTS = "model.safetensors"
METADATA = "valle2"
LISTED = 6
HALF = 2
"""Bytes of the smallest number that a published codec is stored in."""
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
"""What weights may be stored in."""
CARRIED: dict[str, Callable[[object], Any]] = {
    "name": lambda value: words("name", value, MAX_NAME),
    "text": check_text,
    "sampling": check_sampling,
    "provenance": check_provenance,
    "rules": check_rules,
}
"""Metadata that a bundle's manifest takes over, and what checks it there too."""


Codec = tuple[nn.Module, nn.Module, CodecConfig | EncodecConfig]
"""Encoder, decoder and their sizes: a codec of this project, or EnCodec with its own decoder or Vocos."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Loaded modules in evaluation mode and what the file says of itself. codec: None without one.

    rules: what a relative of VALL-E 2 wants around its tokens, as in a bundle's manifest; empty for VALL-E 2.
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
        """The modules by the prefix of their weights."""
        codec = self.codec[:2] if self.codec else ()
        named = zip(("codec_encoder", "codec_decoder"), codec, strict=False)
        return {"ar": self.ar, "nar": self.nar, **dict(named)}


def weights_file(path: Path) -> Path:
    """The safetensors file of a checkpoint given as a folder or as the file itself."""
    file = path / WEIGHTS if is_folder(path) else path
    if not is_file(file):
        raise CheckpointError(f"{path}: no checkpoint there; expected a folder with {WEIGHTS}")
    if file.suffix != ".safetensors":
        raise CheckpointError(
            f"{file}: expected a .safetensors file; valle2 does not read pickles (they can hold code): "
            "save the state dict with safetensors"
        )
    return file


def read_checkpoint(path: Path) -> Checkpoint:
    """Load a checkpoint.

    Args:
        path: the folder, or its safetensors file.

    Raises:
        CheckpointError: not a checkpoint, or weights missing, extra, misshapen or not finite.
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
    """Build the modules that the metadata describes. They take no memory until they are filled.

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
    """Put the weights into the modules, uncopied where they are float32; list the keys that differ.

    All names and shapes are compared before the first number is read.
    """
    states = {prefix: module.state_dict() for prefix, module in checkpoint.modules().items()}
    expected = {f"{prefix}.{name}" for prefix, state in states.items() for name in state}
    missing, extra = sorted(expected - set(weights)), sorted(set(weights) - expected)
    if missing or extra:
        raise CheckpointError(f"{file}: missing weights {short(missing)}, unknown weights {short(extra)}")
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


def put(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Make tensors the module's own parameters of these names, uncopied where their numbers are in order."""
    for name, value in weights.items():
        setattr(module, name, nn.Parameter(value.contiguous()))


def check_backed(file: Path, *modules: nn.Module) -> None:
    """Refuse modules on `meta` with more weights than the file has room for: some of its tensors are one.

    Raises:
        CheckpointError: their weights in half precision are larger than the file.
    """
    weights = {id(weight): weight.numel() for module in modules for weight in module.parameters()}
    numbers, size = sum(weights.values()), file.stat().st_size
    if HALF * numbers > size:
        raise CheckpointError(
            f"{file} has {size} bytes, but its shapes say {numbers} weights; is the file complete?"
        )


def check_shape(file: Path, name: str, found: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(found.shape) != shape:
        raise CheckpointError(f"{file}: {name} is {tuple(found.shape)}; expected {shape}")


def checked_weight(file: Path, name: str, found: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A weight as float32, uncopied where it is that.

    Raises:
        CheckpointError: it has another shape, no floating-point numbers, or numbers beyond float32.
    """
    check_shape(file, name, found, shape)
    if found.dtype not in FLOATS:
        raise CheckpointError(f"{file}: {name} is no plain tensor of floating-point numbers")
    single = found.float()
    if not bool(torch.isfinite(single).all()):
        raise CheckpointError(f"{file}: {name} holds NaN or infinity; train or save it again")
    return single


def short(names: list[str]) -> str:
    """The first few names and how many more there are."""
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return f"[{', '.join(map(shown, names[:LISTED]))}]{more}"


def save_checkpoint(checkpoint: Checkpoint, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Write `model.safetensors` in the given precision, aside first; returns its path.

    Raises:
        CheckpointError: its codec is EnCodec, which is kept in a file of its own.
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
