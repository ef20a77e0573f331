"""The AR and NAR models as PyTorch modules: the reference for every exported graph.

They know token ids and codes, never text, audio or ONNX.
"""

from valle2.export.models.ar import ARModel
from valle2.export.models.config import ModelConfig, Style
from valle2.export.models.nar import NARModel

__all__ = ["ARModel", "ModelConfig", "NARModel", "Style"]
