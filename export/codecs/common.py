"""Shared by the codecs: limits of their sizes, and residual vector quantisation. Axes: B batch, T frames."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.nn import functional

from valle2.engine.bundle.schema import CODEC
from valle2.engine.bundle.untrusted import shown
from valle2.export.models.layers import nearest

MAX_WIDTH = 4096
MAX_HOP = 640
"""Of a codec with Fourier bases, whose memory grows with the square of the hop. Published codecs have 320."""
SAMPLE_RATES = CODEC["sample_rate"]
"""As in a bundle's manifest."""
Limits = Mapping[str, tuple[int, int]]
"""Smallest and greatest values by the name of a size."""


def check_sizes(kind: str, sizes: Mapping[str, object], limits: Limits) -> None:
    """Check that each size is a whole number within its limits, by default 1 to `MAX_WIDTH`.

    Raises:
        ValueError: a size is not. The message names the codec, the size and its limits.
    """
    for name, value in sizes.items():
        least, most = limits.get(name, (1, MAX_WIDTH))
        if type(value) is not int or not least <= value <= most:
            raise ValueError(f"{kind}: {name} is {shown(value)}; expected {least} to {most}")


def residual_codes(left: Tensor, tables: Tensor) -> list[Tensor]:
    """Quantise a vector; each codebook quantises the residual of the ones before.

    Args:
        left: (B, T, D). tables: (K, 1024, D).

    Returns:
        K tensors (B, T) int64.
    """
    codes = []
    for table in tables.unbind(0):
        codes.append(nearest(left, table))
        left = left - functional.embedding(codes[-1], table)
    return codes


def neutral_codes(tables: Tensor) -> list[int]:
    """The code of each codebook whose vector is nearest to zero. tables: (K, 1024, D).

    It stands for a code that the NAR has not computed: the sum of the vectors stays nearly the same.
    """
    return [int(table.float().norm(dim=1).argmin()) for table in tables.detach()]


def embedded(codes: Tensor, tables: Tensor) -> Tensor:
    """codes (B, T, K) int64, tables (K, 1024, D) -> the sum of the codes' vectors (B, T, D)."""
    total = functional.embedding(codes[:, :, 0], tables[0])
    for book in range(1, codes.shape[2]):
        total = total + functional.embedding(codes[:, :, book], tables[book])
    return total
