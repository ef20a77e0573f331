"""Whether the joints of a stream stand out from the rest of its audio. This module knows samples alone.

Each joint is compared with the other places of the same audio, one per millisecond, so that neither level nor
voice has to be known. Joints may fall where speech changes more often than other places do, for example at
its beginning. Therefore the same utterance, spoken whole, is measured at the same places as a control.

- seam: the spectral flux at a joint. The flux at a point is the distance (root mean square over the bins)
  between the log spectra of the 10 ms before and the 10 ms after it. The largest flux of the 30 ms after the
  joint counts, which covers the cross-fade. The score is its rank: the share of other places with less flux.
  The mean is 0.5 if joints are like other places (it is the area under the ROC curve), and 1 if each joint
  stands out.
- click: the bend at a joint is the largest second difference of the samples within 0.25 ms, divided by the
  median within 5 ms. It is a click if it is at least 25 % larger than the bend at 99 % of the other places.
  By chance this happens at less than one joint in a hundred.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from valle2.runtime.audio.io import Audio, join

Places = NDArray[np.int64]
Floats = NDArray[np.float64]
STEP, FRAME, REACH, SHARP, NEAR = 0.001, 0.01, 0.03, 0.00025, 0.005
"""Seconds: between places, of one spectrum, after a joint, around a click, around a click's surroundings."""
POINTS = 12
FLOOR = 1e-3
"""Added to amplitudes, so that silence is not compared with silence: -60 dB of full scale."""
BEND_FLOOR = 1e-4
RARE, MARGIN = 0.99, 1.25


def joint_scores(streamed: Sequence[Audio], whole: Sequence[Audio], rate: int) -> dict[str, float]:
    """The number of joints, the sums of `seam` and `click` over them, and the same of the whole utterance.

    Args:
        streamed: the pieces of a stream. whole: the utterance spoken whole, one piece per sentence or pause.
        rate: samples per second.

    Returns:
        Fields of a `Score`; none if there are no joints, or if the two differ in length.
    """
    audio, control = join(streamed), join(whole)
    joints = joints_of(streamed, whole)
    if len(audio) != len(control) or not len(joints) or not len(others(joints, len(audio), rate)):
        return {}
    return {
        "joints": len(joints),
        "seam": float(seam_ranks(audio, joints, rate).sum()),
        "click": int(clicks(audio, joints, rate).sum()),
        "seam_whole": float(seam_ranks(control, joints, rate).sum()),
        "click_whole": int(clicks(control, joints, rate).sum()),
    }


def joints_of(streamed: Sequence[Audio], whole: Sequence[Audio]) -> Places:
    """The first sample of every piece, except the first piece of a sentence."""
    ends, sentences = (np.cumsum([len(piece) for piece in pieces]) for pieces in (streamed, whole))
    return np.setdiff1d(ends, [0, *sentences]).astype(np.int64)


def others(joints: Places, length: int, rate: int) -> Places:
    """Places that are not near a joint."""
    places = np.arange(round(NEAR * rate), length - round(REACH * rate), round(STEP * rate))
    far: Places = places[np.abs(places[:, None] - joints).min(1) > round((REACH + FRAME) * rate)]
    return far


def seam_ranks(audio: Audio, joints: Places, rate: int) -> Floats:
    """(J,): the `seam` of every joint."""
    elsewhere = flux(audio, others(joints, len(audio), rate), rate)
    ranks: Floats = (elsewhere < flux(audio, joints, rate)[:, None]).mean(1)
    return ranks


def flux(audio: Audio, places: Places, rate: int) -> Floats:
    """(P,): the spectral flux at each place."""
    size, reach = round(FRAME * rate), round(REACH * rate)
    window, padded = np.hanning(size), np.pad(audio.astype(np.float64), (size, reach + size))
    points = places[:, None] + np.linspace(0, reach, POINTS).astype(np.int64)
    frames = np.lib.stride_tricks.sliding_window_view(padded, size)
    floor = FLOOR**2 * float((window**2).sum())
    before, after = (
        np.log(np.abs(np.fft.rfft(frames[at] * window)) ** 2 + floor) for at in (points, points + size)
    )
    found: Floats = np.sqrt(((after - before) ** 2).mean(-1)).max(1)
    return found


def clicks(audio: Audio, joints: Places, rate: int) -> NDArray[np.bool_]:
    """(J,): whether there is a click at each joint."""
    elsewhere = np.quantile(bends(audio, others(joints, len(audio), rate), rate), RARE)
    return bends(audio, joints, rate) > MARGIN * elsewhere


def bends(audio: Audio, places: Places, rate: int) -> Floats:
    """(P,): the bend of the wave at each place, relative to its surroundings."""
    sharp, near = round(SHARP * rate), round(NEAR * rate)
    bend = np.abs(np.diff(np.pad(audio.astype(np.float64), near + 1, mode="edge"), 2))
    around = np.lib.stride_tricks.sliding_window_view(bend, 2 * near)[places]
    found: Floats = around[:, near - sharp : near + sharp].max(1) / (np.median(around, 1) + BEND_FLOOR)
    return found
