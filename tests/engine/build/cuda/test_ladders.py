"""Whole requests whose calls of the NAR and the codec are padded to a ladder of sizes, on the CPU."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.conftest import toy_checkpoint, write_toy
from tests.engine.backends.fake import FakeBackend
from tests.engine.build.cuda.on_cpu import build_in_float32, run_on_cpu
from valle2.benchmarks.speed.on_gpu.captures import time_pair
from valle2.benchmarks.speed.on_gpu.parts import PARTS
from valle2.engine import BackendError, GraphSpec, Placement
from valle2.engine.backends.ladder import Ladder
from valle2.engine.bundle.contract import NAR_BATCH, NAR_ROW, PADDED_DECODER
from valle2.engine.bundle.nar_inputs import NAR_AXES
from valle2.engine.bundle.specs import TensorSpec
from valle2.export import export_checkpoint
from valle2.runtime import Request, Settings, Speech, Valle2
from valle2.runtime.generation import ladders
from valle2.runtime.generation.ladders import captured, codec_ladder, nar_ladder

FRAMES, PROMPTS = (16, 14, 20, 9, 31, 8, 25, 12), (30, 24, 28, 12, 30, 9, 21, 15)
TEXTS = ("hello there", "a fox", "the apple the fox", "there")
LARGEST = {"max_text": 640, "max_frames": 6144}
"""Of the paper's size and of the embedded model, each the larger one."""
MOST_RUNGS, MOST_BYTES = 70, 34 * 2**20
"""Of each ladder, and of all buffers of both on the device, of these sizes with 8 rows (docs/gpu.md)."""
SIZES: dict[str, int | str] = {"codebooks": 8}
NAR_SPEC = GraphSpec(
    f"{NAR_BATCH}.onnx",
    tuple(
        TensorSpec(name, "int64", tuple(SIZES.get(axis, axis) for axis in axes))
        for name, axes in NAR_AXES.items()
    ),
    (TensorSpec("codes_out", "int64", ("batch", "frames")),),
)
CODEC_SPEC = GraphSpec(
    f"{PADDED_DECODER}.onnx",
    (TensorSpec("codes", "int64", ("batch", "frames", 8)), TensorSpec("frame_lengths", "int64", ("batch",))),
    (TensorSpec("audio", "float32", ("batch", "samples")),),
)


