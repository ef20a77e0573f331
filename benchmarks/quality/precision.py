"""`bench precision`: the effect of a precision on logits and codes, measured without a judge.

The float32 graphs speak a text. At every precision both graphs then read exactly those codes. AR logits are
compared after several prefixes of the utterance, AR codes at every step (greedy decoding, the true codes fed
back), and NAR logits and codes at every stage. Noise is the root mean square of the difference from the
float32 logits, divided by the root mean square of the float32 logits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from valle2.benchmarks.report.provenance import measured_on
from valle2.benchmarks.report.tables import markdown
from valle2.benchmarks.stages import ARStage, EncodedSentence, ar_row, encode_sentences, nar_pass
from valle2.engine import find_graphs
from valle2.engine.bundle.contract import AR, NAR, PREFILL
from valle2.engine.bundle.precisions import STORED
from valle2.runtime import Request, Settings, Valle2
from valle2.runtime.types import Codes

GREEDY = Settings(top_p=0.0, threshold=1.0)
PREFIXES = 8
"""Prefixes of the utterance after which AR logits are compared."""


@dataclass(frozen=True, slots=True)
class Outputs:
    """Logits and codes of both graphs over the same speech.

    ar_logits: (PREFIXES, G, classes). ar_codes: (N,). nar_logits: (Q - 1, T, classes). nar_codes: (Q - 1, T).
    """

    ar_logits: NDArray[np.float32]
    ar_codes: Codes
    nar_logits: NDArray[np.float32]
    nar_codes: Codes


def precision(
    model: str, text: str, seed: int, threads: int, precisions: list[str], frames: int = 0
) -> dict[str, Any]:
    """Compare every precision with float32, over the first sentence of a text in the default voice.

    frames: length of the speech, for a model that never draws `<eos>`; 0 lets `<eos>` end it.
    """
    names = [STORED, *(name for name in precisions if name != STORED)]
    tts = Valle2.load(model, threads=threads, precision=STORED)
    voice = tts.voice(tts.default_voice())
    settings = Settings(0.0, threshold=1.0, seed=seed, max_frames=frames, loop_frames=0, retries=0)
    sentence = encode_sentences(tts, Request(text, voice, settings))[0]
    codes = tts.synthesize(text, voice, settings).codes
    reference, rows = outputs_for(tts, sentence, codes), {}
    for name in names:
        side = tts if name == STORED else Valle2.load(model, threads=threads, precision=name)
        found = reference if name == STORED else outputs_for(side, sentence, codes)
        rows[name] = row(reference, found) | {"mb": megabytes(side, name)}
    return {"precisions": rows, "frames": len(codes), "text": text} | measured_on(tts.manifest, seed, threads)


def outputs_for(tts: Valle2, sentence: EncodedSentence, codes: Codes) -> Outputs:
    """Both graphs over a sentence and its codes (T, Q)."""
    ar = ARStage(tts)
    group, past = ar.group_size, sentence.prompt[:, 0]
    draws = np.zeros((len(codes) // group + 1, group, 2), np.float32)
    row = ar_row(sentence.text, past, draws, GREEDY, sentence.start)
    ends = group * (np.linspace(0, len(codes), PREFIXES, endpoint=False).astype(int) // group)
    prefixes = [np.concatenate([past, codes[:end, 0]]) for end in ends]
    rows = [ar_row(sentence.text, prefix, draws[:1], GREEDY, sentence.start) for prefix in prefixes]
    logits = [ar.logits(one) for one in rows]
    passes = [nar_pass(tts, sentence, codes, stage) for stage in range(1, codes.shape[1])]
    return Outputs(
        np.stack(logits),
        ar.first_draws(row, codes[:, 0]),
        np.stack([stage_logits for stage_logits, _ in passes]),
        np.stack([stage_codes for _, stage_codes in passes]),
    )


def row(reference: Outputs, found: Outputs) -> dict[str, Any]:
    """Noise and agreement of AR and NAR."""
    return {
        "ar_noise": noise(reference.ar_logits, found.ar_logits),
        "ar_codes_percent": agreement(reference.ar_codes, found.ar_codes),
        "nar_noise": noise(reference.nar_logits, found.nar_logits),
        "nar_codes_percent": agreement(reference.nar_codes, found.nar_codes),
    }


def noise(reference: NDArray[np.float32], found: NDArray[np.float32]) -> float:
    """Root mean square of the difference, relative to the reference."""
    return round(float(np.sqrt(np.mean((found - reference) ** 2) / np.mean(reference**2))), 4)


def agreement(reference: Codes, found: Codes) -> float:
    """Percent of codes that are equal."""
    return round(100 * float(np.mean(reference == found)), 2)


def megabytes(tts: Valle2, name: str) -> dict[str, float]:
    """Size of the AR's and the NAR's files in MB. The AR's have those of its prefill graph."""
    found = find_graphs(tts.path, tts.manifest, name)

    def size(*graphs: str) -> float:
        files = [f for g in graphs if g in found for f in found[g].folder.glob(f"{g}.*")]
        return round(sum(file.stat().st_size for file in files) / 1e6, 1)

    return {AR: size(AR, PREFILL), NAR: size(NAR)}


def table(result: dict[str, Any]) -> str:
    """One line per precision."""
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
