"""Rounds a weight matrix to 8 or 4 bits. Every operation is exact or correctly rounded.

So all machines compute the same bytes, and what is made on one can be checked by a hash from another.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Weight = NDArray[np.float32]
LEAST_SCALE = 1e-12


def block_codes(weight: Weight, bits: int, block: int) -> tuple[NDArray[np.uint8], Weight]:
    """weight (K, N) -> codes (N, K / block, block * bits / 8) uint8, scales (N, K / block) float32.

    The entry of greatest size becomes code 0, because there is one more code below the middle than above.
    """
    inputs, outputs = weight.shape
    padded = np.zeros((outputs, -(-inputs // block) * block), np.float32)
    padded[:, :inputs] = weight.T
    blocks = padded.reshape(outputs, -1, block)
    middle = 2 ** (bits - 1)
    extreme = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=2)[..., None], axis=2)[..., 0]
    scales = -extreme / middle
    scales = np.where(np.abs(scales) < LEAST_SCALE, LEAST_SCALE, scales).astype(np.float32)
    codes = np.clip(np.rint(blocks / scales[..., None]) + middle, 0, 2 * middle - 1).astype(np.uint8)
    if bits == 4:
        codes = codes[..., ::2] | (codes[..., 1::2] << 4)
    return codes, scales


def dynamic_codes(weight: Weight) -> tuple[NDArray[np.int8], Weight]:
    """weight (K, N) -> codes (K, N) int8 with a scale per output, and the scales (N,) float32."""
    scales = unsaturated_scales(weight)
    return np.clip(np.rint(weight / scales), -127, 127).astype(np.int8), scales


def unsaturated_scales(weight: Weight) -> Weight:
    """weight (K, N) -> scales (N,) float32, such that no processor saturates.

    The codes of two adjacent inputs add up to at most 128. Processors without VNNI add the products of such a
    pair in 16 bits, which hold 255 * 128 but not 2 * 255 * 127. Larger codes would saturate there without
    notice and give other logits than on other processors.
    """
    pairs = np.pad(weight, ((0, len(weight) % 2), (0, 0))).reshape(-1, 2, weight.shape[1])
    greatest = np.maximum(np.abs(weight).max(axis=0), np.abs(pairs.sum(axis=1)).max(axis=0))
    scales: Weight = np.maximum(greatest / 127, LEAST_SCALE).astype(np.float32)
    return scales
