"""Optimisation profiles: the ranges of sizes that a TensorRT engine is built for, from the manifest.

A profile gives the least, usual and greatest size of every named axis of a graph. TensorRT chooses kernels
for each profile and shares the weights. So prefill, single steps and batched steps have their own profiles.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from valle2.engine.bundle.contract import AR, DECODER, ENCODER, NAR, STREAM
from valle2.engine.bundle.manifest import Manifest
from valle2.engine.bundle.schema import MAX_WINDOW
from valle2.engine.bundle.specs import GraphSpec
from valle2.engine.errors import BackendError

PREFILL_CHUNK = 64
"""Positions that the runtime prefills between two steps (docs/architecture.md)."""
FIRST_BUCKET, BUCKET_GROWTH = 256, 4
"""End of the first range of lengths, and the factor from one range to the next."""


@dataclass(frozen=True, slots=True)
class Range:
    """Least, usual and greatest size of an axis. TensorRT chooses kernels for the usual one."""

    low: int
    usual: int
    high: int

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.usual <= self.high:
            raise BackendError(
                f"range {self.low}, {self.usual}, {self.high}; expected 0 < low <= usual <= high"
            )


@dataclass(frozen=True, slots=True)
class Limits:
    """The greatest batch and length of an engine.

    Args:
        max_batch: rows. max_frames: frames of prompt and speech together, 0 for the model's own limit.
    """

    max_batch: int = 1
    max_frames: int = 0

    def __post_init__(self) -> None:
        if self.max_batch < 1 or self.max_frames < 0:
            raise BackendError(
                f"max batch {self.max_batch} and max frames {self.max_frames}; expected at least 1 and 0"
            )


@dataclass(frozen=True, slots=True)
class Profile:
    """One profile: its name and the range of every named axis."""

    name: str
    axes: Mapping[str, Range]

    def shapes(self, axes: tuple[int | str, ...]) -> tuple[tuple[int, ...], ...]:
        """The least, usual and greatest shape of an input with these axes."""
        ranges = [Range(a, a, a) if isinstance(a, int) else self.axes[a] for a in axes]
        return tuple(tuple(getattr(r, part) for r in ranges) for part in ("low", "usual", "high"))


def upto(high: int, usual: int | None = None, low: int = 1) -> Range:
    """A range up to `high`. usual: by default `high`; it is moved into the range if it lies outside."""
    return Range(low, max(low, min(usual or high, high)), high)


def buckets(high: int) -> list[Range]:
    """Lengths 1..high in a few ranges, whose usual size is their upper end."""
    bounds = [FIRST_BUCKET]
    while bounds[-1] < high:
        bounds.append(bounds[-1] * BUCKET_GROWTH)
    ends = [min(bound, high) for bound in bounds]
    return [Range(low + 1, end, end) for low, end in zip([0, *ends], ends, strict=False)]


def positions(manifest: Manifest, frames: int) -> int:
    """Positions of a row's cache: text, `<bos>` and groups, within the length that the graph fixes."""
    longest = manifest.sizes["max_text"] + 1 + frames // manifest.sizes["group_size"]
    return min(longest, manifest.cache_length or longest)


def whole_text(manifest: Manifest) -> bool:
    """Must one call hold all text of a row? For related models it must, unless their bundle says no."""
    return bool(manifest.rules.get("whole_text", "family" in manifest.rules))


def longest_prefill(manifest: Manifest, frames: int) -> int:
    """The most positions that the AR prefills in one call."""
    chunk = max(PREFILL_CHUNK, manifest.sizes["max_text"]) if whole_text(manifest) else PREFILL_CHUNK
    return min(chunk, positions(manifest, frames))


