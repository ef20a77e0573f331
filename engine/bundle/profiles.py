"""Optimisation profiles: the ranges of sizes that one engine is built for, derived from the manifest.

A profile gives every named axis of a graph its least, likeliest and greatest size. Kernels are chosen per
profile while the weights are shared, so prefill, single steps and batched steps each get their own.
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
"""Positions that the runtime prefills between two steps; docs/architecture.md has the reason."""
FIRST_BUCKET = 256
BUCKET_GROWTH = 4


@dataclass(frozen=True, slots=True)
class Range:
    """Least, likeliest and greatest size of an axis."""

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
    """What an engine must take at the most.

    Args:
        max_batch: rows. max_frames: frames of prompt and target together; 0 takes the model's own limit.
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
        """The least, likeliest and greatest shape of an input with these axes."""
        ranges = [Range(a, a, a) if isinstance(a, int) else self.axes[a] for a in axes]
        return tuple(tuple(getattr(r, part) for r in ranges) for part in ("low", "usual", "high"))


def upto(high: int, usual: int | None = None, low: int = 1) -> Range:
    """A range whose likeliest size is its greatest unless given; kept in order for small limits."""
    return Range(low, max(low, min(usual or high, high)), high)


def buckets(high: int) -> list[Range]:
    """Lengths 1..high in a few ranges, each built for its upper end."""
    bounds = [FIRST_BUCKET]
    while bounds[-1] < high:
        bounds.append(bounds[-1] * BUCKET_GROWTH)
    ends = [min(bound, high) for bound in bounds]
    return [Range(low + 1, end, end) for low, end in zip([0, *ends], ends, strict=False)]


def positions(manifest: Manifest, frames: int) -> int:
    """Cache positions of a row: text, `<bos>` and groups, at most those that the graph fixes."""
    longest = manifest.sizes["max_text"] + 1 + frames // manifest.sizes["group_size"]
    return min(longest, manifest.cache_length or longest)


def whole_text(manifest: Manifest) -> bool:
    """Must all of a row's text come in one call? So it is assumed of relatives whose bundle does not say."""
    return bool(manifest.rules.get("whole_text", "family" in manifest.rules))


def longest_prefill(manifest: Manifest, frames: int) -> int:
    """Most positions that the decoder prefills in one call."""
    chunk = max(PREFILL_CHUNK, manifest.sizes["max_text"]) if whole_text(manifest) else PREFILL_CHUNK
    return min(chunk, positions(manifest, frames))


def ar_profiles(manifest: Manifest, limits: Limits, frames: int) -> list[Profile]:
    """One row's step, a batch's step, and prefill: together every call that the decoder makes.

    No profile fixes all its sizes: TensorRT-RTX would keep a second copy of every weight for it, in the
    layout of a matrix-vector product (full size: 643 MB instead of 337).
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
    """Length buckets over prompt and target frames."""
    longest = manifest.sizes["max_text"]
    fixed = {"batch": upto(limits.max_batch, 1), "tokens": upto(longest, longest // 4)}
    return [Profile(f"frames_{bucket.high}", {"frames": bucket, **fixed}) for bucket in buckets(frames)]


def encoder_profiles(manifest: Manifest, limits: Limits, frames: int) -> list[Profile]:
    """Length buckets over samples, whole frames each."""
    hop = manifest.codec["hop"]
    spans = [Range(b.low * hop, b.usual * hop, b.high * hop) for b in buckets(frames)]
    batch = upto(limits.max_batch, 1)
    return [Profile(f"samples_{span.high}", {"batch": batch, "samples": span}) for span in spans]


def decoder_profiles(manifest: Manifest, limits: Limits, frames: int) -> list[Profile]:
    """Length buckets over frames."""
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
        BackendError: the manifest has a graph or an axis that no profile is known for, or the limits are
            beyond the model.
    """
    found = listed(manifest, graph, limits)
    unknown = sorted(named_axes(manifest.graphs[graph]) - set(found[0].axes))
    if unknown:
        raise BackendError(f"graph {graph} has axes {unknown} without a range; export it with this valle2")
    return found


def listed(manifest: Manifest, graph: str, limits: Limits) -> list[Profile]:
    """The table's profiles of a graph, before its axes are looked at."""
    most = manifest.sizes["max_frames"]
    if limits.max_frames > most:
        raise BackendError(f"max frames is {limits.max_frames}; expected at most the model's {most}")
    if graph not in PROFILES:
        raise BackendError(
            f"no profiles are known for graph {graph!r}; expected one of {', '.join(PROFILES)}"
        )
    return PROFILES[graph](manifest, limits, limits.max_frames or most)


def largest_sizes(manifest: Manifest, graph: str, limits: Limits) -> dict[str, int]:
    """The greatest size of every named axis, that of a cache without a fixed length among them."""
    ranges = listed(manifest, graph, limits)[-1].axes
    cache = positions(manifest, limits.max_frames or manifest.sizes["max_frames"])
    return {"cache": cache} | {axis: found.high for axis, found in ranges.items()}


def named_axes(spec: GraphSpec) -> set[str]:
    """The dynamic axes of a graph's inputs."""
    return {axis for tensor in spec.inputs for axis in tensor.axes if isinstance(axis, str)}
