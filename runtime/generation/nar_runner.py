"""Runs the NAR graph: codebooks 1..Q-1 of the target, one full-attention pass each (section 3.4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from valle2.engine import Backend, sized
from valle2.engine.backends.ladder import Ladder
from valle2.engine.bundle.contract import NAR_BATCH
from valle2.engine.bundle.nar_inputs import NARInputs
from valle2.runtime.types import Codes

CODES = "codes_out"
"""The NAR's output that is read."""


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
        backend: the loaded graph. joint: the graph of several rows, where `backend` takes only one.
        ladder: bound calls of `backend`, for those that fit them.

    Closing it closes all of them.
    """

    def __init__(self, backend: Backend, joint: Backend | None = None, ladder: Ladder | None = None) -> None:
        self.backend, self.joint, self.ladder = backend, joint or backend, ladder

    def close(self) -> None:
        """Free the graph's memory."""
        if self.ladder:
            self.ladder.close()  # its calls hold the graph
        self.backend.close()
        if self.joint is not self.backend:
            self.joint.close()

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

    def run(self, states: Sequence[NARState], codebook: int) -> None:
        """Compute one codebook of each state from those before it, and fill it in.

        Rows of several states are padded to the longest text and the most frames among them.
        """
        begin, rows = self.call(padded(states, codebook))
        for state, row in zip(states, rows, strict=True):
            start = state.prompt_length - begin
            column = row[start : start + len(state.target)]
            first = state.begun if codebook < state.known else 0
            state.target[first:, codebook] = column[first:]

    def call(self, inputs: NARInputs[Codes]) -> tuple[int, Codes]:
        """Run the graph: the first frame that it returns, and the codes (B, T') from there on."""
        count, frames, _ = inputs.codes.shape
        bound = self.ladder.run(inputs.feeds()) if self.ladder else None
        if bound is not None:
            return 0, bound[CODES][:count, :frames]
        backend = self.backend if count == 1 else self.joint
        begin = 0 if backend.spec.graph == NAR_BATCH else int(inputs.prompt_lengths.min())
        found = backend.run(inputs.feeds(), (CODES,))[CODES]
        return begin, sized(backend.spec, CODES, found, (count, frames - begin))

    def refine(self, text: Codes, prompt: Codes, first: Codes) -> Codes:
        """All passes without a pause: (T, Q) int64. See `start` for the arguments."""
        state = self.start(text, prompt, first)
        for codebook in state.passes:
            self.run([state], codebook)
        return state.target


def padded(states: Sequence[NARState], codebook: int) -> NARInputs[Codes]:
    """The inputs of one pass over these states, with zeros as padding."""
    text_lengths = np.array([len(state.text) for state in states])
    frame_lengths = np.array([len(state.codes) for state in states])
    text = np.zeros((len(states), text_lengths.max()), np.int64)
    codes = np.zeros((len(states), frame_lengths.max(), states[0].codes.shape[1]), np.int64)
    for row, state in enumerate(states):
        text[row, : len(state.text)] = state.text
        codes[row, : len(state.codes)] = state.codes
    prompt_lengths = np.array([state.prompt_length for state in states])
    return NARInputs(text, text_lengths, codes, prompt_lengths, frame_lengths, np.array(codebook))