def ar_profiles(manifest: Manifest, limits: Limits, frames: int) -> list[Profile]:
    """The step of one row, the step of a batch, and prefill. These are all the calls of the AR.

    No profile fixes all of its sizes. For such a profile TensorRT-RTX keeps a second copy of every weight in
    the layout of a matrix-vector product (at full size 643 MB instead of 337).
    """
    groups = frames // manifest.sizes["group_size"]
    shared = {"draws": upto(groups), "slots": upto(MAX_WINDOW)}
    one, many, step = Range(1, 1, 1), upto(limits.max_batch), Range(1, 1, 2)
    found = [Profile("step", {"batch": one, "new": step, **shared})]
    if limits.max_batch > 1:
        found.append(Profile("batch_step", {"batch": many, "new": step, **shared}))
    usual, new = upto(limits.max_batch, 1), upto(longest_prefill(manifest, frames), PREFILL_CHUNK)
    return [*found, Profile("prefill", {"batch": usual, "new": new, **shared})]


def nar_profiles(manifest: Manifest, limits: Limits, frames: int) -> list[Profile]:
    """Ranges of lengths over the frames of prompt and speech."""
    longest = manifest.sizes["max_text"]
    fixed = {"batch": upto(limits.max_batch, 1), "tokens": upto(longest, longest // 4)}
    return [Profile(f"frames_{bucket.high}", {"frames": bucket, **fixed}) for bucket in buckets(frames)]


def encoder_profiles(manifest: Manifest, limits: Limits, frames: int) -> list[Profile]:
    """Ranges of lengths over samples, in whole frames."""
    hop = manifest.codec["hop"]
    spans = [Range(b.low * hop, b.usual * hop, b.high * hop) for b in buckets(frames)]
    batch = upto(limits.max_batch, 1)
    return [Profile(f"samples_{span.high}", {"batch": batch, "samples": span}) for span in spans]


def decoder_profiles(manifest: Manifest, limits: Limits, frames: int) -> list[Profile]:
    """Ranges of lengths over frames."""
    batch = upto(limits.max_batch, 1)
    return [Profile(f"frames_{b.high}", {"batch": batch, "frames": b}) for b in buckets(frames)]


PROFILES: dict[str, Callable[[Manifest, Limits, int], list[Profile]]] = {
    AR: ar_profiles,
    NAR: nar_profiles,
    ENCODER: encoder_profiles,
    DECODER: decoder_profiles,
    STREAM: decoder_profiles,
}


def profiles(manifest: Manifest, graph: str, limits: Limits) -> list[Profile]:
    """The profiles of a graph.

    Raises:
        BackendError: no profile is known for the graph or one of its axes, or the limits are beyond the
            model's.
    """
    found = unchecked_profiles(manifest, graph, limits)
    unknown = sorted(named_axes(manifest.graphs[graph]) - set(found[0].axes))
    if unknown:
        raise BackendError(f"graph {graph} has axes {unknown} without a range; export it with this valle2")
    return found


def unchecked_profiles(manifest: Manifest, graph: str, limits: Limits) -> list[Profile]:
    """The profiles of a graph, whose axes are not checked."""
    most = manifest.sizes["max_frames"]
    if limits.max_frames > most:
        raise BackendError(f"max frames is {limits.max_frames}; expected at most the model's {most}")
    if graph not in PROFILES:
        raise BackendError(
            f"no profiles are known for graph {graph!r}; expected one of {', '.join(PROFILES)}"
        )
    return PROFILES[graph](manifest, limits, limits.max_frames or most)


def largest_sizes(manifest: Manifest, graph: str, limits: Limits) -> dict[str, int]:
    """The greatest size of every named axis, including a cache without a fixed length."""
    ranges = unchecked_profiles(manifest, graph, limits)[-1].axes
    cache = positions(manifest, limits.max_frames or manifest.sizes["max_frames"])
    return {"cache": cache} | {axis: found.high for axis, found in ranges.items()}


def named_axes(spec: GraphSpec) -> set[str]:
    """The dynamic axes of a graph's inputs."""
    return {axis for tensor in spec.inputs for axis in tensor.axes if isinstance(axis, str)}