@pytest.mark.parametrize(
    "group_size", [2, *(pytest.param(size, marks=pytest.mark.slow) for size in (1, 4, 8))]
)
def test_requests_are_those_of_calls_without_padding(
    group_size: int, fixed_bundles: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole and streamed, alone and 2, 4 and 8 at once, in every company the same codes."""
    bundle = tmp_path / "bundle"
    if group_size == 2:
        shutil.copytree(fixed_bundles["portable"], bundle)
    else:
        (tmp_path / "checkpoint").mkdir()
        folder = write_toy(tmp_path / "checkpoint", toy_checkpoint(group_size, 400))
        export_checkpoint(folder, bundle, lowering="portable")
    build_in_float32(bundle)
    used = run_on_cpu(monkeypatch)
    monkeypatch.setattr(ladders, "MOST_POSITIONS", 2 * (ladders.TEXTS + ladders.FRAMES))
    options: dict[str, Any] = {"precision": "fp16", "slots": 8, "chunks_per_call": 8, "threads": 1}
    with Valle2.load(bundle, **options) as plain:
        wanted = [spoken(plain, asked(plain, 8)[index : index + 1]) for index in range(8)]
        streamed = [stream(plain, request) for request in asked(plain, 3)]
    assert NAR_ROW in used and PADDED_DECODER not in used
    used.clear()
    with Valle2.load(bundle, **options, capture_chunks=True) as padded:
        assert used >= {NAR_BATCH, PADDED_DECODER} and NAR_ROW not in used
        calls = watch(padded, monkeypatch)
        for count in (1, 2, 4, 8):
            together = spoken(padded, asked(padded, count))
            for one, (other,) in zip(together, wanted, strict=False):
                assert np.array_equal(one.codes, other.codes)
                np.testing.assert_allclose(one.audio, other.audio, atol=1e-5)
        for request, audio in zip(asked(padded, 3), streamed, strict=True):
            np.testing.assert_allclose(stream(padded, request), audio, atol=1e-5)
        with Valle2.load(bundle, **options) as plain:
            timed = time_pair(plain, padded, 12, 1, time.process_time, "hello there", (1, 2))
        assert {row["same_codes"] for row in timed["nar"]} == {1.0} and timed["first_audio"][
            "captured_ms"
        ] > 0
        assert max(row["greatest_difference"] for row in timed["codec"]) < 1e-5
        timed |= {"load": dict.fromkeys(("captured_seconds", "plain_seconds"), 1.0), "mb": 1.0}
        timed |= {"rungs": [7, 0], "captured": [True, False]}
        assert len(PARTS["captures"].rows(timed)) == 3 + 2 * 2 * 2
        assert PARTS["captures"].wrong(timed) == "calls of codec were not captured"
        timed["captured"], timed["nar"][0]["same_codes"] = [True, True], 0.1
        assert PARTS["captures"].wrong(timed) == "1 captured calls return something else"
    ladders_held = padded.model.nar.ladder, padded.need_codec().ladder
    assert all(ladder and not ladder.rungs for ladder in ladders_held), "buffers of a closed model"
    assert {("nar", 1, True), ("nar", 2, True), ("codec", 1, True)} <= set(calls)
    assert {fits for name, rows, fits in calls if name == "nar" and rows > 2} == {False}


def test_a_graph_that_is_not_captured_is_not_padded(caplog: pytest.LogCaptureFixture) -> None:
    """Padding without a capture would only cost time."""
    backend = FakeBackend(NAR_SPEC, dict)
    assert captured(nar_ladder, backend, LARGEST, 8) is None
    assert "calls of nar_batch.onnx cannot be captured here" in caplog.text


def test_a_ladder_that_replays_something_else_is_not_used(caplog: pytest.LogCaptureFixture) -> None:
    calls: list[int] = []

    def counted(feeds: Mapping[str, Any]) -> dict[str, Any]:
        calls.append(1)
        return {"codes_out": np.full(feeds["codes"].shape[:2], len(calls))}

    backend = FakeBackend(NAR_SPEC, counted)
    backend.captures_calls = True
    assert captured(nar_ladder, backend, LARGEST, 1) is None
    assert "captured calls of nar_batch.onnx return something else" in caplog.text


def test_memory_of_all_buffers_is_bounded() -> None:
    """Of the largest model that we know."""
    nar = nar_ladder(FakeBackend(NAR_SPEC, dict), LARGEST, 8)
    codec = codec_ladder(FakeBackend(CODEC_SPEC, dict), 320, 8)
    assert len(nar.rungs) <= MOST_RUNGS and len(codec.rungs) <= MOST_RUNGS
    assert nar.size + codec.size <= MOST_BYTES, (nar.size, codec.size)
    for rung in nar.rungs:
        sizes = rung.sizes
        assert sizes["batch"] * (sizes["tokens"] + sizes["frames"]) <= ladders.MOST_POSITIONS


@pytest.mark.parametrize("place", [{"device": "cpu"}, {"device": "cuda", "engine": "tensorrt"}])
def test_other_devices_and_engines_refuse_it(place: dict[str, str]) -> None:
    with pytest.raises(BackendError, match="capture_chunks is for engine 'ort' on device 'cuda', not"):
        Placement(**place, capture_chunks=True)  # type: ignore[arg-type]


def asked(tts: Valle2, count: int) -> list[Request]:
    """Requests with texts, prompts and speech of different lengths."""
    voice, settings = tts.voice("amber"), Settings(top_p=1.0, threshold=1.0)
    return [
        Request(
            TEXTS[index % len(TEXTS)],
            replace(voice, codes=voice.codes[: PROMPTS[index]]),
            replace(settings, max_frames=FRAMES[index], seed=index),
        )
        for index in range(count)
    ]


def spoken(tts: Valle2, requests: Sequence[Request]) -> list[Speech]:
    return [speech for speech in tts.synthesize_batch(requests) if isinstance(speech, Speech)]


def stream(tts: Valle2, request: Request) -> Any:
    pieces = tts.stream(request.text, request.prompt, request.settings, first_chunk_seconds=0.1)
    return np.concatenate(list(pieces))


def watch(tts: Valle2, patch: pytest.MonkeyPatch) -> list[tuple[str, int, bool]]:
    """From now on, which ladder each call goes to, with how many rows, and whether it fits a rung."""
    calls: list[tuple[str, int, bool]] = []

    def watched(name: str, ladder: Ladder) -> None:
        run = ladder.run

        def call(feeds: Mapping[str, Any]) -> Any:
            found = run(feeds)
            calls.append((name, len(feeds["codes"]), found is not None))
            return found

        patch.setattr(ladder, "run", call)

    for name, ladder in (("nar", tts.model.nar.ladder), ("codec", tts.need_codec().ladder)):
        assert ladder
        watched(name, ladder)
    return calls
