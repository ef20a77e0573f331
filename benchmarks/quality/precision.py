"""What a precision costs before anything is heard: noise of the logits, and codes that change.

The float32 graphs speak a text; at every precision both models then see just those codes. AR logits are
compared after parts of the utterance, AR codes at every step (greedy, the true codes fed), the NAR's logits
and codes at every stage. Noise = root mean square of the difference from float32's logits over theirs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from valle2.benchmarks.quality.redraws import first_draws
from valle2.benchmarks.report.report import markdown, measured_on
from valle2.engine import Backend, find_graphs
from valle2.engine.bundle.nar_inputs import NARInputs
from valle2.engine.bundle.precisions import STORED
from valle2.runtime import Request, Settings, Valle2
from valle2.runtime.generation.sequence import Sequence
from valle2.runtime.generation.token_layout import check_prompt
from valle2.runtime.types import Codes

Arrays = dict[str, NDArray[Any]]
GREEDY = Settings(top_p=0.0, threshold=1.0)
PARTS = 8
"""Prefixes of the utterance after which AR logits are compared."""


@dataclass(frozen=True, slots=True)
class Spoken:
    """words, text: ids as the AR and the NAR read them. prompt: (P, Q). codes: (T, Q), what float32 made."""

    words: Codes
    text: Codes
    prompt: Codes
    codes: Codes
    start: int


@dataclass(frozen=True, slots=True)
class Found:
    """Logits and codes of both graphs over the same speech."""

    ar_logits: NDArray[np.float32]
    ar_codes: Codes
    nar_logits: NDArray[np.float32]
    nar_codes: Codes


def precision(
    model: str, text: str, seed: int, threads: int, precisions: list[str], frames: int = 0
) -> dict[str, Any]:
    """Compare every precision with float32. frames: what is spoken, for a model that never ends."""
    names = [STORED, *(name for name in precisions if name != STORED)]
    tts = Valle2.load(model, threads=threads, precision=STORED)
    spoken = speak(tts, text, Settings(0.0, threshold=1.0, seed=seed, max_frames=frames))
    reference, rows = probe(tts, spoken), {}
    for name in names:
        side = tts if name == STORED else Valle2.load(model, threads=threads, precision=name)
        found = reference if name == STORED else probe(side, spoken)
        rows[name] = row(reference, found) | {"mb": megabytes(side, name)}
    return {"precisions": rows, "frames": len(spoken.codes), "text": text} | measured_on(tts, seed, threads)


def speak(tts: Valle2, text: str, settings: Settings) -> Spoken:
    """The first sentence of a text in the default voice."""
    voice = tts.voice(tts.default_voice())
    words, plain = tts.model.layout.texts(tts.encode(Request(text, voice, settings)).texts[0])
    group = tts.model.ar.group_size
    prompt = check_prompt(tts.model.layout, voice.codes)[len(voice.codes) % group :]
    codes = tts.synthesize(text, voice, settings).codes
    return Spoken(words, plain, prompt, codes, int(tts.model.layout.code_bos))


def probe(tts: Valle2, spoken: Spoken) -> Found:
    """Both graphs over what was spoken."""
    slots, codes = tts.model.ar, spoken.codes
    draws = np.zeros((len(codes) // slots.group_size + 1, slots.group_size, 2), np.float32)
    row = Sequence(spoken.words, spoken.prompt[:, 0], draws, GREEDY, spoken.start)
    ends = np.linspace(0, len(codes), PARTS, endpoint=False).astype(int) // slots.group_size
    ar = [ar_logits(tts, spoken, int(end) * slots.group_size) for end in ends]
    passes = [nar_pass(tts.model.nar.backend, spoken, stage) for stage in range(1, codes.shape[1])]
    return Found(
        np.stack(ar),
        first_draws(tts, row, codes[:, 0]),
        np.stack([found["logits"][0] for found in passes]),
        np.stack([found["codes_out"][0] for found in passes]),
    )


def ar_logits(tts: Valle2, spoken: Spoken, frames: int) -> NDArray[np.float32]:
    """AR logits (G, classes) after the prompt and the first frames, by one call with empty caches."""
    slots = tts.model.ar
    row = Sequence(
        spoken.words,
        np.concatenate([spoken.prompt[:, 0], spoken.codes[:frames, 0]]),
        np.zeros((1, slots.group_size, 2), np.float32),
        GREEDY,
        spoken.start,
    )
    slots.write_settings(0, row)
    first = slice(0, 1)
    fixed = {**slots.fixed, **slots.caches}
    feeds = {name: buffer.rows(first).read() for name, buffer in fixed.items()}
    whole = slots.chunk_inputs(slots.prefix(row), 0, row.positions(slots.group_size))
    feeds |= {name: buffer.read() for name, buffer in whole.items()}
    return np.asarray(slots.backend.run(feeds, ("logits",))["logits"][0])


def nar_pass(backend: Backend, spoken: Spoken, stage: int) -> Arrays:
    """One stage over float32's codes: `logits` and `codes_out`."""
    codes = np.concatenate([spoken.prompt, spoken.codes])
    inputs = NARInputs(
        text=spoken.text[None],
        text_lengths=np.array([len(spoken.text)]),
        codes=codes[None],
        prompt_lengths=np.array([len(spoken.prompt)]),
        frame_lengths=np.array([len(codes)]),
        stage=np.array(stage),
    )
    return backend.run(inputs.feeds(), ("logits", "codes_out"))


def row(reference: Found, found: Found) -> dict[str, Any]:
    """Noise and agreement, the AR's and the NAR's."""
    return {
        "ar_noise": noise(reference.ar_logits, found.ar_logits),
        "ar_codes_percent": agreement(reference.ar_codes, found.ar_codes),
        "nar_noise": noise(reference.nar_logits, found.nar_logits),
        "nar_codes_percent": agreement(reference.nar_codes, found.nar_codes),
    }


def noise(whole: NDArray[np.float32], small: NDArray[np.float32]) -> float:
    return round(float(np.sqrt(np.mean((small - whole) ** 2) / np.mean(whole**2))), 4)


def agreement(whole: Codes, small: Codes) -> float:
    """Percent of codes that are the same."""
    return round(100 * float(np.mean(whole == small)), 2)


def megabytes(tts: Valle2, name: str) -> dict[str, float]:
    """Files of the AR and the NAR as they are stored."""
    found = find_graphs(tts.path, tts.manifest, name)
    return {
        graph: round(sum(file.stat().st_size for file in found[graph].folder.glob(f"{graph}.*")) / 1e6, 1)
        for graph in ("ar", "nar")
    }


def table(result: dict[str, Any]) -> str:
    """A line a precision."""
    head = ["precision", "AR noise", "AR codes, %", "NAR noise", "NAR codes, %", "AR, MB", "NAR, MB"]
    rows = [
        [
            name,
            r["ar_noise"],
            r["ar_codes_percent"],
            r["nar_noise"],
            r["nar_codes_percent"],
            *r["mb"].values(),
        ]
        for name, r in result["precisions"].items()
    ]
    return markdown(head, rows)
