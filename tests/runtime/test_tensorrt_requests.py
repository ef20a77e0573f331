"""Whole requests as TensorRT gets them, without a GPU: calls are in profiles, and the networks speak."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import DTypeLike

from tests.listen import share_heard
from valle2.engine import Backend, Buffer, GraphSpec, Placement, open_backend, read_manifest
from valle2.engine.backends import placement as placement_module
from valle2.engine.backends.base import Array, Step
from valle2.engine.bundle.profiles import Limits, Profile, profiles
from valle2.runtime import Request, Valle2
from valle2.runtime import tts as tts_module

pytest.importorskip("tensorrt_rtx", reason="needs TensorRT-RTX: pip install tensorrt-rtx-cu13")
LONG = "The water in the river is cold, but the children swim in it every day. " * 6
Open = Callable[[Path, GraphSpec], Backend]


class Recorder(Backend):
    """A backend that notes the sizes of every call.

    Args:
        inner: what computes. calls: where the sizes of the named axes are added, one mapping a call.
    """

    def __init__(self, inner: Backend, calls: list[dict[str, int]]) -> None:
        self.inner, self.spec, self.calls = inner, inner.spec, calls

    def note(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        sizes: dict[str, int] = {}
        for tensor in self.spec.inputs:
            for axis, size in zip(tensor.axes, shapes[tensor.name], strict=True):
                if isinstance(axis, str):
                    assert sizes.setdefault(axis, size) == size, (tensor.name, axis)
        self.calls.append(sizes)

    def run_checked(self, feeds: Mapping[str, Array], outputs: tuple[str, ...]) -> dict[str, Array]:
        self.note({name: value.shape for name, value in feeds.items()})
        return self.inner.run_checked(feeds, outputs)

    def buffer(self, shape: tuple[int, ...], dtype: DTypeLike) -> Buffer:
        return self.inner.buffer(shape, dtype)

    def bind(self, inputs: Mapping[str, Buffer], outputs: Mapping[str, Buffer]) -> Step:
        self.note({name: buffer.shape for name, buffer in inputs.items()})
        return self.inner.bind(inputs, outputs)

    def close(self) -> None:
        self.inner.close()


@contextmanager
def loaded_through(opener: Open, slots: int, lowering: str = "portable") -> Iterator[Valle2]:
    """The model as TensorRT-RTX would serve it, with its graphs opened by `opener`."""

    def opened(folder: Path, spec: GraphSpec, placement: Placement, *, stepped: bool = False) -> Backend:
        assert placement.engine == "tensorrt-rtx"
        return opener(folder, spec)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tts_module, "open_backend", opened)
        patch.setattr(placement_module, "lowerings_here", lambda name: (lowering,))
        with Valle2.load("demo", device="cuda", engine="tensorrt-rtx", precision="fp32", slots=slots) as tts:
            yield tts


def wave_bytes(audio: Array, rate: int) -> bytes:
    """A WAV file."""
    target = io.BytesIO()
    soundfile.write(target, audio, rate, format="WAV")
    return target.getvalue()


def outside(found: list[Profile], sizes: dict[str, int]) -> bool:
    return not any(
        all(profile.axes[axis].low <= size <= profile.axes[axis].high for axis, size in sizes.items())
        for profile in found
    )


@pytest.mark.slow
@pytest.mark.parametrize("slots", [1, 4])
def test_every_call_of_whole_requests_is_inside_a_profile(slots: int) -> None:
    """A short and a long text, alone, together in every number of rows, streamed, and with a new voice."""
    calls: dict[str, list[dict[str, int]]] = {}

    def record(folder: Path, spec: GraphSpec) -> Backend:
        return Recorder(open_backend(folder, spec, Placement()), calls.setdefault(spec.graph, []))

    with loaded_through(record, slots) as tts:
        voice = tts.voice(tts.default_voice())
        settings = replace(tts.settings(), max_frames=300)
        for text in ("Yes.", LONG):
            tts.synthesize(text, voice, settings)
        for rows in range(1, slots + 1):
            tts.synthesize_batch([Request("A short one.", voice, settings) for _ in range(rows)])
        for _ in tts.stream("Hello, this is a test.", voice):
            pass
        clip = wave_bytes(np.random.default_rng(0).normal(0, 0.1, 2 * tts.sample_rate), tts.sample_rate)
        tts.prompt(clip, "Hello there.")
        manifest = tts.manifest
    limits = Limits(slots)
    assert set(calls) == set(manifest.graphs)
    for graph, noted in calls.items():
        found = profiles(manifest, graph, limits)
        assert noted and not [sizes for sizes in noted if outside(found, sizes)], graph
    assert {sizes["batch"] for sizes in calls["ar"]} == set(range(1, slots + 1))


@pytest.mark.slow
@pytest.mark.parametrize("lowering", ["portable", "primitive"])
def test_the_interpreted_networks_speak(lowering: str, tmp_path: Path) -> None:
    """Every graph of the demo runs as TensorRT parsed it; whisper hears the sentence."""
    from valle2.benchmarks.quality.judges import Judges
    from valle2.engine.build.interpreter import interpret_graph

    text = "The children play in the garden."
    with loaded_through(lambda folder, spec: interpret_graph(folder, spec), 1, lowering) as tts:
        spoken = tts.synthesize(text, tts.voice(tts.default_voice()))
    with Valle2.load("demo", precision="fp32", slots=1) as usual:
        expected = usual.synthesize(text, usual.voice(usual.default_voice()))
    assert share_heard(Judges().transcribe(spoken.audio, spoken.sample_rate), text) == 1.0
    assert np.array_equal(spoken.codes, expected.codes)


def test_the_demo_has_the_graphs_of_both_lowerings() -> None:
    manifest = read_manifest(tts_module.MODELS / "demo")
    for lowering in ("portable", "primitive"):
        assert set(manifest.in_lowering((lowering,), "test").graphs) == {
            "ar",
            "nar",
            "codec_encoder",
            "codec_decoder",
        }
