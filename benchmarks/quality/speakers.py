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

from valle2.benchmarks.quality.forms import FORMS, RATE, Floats, wav
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


def own_speakers(tts: Valle2, judges: Judges, seconds: float = 0.0) -> list[Speaker]:
    """The model's own voices, with their prompts or with prompts of a length (`shortened`)."""
    found = [speaker(tts, judges, tts.voice(name)) for name in tts.voices()]
    if not seconds:
        return found
    codec = tts.need_codec()
    sounds = [soxr.resample(codec.decode(one.prompt.codes), codec.sample_rate, RATE) for one in found]
    return shortened(tts, judges, list(zip(found, sounds, strict=True)), seconds)


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
    all speakers come before the second ones. With `seconds` each speaker has one prompt of that length,
    cut from as many recordings as reach it (`shortened`). `prepared=False` leaves the recordings as they are.
    form: what is done to them first, one of `FORMS`.

    Raises:
        Valle2Error: a transcript is missing, or there are no recordings.
    """
    found = defaultdict[str, list[tuple[Path | bytes, str]]](list)
    for path in recordings(folder):
        try:
            transcript = path.with_suffix(".txt").read_text(encoding="utf-8").strip()
        except OSError:
            raise Valle2Error(
                f"{path} has no transcript; write its words to {path.stem}.txt in the same folder"
            ) from None
        name = path.parent.name if path.parent != folder else path.stem
        found[name].append((FORMS[form](sound_at(path, RATE)) if form else path, transcript))
    if not found:
        raise Valle2Error(f"{folder} has no recordings; expected NAME.wav with its words in NAME.txt")
    if not seconds:
        prompts = [[prompt_of(tts, name, *one, prepared) for one in sent] for name, sent in found.items()]
        return [speaker(tts, judges, one) for turn in zip_longest(*prompts) for one in turn if one]
    codec, whole = tts.need_codec(), list[tuple[Speaker, Floats]]()
    for name, sent in found.items():
        sound = joined([sound_at(source, RATE) for source, _ in sent], seconds * RATE)
        codes = codec.encode(soxr.resample(sound, RATE, codec.sample_rate).astype(np.float32))
        whole.append((speaker(tts, judges, Prompt(codes, sent[0][1], name)), sound))
    return shortened(tts, judges, whole, seconds)


def prompt_of(tts: Valle2, name: str, sent: Path | bytes, transcript: str, prepared: bool) -> Prompt:
    """A recording's prompt, with the codes of the recording as it is unless it is to be prepared."""
    made = tts.prompt(sent, transcript, name)
    return made if prepared else replace(made, codes=codes_as_recorded(tts, sent))


def sound_at(source: Path | bytes, rate: int) -> Floats:
    """A recording (N,) at a rate in Hz, as it is: the mean of its channels."""
    recording = read_recording(source, MIN_PROMPT_SECONDS, MAX_RECORDING_SECONDS)
    return np.asarray(soxr.resample(recording.samples.mean(axis=1), recording.rate, rate), np.float64)


def codes_as_recorded(tts: Valle2, sent: Path | bytes) -> Codes:
    """The codes (T, Q) of a recording without `runtime.audio.prepare`, but for its channels and its rate."""
    codec = tts.need_codec()
    return codec.encode(sound_at(sent, codec.sample_rate).astype(np.float32))


def joined(sounds: Sequence[Floats], samples: float) -> Floats:
    """The first recordings end to end that together have so many samples."""
    used = [sounds[0]]
    for sound in sounds[1:]:
        if sum(map(len, used)) < samples:
            used.append(sound)
    return np.concatenate(used)


def shortened(
    tts: Valle2, judges: Judges, speakers: Sequence[tuple[Speaker, Floats]], seconds: float
) -> list[Speaker]:
    """Prompts made of recordings that stop at the word end nearest to `seconds`, as users' may.

    The transcript is what whisper hears in them. Speakers without a word end near enough (within `TOLERANCE`
    of `seconds`) are left out.

    Args:
        speakers: each with its recording (N,) at RATE.
    """
    found = []
    for one, sound in speakers:
        heard = judges.word_ends(sound.astype(np.float32), RATE)
        if not heard:
            continue
        count = min(range(len(heard)), key=lambda i: abs(heard[i][1] - seconds)) + 1
        end = heard[count - 1][1]
        if abs(end - seconds) <= TOLERANCE * seconds:
            transcript = " ".join(word for word, _ in heard[:count])
            made = tts.prompt(wav(sound[: round(end * RATE)]), transcript, one.prompt.name)
            found.append(replace(one, prompt=made))
    return found
