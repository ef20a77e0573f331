"""Shared by the importers: limits, attention heads, and the checkpoint around the read weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from valle2.engine.bundle.untrusted import shown
from valle2.export.checkpoint import Checkpoint
from valle2.export.errors import CheckpointError
from valle2.export.models import ARModel, ModelConfig, NARModel
from valle2.export.options import ImportOptions

MAX_TEXT = 1024
MAX_FRAMES = 3000
SAMPLING = {"top_p": 1.0, "threshold": 1.0}
"""Plain sampling from the whole distribution, as these code bases do."""


def heads_of(path: Path, said: object, options: ImportOptions, width: int) -> int:
    """The number of attention heads, from the file or from the options. It must divide the width.

    Args:
        said: the number in the file, or None.

    Raises:
        CheckpointError: no number, two different numbers, or one that does not divide the width.
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
    """Build a checkpoint around the read tensors, without copying them."""
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


def staged(table: Tensor) -> Tensor:
    """Rows of stages 1, 2, ... with an unused row 0 before them."""
    return torch.cat([torch.zeros_like(table[:1]), table])
