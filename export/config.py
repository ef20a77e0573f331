"""The choices that fix a VALL-E 2 network: sizes, and what the paper leaves open (one place for all)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

CODEBOOKS = 8
CODEBOOK_SIZE = 1024
EOS_CODE = CODEBOOK_SIZE
GROUP_SIZES = (1, 2, 4, 8)


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Sizes of an AR and a NAR model that are exported together.

    Fixed choices where the paper is silent: pre-LayerNorm blocks with a final LayerNorm, exact GELU,
    no bias in the group layers, `<bos>` as a learned vector, text `<eos>` as the last row of the text
    table, the AR's code `<eos>` as row 1024 of its tied table, N(0, 0.02) initialisation.

    Args:
        vocab_size: text tokens without `<eos>`.
        d_model, heads, layers, ffn: the AR's Transformer (section 4.1.1).
        nar_d_model, nar_heads, nar_layers, nar_ffn: the NAR's; 0 means the same as the AR.
        group_size: codes of codebook 0 per AR step, one of 1, 2, 4, 8.
        max_text: rows of the text position tables, `<eos>` included.
        max_frames: frames of prompt and target together that the position tables cover.

    Raises:
        ValueError: a size is not positive, heads do not divide the width, or the group size is unknown.
    """

    vocab_size: int
    d_model: int = 1024
    heads: int = 16
    layers: int = 12
    ffn: int = 4096
    group_size: int = 2
    max_text: int = 1024
    max_frames: int = 4096
    nar_d_model: int = 0
    nar_heads: int = 0
    nar_layers: int = 0
    nar_ffn: int = 0

    def __post_init__(self) -> None:
        for source in ("d_model", "heads", "layers", "ffn"):
            if getattr(self, f"nar_{source}") == 0:
                object.__setattr__(self, f"nar_{source}", getattr(self, source))
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, int) or value <= 0:
                raise ValueError(f"{field.name} is {value!r}; expected a positive integer")
        if self.group_size not in GROUP_SIZES:
            raise ValueError(f"group_size is {self.group_size}; expected one of {GROUP_SIZES}")
        for width, heads in ((self.d_model, self.heads), (self.nar_d_model, self.nar_heads)):
            if width % heads:
                raise ValueError(f"width {width} is not a multiple of its {heads} heads")

    @property
    def max_groups(self) -> int:
        """Rows of the AR's code position table: `<bos>` and every group."""
        return 1 + self.max_frames // self.group_size

    def to_dict(self) -> dict[str, int]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> ModelConfig:
        """Build from parsed JSON; unknown or missing keys are a ValueError that names them."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown or "vocab_size" not in values:
            raise ValueError(f"model config: unknown keys {unknown}, expected some of {sorted(known)}")
        numbers = {}
        for name, value in values.items():
            if not isinstance(value, int) or isinstance(value, bool):
                raise ValueError(f"model config: {name} is {value!r}; expected an integer")
            numbers[name] = value
        return cls(**numbers)
