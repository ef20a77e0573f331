"""A model of the paper's size with random weights, made once and kept in the user's cache directory.

It speaks noise at the speed at which a trained model speaks words. Its `<eos>` is never the likeliest code,
so with top-p 0 a request is as long as `max_frames` says. It has the demo's text front end, and one voice of
three seconds of random codes.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from valle2.engine import BackendError, find_graphs, read_manifest
from valle2.engine.bundle.files import cache_directory
from valle2.engine.bundle.precisions import METHODS
from valle2.engine.errors import Valle2Error
from valle2.runtime.tts import find_model
from valle2.runtime.types import Prompt
from valle2.runtime.voices import store_prompt

if TYPE_CHECKING:
    from valle2.export import ARModel, Checkpoint, ModelConfig

REVISION = 5
"""Increased when the model changes, so that an older cache is not used."""
SIZES = {
    "vocab_size": 4096,
    "d_model": 1024,
    "heads": 16,
    "layers": 12,
    "ffn": 4096,
    "group_size": 2,
    "max_text": 512,
    "max_frames": 6144,
}
PROMPT_FRAMES, FRAMES, FRAME_RATE = 225, 750, 75
GPU_FRAMES = 2048
TEXT = "The quick brown fox jumps over the lazy dog, and the dog, who had seen it before, goes back to sleep."
NEED_TORCH = "--size full makes its model with torch; install it with: pip install 'valle2[export]'"


@dataclass(frozen=True, slots=True)
class FullSizeModel:
    """The folder of a checkpoint, and of the bundle exported from it."""

    checkpoint: Path
    bundle: Path


def full_size(
    cache: Path | None = None, precisions: Sequence[str] = (), device: str = "cpu", /, **changes: int
) -> FullSizeModel:
    """The full-size model, made if it is not in the cache.

    Args:
        cache: another cache directory. precisions: graphs to build, besides the stored ones.
        device: where it will run, see `on_device`.
        changes: sizes that differ from the paper's, for group sizes and tests.

    Raises:
        Valle2Error: the model is not in the cache and torch is not installed, or the cache cannot be written.
    """
    lowering, fixed = on_device(device)
    sizes = {**SIZES, **fixed, **changes}
    names = [f"{key}{value}" for key, value in sorted(sizes.items()) if value != SIZES[key]]
    names += [lowering] if lowering != "ort" else []
    folder = (cache or cache_directory()) / "-".join([f"full-v{REVISION}", *names])
    made = FullSizeModel(folder / "checkpoint", folder / "bundle")
    if not (made.bundle / "manifest.json").is_file():
        if find_spec("torch") is None:
            raise Valle2Error(NEED_TORCH)
        try:
            make(made, sizes, lowering)
        except OSError as error:
            raise Valle2Error(
                f"{folder} cannot be written ({error}); set XDG_CACHE_HOME to a folder that can"
            ) from None
    for precision in precisions:
        if precision in METHODS and not has_graphs(made.bundle, precision):
            build_precision(made, precision)
    return made


def on_device(device: str) -> tuple[str, dict[str, int]]:
    """The lowering of the model for a device, and the sizes that change.

    On a GPU the caches have a fixed length and every step reads all of it. There it is the length of one
    request, not the greatest length.
    """
    return ("ort", {}) if device == "cpu" else ("portable", {"max_frames": GPU_FRAMES})


def has_graphs(bundle: Path, precision: str) -> bool:
    """Does the bundle have intact graphs of this precision, built by this version?"""
    try:
        find_graphs(bundle, read_manifest(bundle), precision)
    except BackendError:
        return False
    return True


def build_precision(made: FullSizeModel, precision: str) -> None:
    """Build the graphs of a precision, besides the stored ones."""
    if find_spec("onnx") is None:
        raise Valle2Error(NEED_TORCH)
    from valle2.engine.build.ort import build_graphs

    build_graphs(made.bundle, precision)


def make(made: FullSizeModel, sizes: dict[str, int], lowering: str) -> None:
    """Write the checkpoint and its bundle."""
    import torch

    from valle2.export import export_checkpoint, save_checkpoint

    shutil.rmtree(made.checkpoint, ignore_errors=True)
    save_checkpoint(random_checkpoint(sizes), made.checkpoint, torch.float16)
    shutil.copytree(find_model("demo") / "text", made.checkpoint / "text")
    (made.checkpoint / "voices").mkdir()
    codes = np.random.default_rng(0).integers(0, 1024, (PROMPT_FRAMES, 8))
    store_prompt(made.checkpoint / "voices" / "noise.safetensors", Prompt(codes, "Three seconds of noise."))
    export_checkpoint(made.checkpoint, made.bundle, lowering=lowering)


def random_checkpoint(sizes: dict[str, Any]) -> Checkpoint:
    """A checkpoint of these sizes with seeded random weights and a codec."""
    import torch

    from valle2.export import Checkpoint, ModelConfig, NARModel
    from valle2.export.codecs.demo import CodecConfig, CodecDecoder, CodecEncoder

    torch.manual_seed(0)
    config, codec = ModelConfig(**sizes), CodecConfig()
    return Checkpoint(
        config,
        random_ar(config),
        NARModel(config).eval(),
        (CodecEncoder(codec).eval(), CodecDecoder(codec).eval(), codec),
        name="full",
        text={"kind": "phonemes"},
        sampling={"top_p": 0.0, "threshold": 1.0},
        provenance={"licence": "Apache-2.0", "notes": "random weights, for timing only"},
    )


def random_ar(config: ModelConfig) -> ARModel:
    """A random AR model whose `<eos>` is never the likeliest code: its row of the code table is zero."""
    import torch

    from valle2.engine.bundle.contract import EOS_CODE
    from valle2.export import ARModel

    model = ARModel(config).eval()
    with torch.no_grad():
        model.code_table.weight[EOS_CODE] = 0
    return model


def with_group(sizes: dict[str, Any], group_size: int) -> ModelConfig:
    """The configuration of an AR model of a manifest's sizes with another group size."""
    from valle2.export import ModelConfig

    names = ("vocab_size", "d_model", "heads", "layers", "ffn", "max_text", "max_frames")
    return ModelConfig(group_size=group_size, **{name: sizes[name] for name in names})
