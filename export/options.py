"""What a caller of the export chooses, and the defaults. Imports no PyTorch: the command line needs it."""

from __future__ import annotations

from dataclasses import dataclass

from valle2.export.errors import CheckpointError

AUTO, OWN = "auto", "valle2"
FORMATS = (AUTO, OWN, "vallex", "lifeiteng", "amphion", "supervoice")
"""Code bases whose checkpoints can be read. AUTO recognises them; OWN is this project's format."""
DEFAULT_LOWERING = "ort"


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """What to read from a checkpoint, where its files do not say.

    Args:
        form: one of `FORMATS`. heads: the AR's attention heads; 0 if not given.
        prefix_mode: how lifeiteng's NAR sees the prompt: 0, 1, 2 or 4; None if not given.

    Raises:
        CheckpointError: an unknown format.
    """

    form: str = AUTO
    heads: int = 0
    prefix_mode: int | None = None

    def __post_init__(self) -> None:
        if self.form not in FORMATS:
            raise CheckpointError(f"unknown format {self.form!r}; expected one of {', '.join(FORMATS)}")
