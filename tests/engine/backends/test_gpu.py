"""The parity suite and the latency benchmark on a GPU.

`pytest -m gpu tests/engine/backends/test_gpu.py` runs it on a machine with CUDA and at least one engine. A
test is skipped if its engine is not installed or cannot be built for this GPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from tests.conftest import toy_checkpoint, write_toy
from tests.export import test_parity as parity
from valle2.benchmarks.speed.latency import latency
from valle2.engine import Backend, BackendError, Placement, find_graphs, open_backend, read_manifest
from valle2.engine.backends.ort.providers import PROVIDERS
from valle2.engine.backends.placement import ENGINE_DEVICES
from valle2.engine.backends.trt.api import TARGETS
from valle2.engine.backends.trt.cuda import this_gpu
from valle2.engine.build.ort import build_graphs
from valle2.engine.build.tensorrt import build_engine
from valle2.engine.bundle.nar_inputs import NARInputs
from valle2.engine.bundle.precisions import METHODS
from valle2.engine.bundle.profiles import Limits
from valle2.export import export_checkpoint, read_checkpoint
from valle2.export.models.ar import ARModel
from valle2.runtime import Request, Settings, Valle2
from valle2.runtime.generation.ar_runner import ARRunner

pytestmark = [pytest.mark.gpu, pytest.mark.slow]
DEVICE = "cuda"
SLOTS = 4
NOISE = {"fp16": 0.02, "bf16": 0.1, "int8": 0.06, "int4": 0.5, "fp8": 0.15}
LOWERINGS = PROVIDERS["ort", DEVICE].lowerings
HALF_LOGITS, HALF_SAME = 0.02, 0.98
CASES = [(engine, lowering) for engine in ENGINE_DEVICES for lowering in LOWERINGS]
Make = Callable[[int, str, int], tuple[ARModel, Backend]]
Bundle = Callable[[str, str, str, int], Path]


def need(engine: str) -> None:
    """Skip the test if this machine cannot run the engine."""
    if this_gpu() is None:
        pytest.skip("needs a CUDA GPU and cuda-python (pip install cuda-bindings)")
    if engine in TARGETS and find_spec(TARGETS[engine].module) is None:
        pytest.skip(f"needs {engine}: pip install 'valle2[{TARGETS[engine].extra}]'")
    if engine not in TARGETS and PROVIDERS[engine, "cuda"].name not in onnxruntime.get_available_providers():
        pytest.skip(f"needs an ONNX Runtime with {PROVIDERS[engine, 'cuda'].name}")


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """(engine, lowering, precision, group size) -> a toy bundle with the build for the engine."""

    @cache
    def stored(lowering: str, group_size: int) -> Path:
        folder = tmp_path_factory.mktemp(f"gpu-{lowering}-{group_size}")
        source = write_toy(folder / "checkpoint", toy_checkpoint(group_size, 256 * group_size))
        return export_checkpoint(source, folder / "toy", lowering=lowering, cache_length=parity.CAPACITY)

    @cache
    def make(engine: str, lowering: str, precision: str, group_size: int) -> Path:
        folder = stored(lowering, group_size)
        if engine in TARGETS:
            build_engine(folder, engine, precision=precision, limits=Limits(SLOTS))
        elif precision in METHODS:
            build_graphs(folder, precision)
        return folder

    return make


def graph_of(folder: Path, graph: str, engine: str, precision: str) -> Backend:
    """A graph of a bundle on the GPU."""
    stored = precision if engine == "ort" else "fp32"
    found = find_graphs(folder, read_manifest(folder), stored)[graph]
    stepped = graph == "ar"
    return open_backend(found.folder, found.spec, Placement(DEVICE, engine, precision), stepped=stepped)


def ar_of(made: Bundle, engine: str, precision: str = "fp32") -> Make:
    """`ar_backend` of the parity suite on an engine."""

    @cache
    def make(group_size: int, lowering: str, capacity: int) -> tuple[ARModel, Backend]:
        folder = made(engine, lowering, precision, group_size)
        model = read_checkpoint(folder.parent / "checkpoint").ar  # as stored, with weights in float16
        return model, graph_of(folder, "ar", engine, precision)

    return make


@pytest.mark.parametrize("engine, lowering", CASES)
@pytest.mark.parametrize("group_size", parity.GROUPS)
@pytest.mark.parametrize("batch", [1, SLOTS])
def test_logits_of_prefill_and_200_cached_steps(
    made: Bundle, engine: str, lowering: str, group_size: int, batch: int
) -> None:
    need(engine)
    parity.test_logits_of_prefill_and_200_cached_steps(ar_of(made, engine), group_size, lowering, batch)


@pytest.mark.parametrize("engine, lowering", CASES)
def test_rows_may_prefill_while_others_decode(made: Bundle, engine: str, lowering: str) -> None:
    need(engine)
    parity.test_rows_may_prefill_while_others_decode(ar_of(made, engine), lowering)


@pytest.mark.parametrize("engine, lowering", CASES)
@pytest.mark.parametrize("group_size", parity.GROUPS)
@pytest.mark.parametrize("top_p", [0.0, 0.6], ids=["greedy", "seeded"])
def test_codes_equal_the_reference_in_a_ragged_batch(
    made: Bundle, engine: str, lowering: str, group_size: int, top_p: float
) -> None:
    need(engine)
    settings = Settings(top_p=top_p, threshold=1.0 if top_p == 0 else 0.1)
    make = ar_of(made, engine)
    parity.test_codes_equal_the_reference_in_a_ragged_batch(make, group_size, lowering, settings)


@pytest.mark.parametrize("engine, lowering", CASES)
def test_speech_is_that_of_the_cpu(made: Bundle, engine: str, lowering: str) -> None:
    """Float32 codes equal the CPU's: alone, in a batch, and again in the same rows. The audio is near."""
    need(engine)
    folder = made(engine, lowering, "fp32", 2)
    ours = Valle2.load(folder, device=DEVICE, engine=engine, precision="fp32", slots=SLOTS)
    reference = Valle2.load(folder)
    settings = Settings(top_p=0.0, threshold=1.0)
    requests = [Request(text, ours.voice("amber"), settings) for text in ("hello there", "the fox")]
    batch = ours.synthesize_batch(requests)
    for request, beside in zip(requests, batch, strict=True):
        expected = reference.synthesize(request.text, request.prompt, settings)
        for _ in range(3):
            alone = ours.synthesize(request.text, request.prompt, settings)
            assert np.array_equal(alone.codes, expected.codes)
            assert float(np.abs(alone.audio - expected.audio).max()) < 0.01
        assert np.array_equal(beside.codes, expected.codes)


