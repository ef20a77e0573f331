"""What the importers of other code bases share: options, limits, and the checkpoint that comes of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from valle2.engine.bundle.untrusted import shown
from valle2.export.checkpoint import Checkpoint
from valle2.export.errors import CheckpointError
from valle2.export.models.ar import ARModel
from valle2.export.models.config import ModelConfig
from valle2.export.models.nar import NARModel

MAX_TEXT = 1024
MAX_FRAMES = 3000
SAMPLING = {"top_p": 1.0, "threshold": 1.0}


@dataclass(frozen=True, slots=True)
class Options:
    """What a file may not say. heads: 0 where not given. prefix_mode: None where not given."""

    heads: int = 0
    prefix_mode: int | None = None


def heads_of(path: Path, said: object, options: Options, width: int) -> int:
    """Attention heads: what the file says, else what was given; they must divide the width.

    Raises:
        CheckpointError: neither says it, both say different numbers, or the width is no multiple.
    """
    if said is not None and options.heads and options.heads != said:
        raise CheckpointError(f"--heads is {options.heads}, but {path} has {shown(said)}: leave --heads out")
    heads = said or options.heads
    if not heads:
        raise CheckpointError(
            f"{path} does not say how many attention heads it has; pass --heads (often {max(1, width // 64)})"
        )
    if type(heads) is not int or heads < 1 or width % heads:
        raise CheckpointError(
            f"{path}: {shown(heads)} heads do not divide the width {width}; pass other --heads"
        )
    return heads


def assemble(
    config: ModelConfig,
    ar: Mapping[str, Tensor],
    nar: Mapping[str, Tensor],
    family: str,
    rules: Mapping[str, Any],
    sources: Sequence[Path],
) -> Checkpoint:
    """Modules around the mapped tensors, which are not copied."""
    with torch.device("meta"):
        modules = ARModel(config), NARModel(config)
    for module, weights in zip(modules, (ar, nar), strict=True):
        module.load_state_dict(dict(weights), strict=True, assign=True)
        module.eval().requires_grad_(False)
    return Checkpoint(
        config,
        *modules,
        name=family,
        text={"kind": family},
        sampling=dict(SAMPLING),
        provenance={"family": family, "source": ", ".join(path.name for path in sources)},
        rules={"family": family, **rules},
    )
