"""The memory budget, compared with the sizes of the bundle's tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper

from valle2.engine import BackendError, read_manifest
from valle2.engine.build import budget as module
from valle2.engine.build.budget import CACHE_PASSES, GB, BudgetQuery, budget, graph_memory, read_graph
from valle2.engine.build.precision import load_graph
from valle2.engine.bundle.profiles import Limits
from valle2.runtime.cli.main import main


def budget_of(folder: Path, rows: int = 1, **changes: Any) -> dict[str, Any]:
    given: dict[str, Any] = {"limits": Limits(rows), "precision": "fp16"} | changes
    return budget(folder, read_manifest(folder), BudgetQuery(**given))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("lowering", ["portable", "primitive"])
def test_weights_are_those_of_the_converted_graph(
    fixed_bundles: dict[str, Path], lowering: str, precision: str
) -> None:
    folder = fixed_bundles[lowering]
    manifest = read_manifest(folder)
    for graph in ("ar", "nar"):
        path = folder / manifest.graphs[graph].file
        whole = load_graph(path, precision)
        expected = sum(numpy_helper.to_array(weight).nbytes for weight in whole.graph.initializer)
        found = graph_memory(manifest, graph, read_graph(path), BudgetQuery(Limits(), precision), 1).weights
        assert abs(found - expected) <= 0.02 * expected  # the sampler's few constants stay float32


@pytest.mark.parametrize("lowering, sets", [("portable", 1), ("primitive", 2)])
def test_the_cache_of_a_row_and_what_a_step_moves(
    fixed_bundles: dict[str, Path], lowering: str, sets: int
) -> None:
    folder = fixed_bundles[lowering]
    manifest = read_manifest(folder)
    sizes = manifest.sizes
    one_set = 2 * sizes["layers"] * sizes["d_model"] * manifest.cache_length * 2
    model = read_graph(folder / manifest.graphs["ar"].file)
    found = graph_memory(manifest, "ar", model, BudgetQuery(Limits(), "fp16"), 3)
    assert found.cache == 3 * sets * one_set
    moved = [budget_of(folder, rows)["step"]["mb"] * 1e6 for rows in (1, 101)]
    assert abs((moved[1] - moved[0]) / 100 - CACHE_PASSES[lowering] * one_set) < 2e3


def test_a_fused_step_reads_what_is_filled(
    fixed_bundles: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights of the AR are there twice, and with several slots the NAR's. Only CUDA has such a step."""
    monkeypatch.setattr(module, "MB", 1.0)
    folder = fixed_bundles["portable"]
    manifest = read_manifest(folder)
    model = read_graph(folder / manifest.graphs["ar"].file)
    ar = graph_memory(manifest, "ar", model, BudgetQuery(Limits(9, 100), "fp16"), 9)
    whole, part = (budget_of(folder, limits=Limits(9, frames), bandwidth=1e6) for frames in (0, 100))
    nar = read_graph(folder / manifest.graphs["nar"].file)
    twice = graph_memory(manifest, "nar", nar, BudgetQuery(Limits(9, 100), "fp16"), 9).weights
    assert part["fused"]["more_mb"] == ar.weights + twice
    assert budget_of(folder, limits=Limits(1, 100))["fused"]["more_mb"] == ar.weights
    filled = manifest.sizes["max_text"] + 1 + 100 // manifest.sizes["group_size"]
    assert part["fused"]["step_mb"] == ar.read + ar.cache * filled // manifest.cache_length
    assert part["fused"]["step_mb"] < whole["fused"]["step_mb"] == whole["step"]["mb"]
    assert part["fused"]["step_ms"] == round(part["fused"]["step_mb"] / 1e3, 2)
    smaller = budget_of(folder, limits=Limits(9, 100), precision="int8")["fused"]
    assert smaller["step_mb"] < part["fused"]["step_mb"]  # and AR and NAR stay in float16 beside it
    assert smaller["more_mb"] > part["fused"]["more_mb"]
    assert "fused" not in budget_of(folder, precision="fp32")
    assert "fused" not in budget_of(fixed_bundles["primitive"])


def test_embeddings_are_stored_but_not_read_by_a_step(fixed_bundles: dict[str, Path]) -> None:
    folder = fixed_bundles["portable"]
    manifest = read_manifest(folder)
    model = read_graph(folder / manifest.graphs["ar"].file)
    found = graph_memory(manifest, "ar", model, BudgetQuery(Limits(), "fp16"), 1)
    rows, width = manifest.sizes["vocab_size"], manifest.sizes["d_model"]
    assert found.weights - found.read >= rows * width * 2
    assert found.read > 4 * manifest.sizes["layers"] * width * width * 2


def test_as_many_slots_fit_as_the_totals_say(fixed_bundles: dict[str, Path]) -> None:
    folder = fixed_bundles["portable"]
    slots = budget_of(folder, memory=0.5 * GB)["slots_that_fit"]
    assert slots > 2
    assert budget_of(folder, slots)["total_mb"] <= 500.1 < budget_of(folder, slots + 1)["total_mb"] + 0.1
    assert budget_of(folder, memory=0.001 * GB)["slots_that_fit"] == 0
    fewer = budget_of(folder, limits=Limits(1, 100), memory=0.5 * GB)
    assert fewer["slots_that_fit"] > slots


def test_activations_hold_at_least_the_widest_layer(fixed_bundles: dict[str, Path], bundle: Path) -> None:
    for folder in (*fixed_bundles.values(), bundle):
        manifest = read_manifest(folder)
        frames, ffn = manifest.sizes["max_frames"], manifest.sizes["nar_ffn"]
        model = read_graph(folder / manifest.graphs["nar"].file)
        found = graph_memory(manifest, "nar", model, BudgetQuery(Limits(), "fp16"), 1)
        least = frames * ffn * 2
        assert least < found.activations < 200 * least


def test_smaller_weights_take_less(fixed_bundles: dict[str, Path]) -> None:
    folder = fixed_bundles["portable"]
    manifest = read_manifest(folder)
    model = read_graph(folder / manifest.graphs["ar"].file)
    int4, int8, fp16 = (
        graph_memory(manifest, "ar", model, BudgetQuery(Limits(), name), 1).weights
        for name in ("int4", "int8", "fp16")
    )
    assert int4 < int8 < fp16
    slow = budget_of(folder, bandwidth=1e6)["step"]
    assert np.isclose(slow["ms"], slow["mb"] * 1e3, rtol=0.3)


def test_wrong_queries(fixed_bundles: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="unknown precision 'int2'; expected one of fp32, fp16"):
        BudgetQuery(Limits(), "int2")
    with pytest.raises(BackendError, match=r"device memory is -1.0 GB.*expected positive"):
        BudgetQuery(Limits(), "fp16", memory=-GB)
    with pytest.raises(BackendError, match="max frames is 9999; expected at most the model's 400"):
        budget_of(fixed_bundles["portable"], limits=Limits(1, 9999))
    (tmp_path / "x.onnx").write_bytes(b"no graph")
    with pytest.raises(BackendError, match=r"x\.onnx is not a readable ONNX graph"):
        read_graph(tmp_path / "x.onnx")


def test_the_command(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["inspect", str(bundle), "--budget", "--batch", "2", "--device-memory", "1", "--bandwidth", "100"]
    assert main([*words, "--json"]) == 0
    shown = capsys.readouterr().out
    assert all(f'"{name}"' in shown for name in ("slots_that_fit", "slot_mb", "ms", "activations_mb"))
    assert main([*words[:2], "--budget", "--precision", "int2"]) == 1
    assert "unknown precision 'int2'" in capsys.readouterr().err