@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize("group_size", parity.GROUPS)
@pytest.mark.parametrize("batch", [1, SLOTS])
def test_logits_of_the_half_graph_on_cuda(made: Bundle, lowering: str, group_size: int, batch: int) -> None:
    need("ort")
    model, backend = ar_of(made, "ort", "fp16")(group_size, lowering, parity.CAPACITY)
    worst, same = parity.steps_beside_eager(model, backend, batch)
    assert worst < HALF_LOGITS and same > HALF_SAME


@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize("group_size", parity.GROUPS)
def test_greedy_codes_of_the_half_graph_on_cuda(made: Bundle, lowering: str, group_size: int) -> None:
    need("ort")
    model, backend = ar_of(made, "ort", "fp16")(group_size, lowering, parity.CAPACITY)
    slots, steps = ARRunner(backend, model.config.to_dict(), parity.CAPACITY, SLOTS, 10), 40
    rows = parity.ragged_rows(model, Settings(top_p=0.0, threshold=1.0), steps)
    for row, found in zip(rows, parity.decoded(slots, rows, steps), strict=True):
        assert parity.as_likely(model, row, found, steps, 2 * HALF_LOGITS)


@pytest.mark.parametrize("lowering", LOWERINGS)
def test_steps_are_replayed_as_cuda_graphs(made: Bundle, lowering: str) -> None:
    """A replay takes at most half of the time of a run that launches every kernel."""
    need("ort")
    folder = made("ort", lowering, "fp32", 2)
    found = find_graphs(folder, read_manifest(folder), "fp32")["ar"]
    seconds = []
    for stepped in (True, False):
        backend = open_backend(found.folder, found.spec, Placement(DEVICE), stepped=stepped)
        slots = ARRunner(backend, read_manifest(folder).sizes, parity.CAPACITY, 1, 10)
        for _ in range(20):
            slots.step(1)
        began = time.perf_counter()
        for _ in range(100):
            slots.step(1)
        seconds.append(time.perf_counter() - began)
    assert seconds[0] < seconds[1] / 2, seconds


@pytest.mark.parametrize(
    "engine, lowering, precision",
    [
        *((engine, "portable", precision) for engine in TARGETS for precision in NOISE),
        *(("ort", lowering, "fp16") for lowering in LOWERINGS),
    ],
)
def test_logits_of_smaller_precisions_stay_near(
    made: Bundle, engine: str, lowering: str, precision: str
) -> None:
    """The NAR's logits of every stage: root mean square of the difference, divided by that of float32."""
    need(engine)
    try:
        folder = made(engine, lowering, precision, 2)
    except BackendError as error:
        if "it takes sm" in str(error):
            pytest.skip(str(error))
        raise
    rng = np.random.default_rng(0)
    inputs = NARInputs(
        text=rng.integers(0, 30, (1, 12)),
        text_lengths=np.array([12]),
        codes=rng.integers(0, 1024, (1, 60, 8)),
        prompt_lengths=np.array([20]),
        frame_lengths=np.array([60]),
        stage=np.array(1),
    )
    ours, reference = (
        graph_of(folder, "nar", engine, precision),
        open_backend(folder, read_manifest(folder).graphs["nar"]),
    )
    for stage in range(1, 8):
        feeds = replace(inputs, stage=np.array(stage)).feeds()
        found, expected = (b.run(feeds)["logits"] for b in (ours, reference))
        noise = float(np.sqrt(np.mean((found - expected) ** 2) / np.mean(expected**2)))
        assert noise < NOISE[precision]


def test_the_embedded_model_speaks_as_on_the_cpu() -> None:
    need("ort")
    here, there = (Valle2.load("demo", device=device, precision="fp32") for device in ("cpu", DEVICE))
    assert there.manifest.lowering == "portable"
    for name in here.voices():
        ours, theirs = (
            tts.synthesize("The fox ran over the hill.", tts.voice(name), tts.settings()).codes
            for tts in (there, here)
        )
        assert np.array_equal(ours[:, 0], theirs[:, 0]) and (ours == theirs).mean() > 0.999


@pytest.mark.parametrize("engine, lowering", CASES)
def test_the_latency_benchmark_runs(made: Bundle, engine: str, lowering: str) -> None:
    need(engine)
    precision = "fp16" if engine in (*TARGETS, "ort") else "fp32"
    folder = made(engine, lowering, precision, 2)
    found = latency(str(folder), "hello there", 3, 0, 1, DEVICE, engine=engine, precision=precision)
    assert found["ar_step_ms"] > 0 and found["bound_fraction"] is None and found["repeats"] == 3
    assert found["engine"] == engine
