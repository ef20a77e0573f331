"""How often repetition-aware sampling draws again: the finished codes are decoded once more, with the same
random numbers and the rule off, each step given the true codes; what is drawn then is the first draw.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from valle2.runtime import Request, Speech, Valle2
from valle2.runtime.generation.sampling import repeats_too_often, uniforms
from valle2.runtime.generation.sequence import Sequence
from valle2.runtime.generation.token_layout import check_prompt
from valle2.runtime.types import Codes


def count_redraws(tts: Valle2, request: Request, speech: Speech) -> tuple[int, int]:
    """-> codes that were drawn again, codes drawn; (0, 0) for a text of several sentences or candidates."""
    sentences = list(tts.sentences(request))
    if len(sentences) != 1 or request.settings.candidates != 1 or not len(speech.codes):
        return 0, 0
    rules, group = tts.model.layout, tts.model.ar.group_size
    words, _ = rules.texts(sentences[0])
    prompt = check_prompt(rules, request.prompt.codes)
    past = prompt[len(prompt) % group :, 0]
    codes = speech.codes[:, 0]
    draws = uniforms(request.settings.seed, 0, len(codes) // group + 1, group)
    row = Sequence(words, past, draws, replace(request.settings, threshold=1.0), int(rules.code_bos))
    first = first_draws(tts, row, codes)
    drawn = len(codes) + (speech.finish_reason == "eos")
    history = np.concatenate([past, codes])
    window, threshold = request.settings.window, request.settings.threshold
    redrawn = sum(
        repeats_too_often(int(first[at]), history[: len(past) + at], window, threshold)
        for at in range(min(drawn, len(first)))
    )
    return redrawn, drawn


def first_draws(tts: Valle2, row: Sequence, codes: Codes) -> Codes:
    """What the nucleus gives at every slot after the true codes: (N,), N at least len(codes)."""
    slots = tts.model.ar
    group, steps = slots.group_size, len(row.uniforms)
    true = np.zeros(steps * group, np.int64)
    true[: len(codes)] = codes
    found = []
    slots.enter(0, row)
    for step in range(min(steps, slots.room(row))):
        if step:
            slots.step(1)
        found.append(slots.output().codes[0].copy())
        fed = slots.states[slots.turn]["codes"].rows(slice(0, 1))
        fed.write(true[step * group :][:group].reshape(1, 1, group))
    return np.concatenate(found)
