"""Turns a PyTorch checkpoint into a bundle of ONNX graphs. Knows nothing of text, audio files or serving.

It needs the extra `export`, and the runtime never imports it. Names are loaded on first use, so that the
command line can describe `export` without PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from valle2.export.bundle import export_checkpoint
    from valle2.export.checkpoint import Checkpoint, read_checkpoint, save_checkpoint
    from valle2.export.errors import CheckpointError
    from valle2.export.models import ARModel, ModelConfig, NARModel
    from valle2.export.verify import ParityError

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

_MODULES = {
    "ARModel": "models",
    "Checkpoint": "checkpoint",
    "CheckpointError": "errors",
    "ModelConfig": "models",
    "NARModel": "models",
    "ParityError": "verify",
    "export_checkpoint": "bundle",
    "read_checkpoint": "checkpoint",
    "save_checkpoint": "checkpoint",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
