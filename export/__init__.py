"""PyTorch checkpoint to bundle. Needs the extra `export` (torch); the runtime never imports it."""

from valle2.export.bundle import export_checkpoint
from valle2.export.checkpoint import Checkpoint, CheckpointError, read_checkpoint, save_checkpoint
from valle2.export.config import ModelConfig
from valle2.export.model import ARModel, NARModel
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
