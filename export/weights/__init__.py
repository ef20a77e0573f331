"""Strict readers of weight files: safetensors and `torch.save`, without running code in them.

They know tensors, never models.
"""

from valle2.export.weights.mapped import unload
from valle2.export.weights.safetensors_file import read_metadata
from valle2.export.weights.state_dict import SUFFIX, find_state, read_tensors, read_values
from valle2.export.weights.tensors import TensorReader, check_file_size, set_parameters

__all__ = [
    "SUFFIX",
    "TensorReader",
    "check_file_size",
    "find_state",
    "read_metadata",
    "read_tensors",
    "read_values",
    "set_parameters",
    "unload",
]
