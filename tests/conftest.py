"""Shared fixtures: a toy checkpoint and its bundles, exported once per session, and the shared test data."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from tests.traced import trace_once
from valle2.engine import Backend, GraphSpec, open_backend
from valle2.engine.build.ort import build_graph
from valle2.engine.bundle.precisions import METHODS
from valle2.export import Checkpoint, ModelConfig, export_checkpoint, save_checkpoint
from valle2.export import bundle as bundle_module
from valle2.export.bundle import graph_spec
from valle2.export.codecs.demo import CodecConfig, CodecDecoder, CodecEncoder
from valle2.export.graphs import Graph, ar_graph
from valle2.export.models.ar import ARModel
from valle2.export.models.nar import NARModel
from valle2.runtime import Prompt, Valle2
from valle2.runtime.generation import sampling as rule
from valle2.runtime.voices import store_prompt

Trace = Callable[[Graph, Path], Path]
SHARED = Path(__file__).parents[2] / "shared"
SYMBOLS = list(" ,.?!abcdefghijklmnopqrstuvwxyzˈəðɪ")
WORDS = {"hello": "hˈelo", "there": "ðˈer", "the": "ði", "a": "a", "fox": "fˈoks", "apple": "ˈapl"}


def shared(name: str) -> Path:
    """A file of the shared test data. Skips the test if it is absent."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"shared test data {name} is not on this machine")
    return path


def toy_config(group_size: int, max_frames: int = 1024) -> ModelConfig:
    return ModelConfig(
        vocab_size=len(SYMBOLS),
        d_model=32,
        heads=4,
        layers=2,
        ffn=64,
        group_size=group_size,
        max_text=96,
        max_frames=max_frames,
    )


def toy_checkpoint(group_size: int, max_frames: int = 1024) -> Checkpoint:
    """Random weights, large enough that codes depend on all inputs."""
    torch.manual_seed(group_size)
    config = toy_config(group_size, max_frames)
    codec = CodecConfig(width=32, ffn=48, blocks=1, decoder_width=32, decoder_ffn=48, decoder_blocks=1)
    checkpoint = Checkpoint(
        config,
        ARModel(config).eval(),
        NARModel(config).eval(),
        (CodecEncoder(codec).eval(), CodecDecoder(codec).eval(), codec),
        name="toy",
        text={"kind": "phonemes"},
        provenance={"licence": "Apache-2.0"},
    )
    for model in (checkpoint.ar, checkpoint.nar):
        for weight in model.parameters():
            if weight.dim() > 1:
                torch.nn.init.normal_(weight, std=0.15)
    return checkpoint


def write_toy(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write the checkpoint with a text front end and two voices."""
    save_checkpoint(checkpoint, folder, torch.float16)
    (folder / "text").mkdir()
    (folder / "voices").mkdir()
    lines = [f"{word}\t{sounds}" for word, sounds in WORDS.items()]
    (folder / "text" / "lexicon.tsv").write_text("\n".join(lines), encoding="utf-8")
    tokenizer = Tokenizer(models.WordLevel({s: i for i, s in enumerate(SYMBOLS)}, unk_token="<none>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.save(str(folder / "text" / "tokenizer.json"))
    for index, name in enumerate(("amber", "basalt")):
        codes = np.random.default_rng(index).integers(0, 1024, (30, 8))
        prompt = Prompt(codes, "hello there", name)
        store_prompt(folder / "voices" / f"{name}.safetensors", prompt)
    return folder


def near_a_boundary(
    logits: NDArray[np.float32], draws: NDArray[np.float32], top_p: float, rounding: float
) -> bool:
    """Whether a draw, or the edge of the nucleus, is within rounding of a step of the cumulative sum."""
    _, probs = rule.ranked_probabilities(logits)
    cumulative = np.cumsum(probs, dtype=np.float64)
    kept = max(1, int(np.sum(cumulative - probs < top_p)))
    points = [top_p, draws[0] * cumulative[kept - 1], draws[1] * cumulative[-1]]
    return any(float(np.abs(cumulative - point).min()) < rounding for point in points)


@pytest.fixture(scope="session")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    """`export_graph`, but equal rows are traced once, even across the processes of `pytest -n`."""
    base = tmp_path_factory.getbasetemp()
    kept = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "traced"
    kept.mkdir(exist_ok=True)
    return partial(trace_once, kept)


@pytest.fixture(scope="session", autouse=True)
def exports_trace_once(trace: Trace) -> Iterator[None]:
    """Make `export_checkpoint` use `trace` in this process, also when the command line calls it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundle_module, "export_graph", trace)
        yield


