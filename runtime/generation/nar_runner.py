"""Runs the NAR graph: codebooks 1..Q-1 of the target, one full-attention pass each (section 3.4)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from valle2.engine import Backend, sized
from valle2.engine.bundle.nar_inputs import NARInputs
from valle2.runtime.types import Codes


@dataclass(frozen=True, slots=True)
class NARState:
    """Codes on their way through the NAR.

    Args:
        text: (L,) int64 as the NAR reads it. codes: (P + T, Q) int64: the prompt, then the target, of which
            the codebooks that have been computed are filled in.
        prompt_length: P. codebooks: how many the target gets; the others keep their neutral codes.
        begun: target frames at the start whose first `known` codebooks an earlier state has computed. They
            are read and stay as they are; the other codebooks of these frames are computed here.
    """

    text: Codes
    codes: Codes
    prompt_length: int
    codebooks: int
    begun: int = 0
    known: int = 0

    @property
    def target(self) -> Codes:
        """(T, Q) int64, without the prompt."""
        return self.codes[self.prompt_length :]

    @property
    def fresh(self) -> Codes:
        """(T - begun, Q) int64, the target without the frames that an earlier state has begun."""
        return self.target[self.begun :]

    @property
    def passes(self) -> range:
        """The codebooks that the NAR computes; none where there is no new frame."""
        return range(1, self.codebooks) if len(self.fresh) else range(0)


class NARRunner:
    """The NAR graph.

    Args:
        backend: the loaded graph.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    def close(self) -> None:
        """Free the graph's memory."""
        self.backend.close()

    def start(
        self,
        text: Codes,
        prompt: Codes,
        first: Codes,
        codebooks: int = 0,
        neutral: Codes | None = None,
        begun: int = 0,
        known: int = 0,
    ) -> NARState:
        """The state before the first pass.

        Args:
            text: (L,) int64. prompt: (P, Q) int64. first: (T,) int64, codebook 0 of the target.
            codebooks: how many the target gets, 0 for all Q.
            neutral: (Q,) int64, the codes of the others; zeros by default.
            begun: frames at the prompt's end that have only their first `known` codebooks. They belong to
                the target, which gets its missing codebooks.
        """
        codes = np.zeros((len(prompt) + len(first), prompt.shape[1]), np.int64)
        codes[: len(prompt)] = prompt
        if neutral is not None:
            codes[len(prompt) :] = neutral
        codes[len(prompt) :, 0] = first
        wanted = min(codebooks, codes.shape[1]) if codebooks else codes.shape[1]
        return NARState(text, codes, len(prompt) - begun, wanted, begun, known)

    def run(self, state: NARState, codebook: int) -> None:
        """Compute one codebook from those before it, and fill it in."""
        inputs = NARInputs(
            text=state.text[None],
            text_lengths=np.array([len(state.text)]),
            codes=state.codes[None],
            prompt_lengths=np.array([state.prompt_length]),
            frame_lengths=np.array([len(state.codes)]),
            stage=np.array(codebook),
        )
        found = self.backend.run(inputs.feeds(), ("codes_out",))["codes_out"]
        column = sized(self.backend.spec, "codes_out", found, (1, len(state.target)))[0]
        first = state.begun if codebook < state.known else 0
        state.target[first:, codebook] = column[first:]

    def refine(self, text: Codes, prompt: Codes, first: Codes) -> Codes:
        """All passes without a pause: (T, Q) int64. See `start` for the arguments."""
        state = self.start(text, prompt, first)
        for codebook in state.passes:
            self.run(state, codebook)
        return state.target
