"""Eager PyTorch against an exported graph: the greatest difference of every output.

Run before a bundle is written, on shapes that were not traced: ragged batches, a prefill and then cached
steps whose inputs are the same for both sides.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from valle2.engine import Backend
from valle2.engine.errors import Valle2Error
from valle2.engine.stateful import Stateful
from valle2.export.codec import CodecConfig
from valle2.export.config import CODEBOOK_SIZE, CODEBOOKS
from valle2.export.encodec import EncodecConfig
from valle2.export.graphs import ar_inputs, cache_names
from valle2.export.model import ARModel
from valle2.export.nar import NARModel

LOGITS_TOLERANCE, LOGITS_RANGE = 1e-4, 32.0
"""Greatest difference of logits up to this range; it grows with logits beyond, as their rounding does."""
AUDIO_TOLERANCE = 1e-3
CODES_TOLERANCE = 0.01
"""Share of codes that may differ: of two that are as good the rounding decides."""
CHECK_STEPS = 8
Array = NDArray[Any]


class ParityError(Valle2Error):
    """An exported graph does not compute what the PyTorch module computes."""


def check(name: str, difference: float, bound: float) -> float:
    """Pass a difference on, or refuse it."""
    if not difference <= bound:
        raise ParityError(
            f"{name}: the graph differs from PyTorch by {difference:.2e}, more than {bound:.0e}; "
            "nothing was written. Please report the model's sizes and the versions of torch and onnxruntime"
        )
    return difference


def logits_bound(largest: float) -> float:
    """What logits may differ by, the largest of them being this: absolute, beyond the range relative."""
    return LOGITS_TOLERANCE * max(1.0, largest / LOGITS_RANGE)


def gap(found: Array, expected: Array) -> float:
    return float(np.abs(found - expected).max(initial=0.0))


@torch.no_grad()
def verify_ar(model: ARModel, backend: Backend, capacity: int, *, batch: int = 3) -> float:
    """Ragged prefill, then mixed cached calls. -> greatest difference of the logits."""
    generator = np.random.default_rng(0)
    config, names = model.config, cache_names(model.config.layers)
    batch = 1 if config.style.text_ahead else batch  # its rows are prefilled one by one
    lengths = generator.integers(1, min(24, config.max_text), batch)
    groups = generator.integers(0, min(12, config.max_groups - CHECK_STEPS), batch)
    new = lengths + config.style.code_bos + groups
    past = np.zeros(batch, np.int64)
    feeds = {name: value.numpy() for name, value in ar_inputs(config, batch, 1, capacity).items()}
    caches = model.empty_caches(batch, capacity)
    worst = largest = 0.0
    for step in range(CHECK_STEPS):
        steps = int(new.max())
        feeds["text"] = generator.integers(0, config.text_rows, (batch, steps))
        feeds["codes"] = generator.integers(0, CODEBOOK_SIZE, (batch, steps, config.group_size))
        feeds |= {"text_lengths": lengths, "past_lengths": past, "new_lengths": new}
        inputs = [torch.from_numpy(feeds[name]) for name in ("text", "codes", "text_lengths")]
        counts = torch.from_numpy(past), torch.from_numpy(new)
        window = model.window(*counts, steps, capacity, inputs[2])
        logits, caches = model.forward_cached(inputs[0], inputs[1], inputs[2], window, caches)
        found = backend.run(feeds)
        worst = max(worst, gap(found["logits"], logits.numpy()))
        largest = max(largest, float(logits.abs().max()))
        feeds |= {name: found[f"{name}_out"] for name in names}
        past = past + new
        new = 1 + (np.arange(batch) + step) % 2
    return check("ar", worst, logits_bound(largest))


@torch.no_grad()
def verify_nar(model: NARModel, backend: Backend) -> float:
    """Every stage on a ragged batch. -> greatest difference of the valid logits.

    The codes must be those that the module chooses by the graph's own logits, but for ties in rounding.
    """
    generator = np.random.default_rng(1)
    frames = min(40, model.config.max_frames)
    feeds: dict[str, Array] = {
        "text": generator.integers(0, model.config.nar_text_rows, (2, 9)),
        "text_lengths": np.array([9, 4]),
        "codes": generator.integers(0, CODEBOOK_SIZE, (2, frames, model.config.codebooks)),
        "prompt_lengths": np.array([frames // 3, frames // 4]),
        "frame_lengths": np.array([frames, frames - 5]),
    }
    worst = largest = other = 0.0
    for stage in range(1, model.config.codebooks):
        feeds["stage"] = np.array(stage)
        inputs = [torch.from_numpy(value) for value in feeds.values()]
        expected = model(*inputs).numpy()
        found = backend.run(feeds)
        chosen = model.choose(torch.from_numpy(found["logits"]), *inputs[2:]).numpy()
        other = max(other, float((found["codes_out"] != chosen).mean()))
        worst = max(worst, gap(found["logits"], expected))
        largest = max(largest, float(np.abs(expected).max()))
    check("nar codes", other, CODES_TOLERANCE)
    return check("nar", worst, logits_bound(largest))


@torch.no_grad()
def verify_codec(
    encoder: nn.Module,
    decoder: nn.Module,
    config: CodecConfig | EncodecConfig,
    backends: Mapping[str, Backend],
) -> dict[str, float]:
    """-> share of codes that differ (encoder) and greatest sample difference (decoder)."""
    generator = np.random.default_rng(2)
    audio = generator.standard_normal((1, 50 * config.hop)).astype(np.float32) * 0.1
    expected = encoder(torch.from_numpy(audio)).numpy()
    found = backends["codec_encoder"].run({"audio": audio})["codes"]
    codes = generator.integers(0, CODEBOOK_SIZE, (1, 45, CODEBOOKS))
    wave = decoder(torch.from_numpy(codes)).numpy()
    scale = max(1.0, float(np.abs(wave).max()))
    decoded = gap(backends["codec_decoder"].run({"codes": codes})["audio"], wave) / scale
    return {
        "codec_encoder": check("codec_encoder", float((found != expected).mean()), CODES_TOLERANCE),
        "codec_decoder": check("codec_decoder", decoded, AUDIO_TOLERANCE),
    }


@torch.no_grad()
def verify_stream(decoder: nn.Module, backend: Backend) -> float:
    """-> greatest sample difference between chunks with handed-on states and the decoder on all at once."""
    codes = np.random.default_rng(3).integers(0, CODEBOOK_SIZE, (1, 40, CODEBOOKS))
    whole = decoder(torch.from_numpy(codes)).numpy()
    stream = Stateful(backend)
    parts = [stream.run({"codes": part})["audio"] for part in np.split(codes, (7, 8, 23), axis=1)]
    scale = max(1.0, float(np.abs(whole).max()))
    return check("codec_stream", gap(np.concatenate(parts, axis=1), whole) / scale, AUDIO_TOLERANCE)
