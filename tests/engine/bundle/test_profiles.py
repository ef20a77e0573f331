"""Optimisation profiles: every call of the runtime fits one, and wrong limits are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from valle2.engine import BackendError, GraphSpec, Manifest, TensorSpec, read_manifest
from valle2.engine.bundle.profiles import PREFILL_CHUNK, Limits, Profile, Range, buckets, profiles


@pytest.fixture(scope="session")
def manifest(fixed_bundles: dict[str, Path]) -> Manifest:
    return read_manifest(fixed_bundles["portable"])


def fits(profile: Profile, sizes: dict[str, int]) -> bool:
    return all(profile.axes[axis].low <= size <= profile.axes[axis].high for axis, size in sizes.items())


@pytest.mark.parametrize("batch", [1, 2, 4])
@pytest.mark.parametrize("new", [1, 2, 40, PREFILL_CHUNK])
def test_every_call_of_the_decoder_has_a_profile(manifest: Manifest, batch: int, new: int) -> None:
    found = profiles(manifest, "ar", Limits(4))
    sizes = {"batch": batch, "new": new, "slots": 10, "draws": 200}
    fitting = [profile.name for profile in found if fits(profile, sizes)]
    expected = "prefill" if new > 2 else "step" if batch == 1 else "batch_step"
    assert fitting and fitting[0] == expected


@pytest.mark.parametrize("batch", [1, 8])
def test_no_profile_fixes_every_size(manifest: Manifest, batch: int) -> None:
    for profile in profiles(manifest, "ar", Limits(batch)):
        positions = [profile.axes["batch"], profile.axes["new"]]
        assert any(axis.low < axis.high for axis in positions), profile.name


def test_the_prefill_profile_is_as_long_as_a_prefill(manifest: Manifest) -> None:
    def longest(made: Manifest, frames: int = 0) -> int:
        return profiles(made, "ar", Limits(1, frames))[-1].axes["new"].high

    short = replace(manifest, sizes={**manifest.sizes, "max_text": 8})
    assert longest(manifest) == PREFILL_CHUNK and longest(short, 40) == 8 + 1 + 20
    # the first call of a related model has all of the text
    for text, expected in ((40, PREFILL_CHUNK), (200, 200)):
        relative = replace(manifest, rules={"family": "vallex"}, sizes={**manifest.sizes, "max_text": text})
        assert longest(relative) == expected
    causal = replace(relative, rules={"family": "amphion", "whole_text": False})
    assert longest(causal) == PREFILL_CHUNK


def test_one_row_needs_no_batched_step(manifest: Manifest) -> None:
    assert [p.name for p in profiles(manifest, "ar", Limits(1))] == ["step", "prefill"]


def test_buckets_cover_every_length_once() -> None:
    for high in (1, 255, 256, 257, 400, 4096):
        found = buckets(high)
        assert [sum(b.low <= length <= b.high for b in found) for length in range(1, high + 1)] == [1] * high
        assert found[-1].high == high


def test_codec_lengths_are_whole_frames(manifest: Manifest) -> None:
    hop = manifest.codec["hop"]
    for profile in profiles(manifest, "codec_encoder", Limits()):
        span = profile.axes["samples"]
        assert not (span.low % hop or span.usual % hop or span.high % hop)


def test_fewer_frames_make_smaller_profiles(manifest: Manifest) -> None:
    small = profiles(manifest, "nar", Limits(1, 100))
    assert [profile.axes["frames"].high for profile in small] == [100]
    assert profiles(manifest, "ar", Limits(1, 100))[0].axes["draws"].high == 50


def test_shapes_put_fixed_and_named_axes_in_order() -> None:
    profile = Profile("p", {"batch": Range(1, 2, 4)})
    assert profile.shapes(("batch", 8)) == ((1, 8), (2, 8), (4, 8))


def test_wrong_limits_and_unknown_axes(manifest: Manifest) -> None:
    with pytest.raises(BackendError, match="expected at least 1 and 0"):
        Limits(0)
    with pytest.raises(BackendError, match="max frames is 401; expected at most the model's 400"):
        profiles(manifest, "nar", Limits(1, 401))
    with pytest.raises(BackendError, match="expected 0 < low <= usual <= high"):
        Range(2, 1, 3)
    with pytest.raises(BackendError, match="no profiles are known for graph 'other'"):
        profiles(manifest, "other", Limits())
    spec = GraphSpec("nar.onnx", (TensorSpec("x", "int64", ("batch", "speakers")),), ())
    changed = replace(manifest, graphs={**manifest.graphs, "nar": spec})
    with pytest.raises(BackendError, match=r"axes \['speakers'\] without a range"):
        profiles(changed, "nar", Limits())
