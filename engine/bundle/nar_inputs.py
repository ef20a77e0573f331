"""The inputs of the NAR graph, as one value for the manifest's check, the exporter and the runtime."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

Array = TypeVar("Array")
Other = TypeVar("Other")
BATCH_AXIS, CODEBOOK_AXIS = "batch", "codebooks"
NAR_AXES: dict[str, tuple[str, ...]] = {
    "text": (BATCH_AXIS, "tokens"),
    "text_lengths": (BATCH_AXIS,),
    "codes": (BATCH_AXIS, "frames", CODEBOOK_AXIS),
    "prompt_lengths": (BATCH_AXIS,),
    "frame_lengths": (BATCH_AXIS,),
    "stage": (),
}
"""Axes of the NAR graph's inputs, in the graph's order. All inputs are int64; only `codebooks` is fixed."""


@dataclass(frozen=True, slots=True)
class NARInputs(Generic[Array]):
    """Inputs of one NAR call. `Array` is an int64 array of NumPy or PyTorch.

    Args:
        text: (B, L) ids with `<eos>`, right-padded. text_lengths: (B,), with `<eos>`.
        codes: (B, T, Q), prompt frames and then target frames. Target codebooks >= stage are not read.
        prompt_lengths: (B,) prompt frames. frame_lengths: (B,) prompt and target frames together.
        stage: () in 1..Q-1, the codebook to predict.
    """

    text: Array
    text_lengths: Array
    codes: Array
    prompt_lengths: Array
    frame_lengths: Array
    stage: Array

    def feeds(self) -> dict[str, Array]:
        """The inputs by name, in the graph's order."""
        return {name: getattr(self, name) for name in NAR_AXES}

    def map(self, convert: Callable[[Array], Other]) -> NARInputs[Other]:
        """The same inputs with each array converted."""
        return NARInputs(**{name: convert(array) for name, array in self.feeds().items()})
