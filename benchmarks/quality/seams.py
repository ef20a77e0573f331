"""Can the joints of a stream be told from the rest of its audio? It knows samples, never codes or models.

Every joint is compared with the other places of the same audio, one a millisecond, so that no level or voice
has to be known. By chance more of an audio's joints than of its places may fall where speech changes, at its
beginning for one; hence the whole utterance, spoken at once, is measured at the same places as a control.

- seam: the spectral flux at a joint is the largest distance (root mean square over the bins) between the log
  spectra of the 10 ms before and the 10 ms after a point, over points up to 30 ms later, which covers the
  cross-fade. What is kept is its rank, the share of the other places with less: 0.5 on average if the
  joints cannot be told from the rest (it is the area under the ROC curve), 1 if each of them stands out.
- click: the bend at a joint is the largest second difference of the samples within a quarter of a
  millisecond, over the median one within 5 ms. It is a click if it is larger by a quarter than at 99 % of the
  other places: less than one joint in a hundred by chance.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from valle2.runtime.audio.io import Audio, join

Places = NDArray[np.int64]
Floats = NDArray[np.float64]
STEP, FRAME, REACH, SHARP, NEAR = 0.001, 0.01, 0.03, 0.00025, 0.005
"""Seconds: between places, of a spectrum, of a seam, around a click, of what a click stands out from."""
POINTS = 12
FLOOR = 1e-3
"""What is added to amplitudes, so that silence is not compared with silence: -60 dB of full scale."""
BEND_FLOOR = 1e-4
RARE, MARGIN = 0.99, 1.25


def joint_scores(streamed: Sequence[Audio], whole: Sequence[Audio], rate: int) -> dict[str, float]:
    """Of a stream's pieces and of the whole's, one a sentence or pause: the number of joints, the sums of
    `seam` and `click` over them, and those of the whole at the same places.

    Nothing without joints, and if the two differ in length.
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
    """The first sample of every piece but a sentence's first."""
    ends, sentences = (np.cumsum([len(piece) for piece in pieces]) for pieces in (streamed, whole))
    return np.setdiff1d(ends, [0, *sentences]).astype(np.int64)


def others(joints: Places, length: int, rate: int) -> Places:
    """Places whose surroundings hold no seam."""
    places = np.arange(round(NEAR * rate), length - round(REACH * rate), round(STEP * rate))
    far: Places = places[np.abs(places[:, None] - joints).min(1) > round((REACH + FRAME) * rate)]
    return far


def seam_ranks(audio: Audio, joints: Places, rate: int) -> Floats:
    """`seam` of every joint: (J,)."""
    usual = flux(audio, others(joints, len(audio), rate), rate)
    ranks: Floats = (usual < flux(audio, joints, rate)[:, None]).mean(1)
    return ranks


def flux(audio: Audio, places: Places, rate: int) -> Floats:
    """The spectral flux at each place: (P,)."""
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
    """Is there a `click` at each joint? (J,)."""
    usual = np.quantile(bends(audio, others(joints, len(audio), rate), rate), RARE)
    return bends(audio, joints, rate) > MARGIN * usual


def bends(audio: Audio, places: Places, rate: int) -> Floats:
    """How much the wave bends at each place, beside its surroundings: (P,)."""
    sharp, near = round(SHARP * rate), round(NEAR * rate)
    bend = np.abs(np.diff(np.pad(audio.astype(np.float64), near + 1, mode="edge"), 2))
    around = np.lib.stride_tricks.sliding_window_view(bend, 2 * near)[places]
    found: Floats = around[:, near - sharp : near + sharp].max(1) / (np.median(around, 1) + BEND_FLOOR)
    return found
