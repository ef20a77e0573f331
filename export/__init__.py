"""PyTorch checkpoint to bundle. Needs the extra `export` (torch); the runtime never imports it.

The names are loaded on first use, so that the command line can describe `export` without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from valle2.export.bundle import export_checkpoint
    from valle2.export.checkpoint import Checkpoint, read_checkpoint, save_checkpoint
    from valle2.export.errors import CheckpointError
    from valle2.export.models.ar import ARModel
    from valle2.export.models.config import ModelConfig
    from valle2.export.models.nar import NARModel
    from valle2.export.verify.parity import ParityError

__all__ = [
    "ARModel",
    "Checkpoint",
    "CheckpointError",
    "ModelConfig",
    "NARModel",
    "ParityError",
    "export_checkpoint",
    "read_checkpoint",
    "save_checkpoint",
]

_HOMES = {
    "ARModel": "models.ar",
    "Checkpoint": "checkpoint",
    "CheckpointError": "errors",
    "ModelConfig": "models.config",
    "NARModel": "models.nar",
    "ParityError": "verify.judge",
    "export_checkpoint": "bundle",
    "read_checkpoint": "checkpoint",
    "save_checkpoint": "checkpoint",
}


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