@pytest.fixture(scope="session")
def checkpoint_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy(tmp_path_factory.mktemp("checkpoint"), toy_checkpoint(2, 400))


@pytest.fixture(scope="session")
def bundle(checkpoint_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy bundle with codec, text and voices. Do not change it."""
    return export_checkpoint(checkpoint_folder, tmp_path_factory.mktemp("bundles") / "toy")


@pytest.fixture(scope="session")
def fixed_bundles(checkpoint_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Toy bundles in the lowerings with a fixed cache length, for TensorRT. Do not change them."""
    folder = tmp_path_factory.mktemp("fixed")
    return {
        lowering: export_checkpoint(checkpoint_folder, folder / lowering, lowering=lowering)
        for lowering in ("portable", "primitive")
    }


@pytest.fixture(scope="session")
def tts(bundle: Path) -> Valle2:
    return Valle2.load(bundle)


@pytest.fixture
def voice(tts: Valle2) -> Prompt:
    return tts.voice("amber")


@pytest.fixture
def broken(bundle: Path, tmp_path: Path) -> Path:
    """A copy of the bundle, to be damaged."""
    import shutil

    return Path(shutil.copytree(bundle, tmp_path / "broken"))


def edit_manifest(folder: Path, change: Callable[[dict[str, object]], None]) -> None:
    """Rewrite manifest.json with a change."""
    path = folder / "manifest.json"
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


@pytest.fixture(scope="session")
def ar_export(
    trace: Trace, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int, str, int], tuple[ARModel, Path, GraphSpec]]:
    """(group size, lowering, cache length) -> the eager model, and its graph's folder and tensors. Cached."""

    @cache
    def make(group_size: int, lowering: str, capacity: int) -> tuple[ARModel, Path, GraphSpec]:
        model = toy_checkpoint(group_size, 256 * group_size).ar
        row = ar_graph(model, lowering, capacity)
        path = trace(row, tmp_path_factory.mktemp(f"ar{group_size}{lowering}") / "ar.onnx")
        return model, path.parent, graph_spec(path, row)

    return make


@pytest.fixture(scope="session")
def ar_backend(
    ar_export: Callable[[int, str, int], tuple[ARModel, Path, GraphSpec]],
) -> Callable[[int, str, int], tuple[ARModel, Backend]]:
    """(group size, lowering, cache length) -> the eager model and its graph."""

    @cache
    def make(group_size: int, lowering: str, capacity: int) -> tuple[ARModel, Backend]:
        model, folder, spec = ar_export(group_size, lowering, capacity)
        return model, open_backend(folder, spec)

    return make


@pytest.fixture(scope="session")
def built_backend(
    ar_export: Callable[[int, str, int], tuple[ARModel, Path, GraphSpec]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[int, str, int, str], tuple[ARModel, Backend]]:
    """`ar_backend` with the graph built in a precision, as `valle2 build --target ort --precision` does."""

    @cache
    def make(group_size: int, lowering: str, capacity: int, precision: str) -> tuple[ARModel, Backend]:
        model, folder, spec = ar_export(group_size, lowering, capacity)
        built = tmp_path_factory.mktemp(f"{precision}{group_size}{lowering}")
        row = build_graph(folder, built, spec, METHODS[precision]["ar"], model.config.to_dict())
        return model, open_backend(built, row[1])

    return make
