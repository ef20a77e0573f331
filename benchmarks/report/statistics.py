"""Statistics that several benchmarks report.

Terms of every benchmark:

- RTF (real-time factor): compute seconds / audio seconds of one stream. Lower is better.
- Throughput: audio seconds per second, over all streams.
- First audio: from the request to the first playable sample.
- Step: one AR call that decodes G codes of every row.
- Prefill: everything before the first decoded group.
- Underrun: playback waits for audio.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

EDGE = 100
UNDERRUN_SECONDS = 0.1


def percentiles(seconds: Sequence[float], *points: int) -> dict[str, float]:
    """Percentiles in milliseconds, named `p50`, `p95`, ..."""
    return {f"p{point}": round(1000 * float(np.percentile(seconds, point)), 2) for point in points}


def ratio_percentiles(values: Sequence[float], *points: int) -> dict[str, float]:
    """Percentiles of numbers without a unit, with the same names."""
    return {f"p{point}": round(float(np.percentile(values, point)), 4) for point in points}


def share(amount: float, rate: float, seconds: float) -> float | None:
    """`amount` over what `rate` allows in `seconds`, in three digits; None where no rate was measured."""
    return float(f"{amount / rate / seconds:.3g}") if rate else None


def slope(points: Mapping[int, float]) -> float:
    """Slope of the least-squares line; 0 for fewer than two points."""
    return float(np.polyfit(list(points), list(points.values()), 1)[0]) if len(points) > 1 else 0.0


def growth(mib: Sequence[float]) -> dict[str, float]:
    """How memory grows over requests: the mean at both ends, and the slope over the second half.

    The slope leaves out the first half, in which buffers grow to their final size.
    """
    edge = min(EDGE, max(1, len(mib) // 2))
    later = dict(enumerate(mib[len(mib) // 2 :]))
    return {
        "first_mib": round(float(np.mean(mib[:edge])), 2),
        "last_mib": round(float(np.mean(mib[-edge:])), 2),
        "mib_per_100_requests": round(100 * slope(later), 3),
    }


def silences(heard: Sequence[tuple[float, float]]) -> list[float]:
    """Seconds of every silence that a player makes: a piece arrives after the time at which it is due.

    The player starts with the first piece. Another piece is due when all audio before it has been played.

    Args:
        heard: (arrival time, seconds of audio) of every piece, in order.
    """
    if not heard:
        return []
    played_until, found = heard[0][0], []
    for when, seconds in heard:
        if when > played_until:
            found.append(when - played_until)
        played_until = max(played_until, when) + seconds
    return found


def longest_wait(heard: Sequence[tuple[float, float]]) -> float:
    """The longest of `silences` in seconds; 0 if there is none."""
    return max(silences(heard), default=0.0)
