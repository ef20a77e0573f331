"""A training checkpoint in valle2's own format: a folder, read strictly, never a pickle.

model.safetensors holds `ar.*`, `nar.*` and, where there is a codec, `codec_encoder.*` and `codec_decoder.*`;
its metadata entry `valle2` is JSON with `model`, `codec`, `name`, `text`, `sampling` and `provenance`.
Text files lie in `text/`, ready voices in `voices/`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from valle2.engine.errors import Valle2Error
from valle2.export.codec import CodecConfig, CodecDecoder, CodecEncoder
from valle2.export.config import ModelConfig
from valle2.export.encodec import EncodecConfig
from valle2.export.model import ARModel
from valle2.export.nar import NARModel

WEIGHTS = "model.safetensors"
METADATA = "valle2"
LISTED = 6
CARRIED = ("name", "text", "sampling", "provenance", "rules")


class CheckpointError(Valle2Error):
    """A checkpoint is missing, of another format, or does not fit its own sizes."""


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
    file = path / WEIGHTS if path.is_dir() else path
    if not file.is_file():
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
    try:
        with safe_open(str(file), framework="pt") as opened:
            metadata = opened.metadata() or {}
            weights = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is not a readable safetensors file: {error}") from None
    try:
        values = json.loads(metadata[METADATA])
        checkpoint = empty_checkpoint(values)
    except KeyError:
        raise CheckpointError(
            f"{file} has no {METADATA!r} metadata; write it with valle2.export.save_checkpoint"
        ) from None
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file}: bad {METADATA!r} metadata: {error}") from None
    fill(checkpoint, weights, file)
    return checkpoint


def empty_checkpoint(values: Mapping[str, Any]) -> Checkpoint:
    """Build the modules that the metadata describes."""
    config = ModelConfig.from_dict(values["model"])
    codec: Codec | None = None
    if values.get("codec"):
        known = {entry.name for entry in fields(CodecConfig)}
        if set(values["codec"]) - known:
            raise ValueError(f"codec: unknown keys {sorted(set(values['codec']) - known)}")
        sizes = CodecConfig(**values["codec"])
        codec = (CodecEncoder(sizes).eval(), CodecDecoder(sizes).eval(), sizes)
    rest = {name: values[name] for name in CARRIED if name in values}
    return Checkpoint(config, ARModel(config).eval(), NARModel(config).eval(), codec, **rest)


def fill(checkpoint: Checkpoint, weights: dict[str, Tensor], file: Path) -> None:
    """Copy the weights into the modules; every difference is an error that lists the keys."""
    expected = {
        f"{prefix}.{name}": value
        for prefix, module in checkpoint.modules().items()
        for name, value in module.state_dict().items()
    }
    missing, extra = sorted(set(expected) - set(weights)), sorted(set(weights) - set(expected))
    if missing or extra:
        raise CheckpointError(f"{file}: missing weights {short(missing)}, unknown weights {short(extra)}")
    for name, target in expected.items():
        found = weights[name]
        if found.shape != target.shape:
            raise CheckpointError(f"{file}: {name} is {tuple(found.shape)}; expected {tuple(target.shape)}")
        if not bool(torch.isfinite(found).all()):
            raise CheckpointError(f"{file}: {name} holds NaN or infinity; train or save it again")
        target.copy_(found)


def short(names: list[str]) -> str:
    """The first few names and how many more there are."""
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return f"{names[:LISTED]}{more}"


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
