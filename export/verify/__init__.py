"""Compares exported graphs with their PyTorch modules. Knows nothing of checkpoints and bundles."""

from valle2.export.verify.judge import Judge, ParityError
from valle2.export.verify.parity import verify_ar, verify_codec, verify_nar, verify_stream

__all__ = ["Judge", "ParityError", "verify_ar", "verify_codec", "verify_nar", "verify_stream"]
