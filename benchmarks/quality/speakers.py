"""The prompts of a sweep: the model's own voices or recordings, as they are or of a given length."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path

import numpy as np
import soxr
from numpy.typing import NDArray

from valle2.benchmarks.quality.forms import FORMS, RATE, Floats
from valle2.benchmarks.quality.judges import Judges
from valle2.engine.errors import Valle2Error
from valle2.runtime import Prompt, Valle2
from valle2.runtime.audio.io import read_recording
from valle2.runtime.tts import MAX_RECORDING_SECONDS, MIN_PROMPT_SECONDS
from valle2.runtime.types import Codes

TOLERANCE = 0.35
FORMATS = (".wav", ".flac")


@dataclass(frozen=True, slots=True)
class Speaker:
    """prompt: what the model gets. voice: (256,) unit vector of the speaker."""

    prompt: Prompt
    voice: NDArray[np.float32] = field(repr=False)


def own_speakers(tts: Valle2, judges: Judges) -> list[Speaker]:
    """The model's own voices."""
    return [speaker(tts, judges, tts.voice(name)) for name in tts.voices()]


def speaker(tts: Valle2, judges: Judges, prompt: Prompt) -> Speaker:
    codec = tts.need_codec()
    return Speaker(prompt, judges.embed(codec.decode(prompt.codes), codec.sample_rate))


def recordings(folder: Path) -> list[Path]:
    """The sound files below a folder, sorted."""
    return sorted(path for path in folder.rglob("*") if path.suffix in FORMATS)


def recorded_speakers(
    tts: Valle2, judges: Judges, folder: Path, seconds: float = 0.0, *, prepared: bool = True, form: str = ""
) -> list[Speaker]:
    """Speakers from recordings `FOLDER/NAME.wav` (or .flac), or several of one in `FOLDER/SPEAKER/`.

    Each recording is a prompt, with its transcript in a .txt file of the same name. The first recordings of
    all speakers come before the second ones. With `seconds` each speaker has one prompt, joined from as many
    recordings as reach that length. `prepared=False` leaves the recordings as they are.
    form: what is done to them first, one of `FORMS`.

    Raises:
        Valle2Error: a transcript is missing, or there are no recordings.
    """
    found = defaultdict(list)
    for path in recordings(folder):
        try:
            transcript = path.with_suffix(".txt").read_text(encoding="utf-8").strip()
        except OSError:
            raise Valle2Error(
                f"{path} has no transcript; write its words to {path.stem}.txt in the same folder"
            ) from None
        name = path.parent.name if path.parent != folder else path.stem
        sent = FORMS[form](sound_at(path, RATE)) if form else path
        made = tts.prompt(sent, transcript, name)
        found[name].append(made if prepared else replace(made, codes=codes_as_recorded(tts, sent)))
    if not found:
        raise Valle2Error(f"{folder} has no recordings; expected NAME.wav with its words in NAME.txt")
    rate = tts.need_codec().frame_rate
    if seconds:
        prompts = [joined(several, seconds * rate) for several in found.values()]
    else:
        prompts = [one for turn in zip_longest(*found.values()) for one in turn if one]
    return [speaker(tts, judges, prompt) for prompt in prompts]


def sound_at(source: Path | bytes, rate: int) -> Floats:
    """A recording (N,) at a rate in Hz, as it is: the mean of its channels."""
    recording = read_recording(source, MIN_PROMPT_SECONDS, MAX_RECORDING_SECONDS)
    return np.asarray(soxr.resample(recording.samples.mean(axis=1), recording.rate, rate), np.float64)


def codes_as_recorded(tts: Valle2, sent: Path | bytes) -> Codes:
    """The codes (T, Q) of a recording without `runtime.audio.prepare`, but for its channels and its rate."""
    codec = tts.need_codec()
    return codec.encode(sound_at(sent, codec.sample_rate).astype(np.float32))


def joined(prompts: Sequence[Prompt], frames: float) -> Prompt:
    """One prompt of the first recordings that together reach `frames` frames."""
    used = [prompts[0]]
    for prompt in prompts[1:]:
        if sum(len(p.codes) for p in used) < frames:
            used.append(prompt)
    return replace(
        used[0],
        codes=np.concatenate([p.codes for p in used]),
        transcript=" ".join(p.transcript for p in used),
    )


def shortened(tts: Valle2, judges: Judges, speakers: Sequence[Speaker], seconds: float) -> list[Speaker]:
    """Prompts cut at the word end nearest to `seconds`, with the words that whisper hears as transcript.

    Speakers without a word end near enough (within `TOLERANCE` of `seconds`) are left out.
    """
    codec, found = tts.need_codec(), []
    for one in speakers:
        heard = judges.word_ends(codec.decode(one.prompt.codes), codec.sample_rate)
        if not heard:
            continue
        count = min(range(len(heard)), key=lambda i: abs(heard[i][1] - seconds)) + 1
        end = heard[count - 1][1]
        if abs(end - seconds) <= TOLERANCE * seconds:
            codes = one.prompt.codes[: round(end * codec.frame_rate)]
            transcript = " ".join(word for word, _ in heard[:count])
            found.append(replace(one, prompt=replace(one.prompt, codes=codes, transcript=transcript)))
    return found
