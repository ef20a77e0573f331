"""The choices that fix a VALL-E 2 network: sizes, and what the paper leaves open (one place for all)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from valle2.engine.bundle.schema import SIZES, whole
from valle2.engine.bundle.untrusted import shown

CODEBOOKS = 8
CODEBOOK_SIZE = 1024
EOS_CODE = CODEBOOK_SIZE
GROUP_SIZES = (1, 2, 4, 8)
MAX_ANGLES = 2**23
"""Numbers of a table of rotary positions; the published models' have 2**18."""
OPTIONAL = ("head_width", "nar_head_width", "vector_width")
"""Sizes that may be 0."""
FORMATS = ("auto", "valle2", "vallex", "lifeiteng", "amphion", "supervoice")


CHOICES: dict[str, tuple[str, ...]] = {
    "norm": ("layer", "rms", "l2"),
    "activation": ("gelu", "relu", "silu"),
    "positions": ("table", "rotary"),
    "nar_positions": ("same", "table", "rotary"),
    "head": ("tied", "own", "one"),
    "stage": ("token", "norm"),
}


@dataclass(frozen=True, slots=True)
class Style:
    """Where a relative of VALL-E 2 differs from it; the defaults are VALL-E 2.

    Args:
        norm: "layer" (mean and variance, 1e-5), "rms" (1e-6), "l2" (length 1 times root of the width).
        norm_first: normalise before attention and feed-forward, and at the end; else after each of them.
        activation: "gelu" (exact), "relu" or "silu". gated: half of the feed-forward part gates the rest.
        qkv_bias, bias: biases of query, key and value; of a block's other matrices.
        positions: "table" adds rows to the embeddings, text and codes counted apart; "rotary" turns queries
            and keys, counted over the whole row. nar_positions: the NAR's, which may not be the "same".
        text_ahead: the AR's text sees all of the text, not only what is to its left.
        code_bos: the AR's codes begin with a start position.
        head: the output weights are the code tables ("tied"), one matrix per codebook ("own") or "one".
        head_bias: the output has a bias. one_table: the NAR embeds all codebooks with one table.
        stage: the NAR learns its stage from a "token" at the end, or from gains and shifts of every "norm".
        stage_position: the stage token has a position. whole_prompt: the NAR sees all codebooks of the prompt
            at every stage, not only those below it. prenet: layers between embedding and positions.
        argmax_ends: `<eos>` ends speech where it is the likeliest code, whatever would be drawn.
        prompt_mean: a NAR with vectors moves their mean to the prompt's, see `NARModel.choose`.

    Raises:
        ValueError: an unknown choice.
    """

    norm: str = "layer"
    norm_first: bool = True
    activation: str = "gelu"
    gated: bool = False
    qkv_bias: bool = True
    bias: bool = True
    positions: str = "table"
    nar_positions: str = "same"
    text_ahead: bool = False
    code_bos: bool = True
    head: str = "tied"
    head_bias: bool = False
    one_table: bool = False
    stage: str = "token"
    stage_position: bool = True
    whole_prompt: bool = True
    prenet: bool = False
    argmax_ends: bool = False
    prompt_mean: bool = False

    @property
    def nar_rotary(self) -> bool:
        """Do the NAR's queries and keys turn, or has it position tables?"""
        return (self.positions if self.nar_positions == "same" else self.nar_positions) == "rotary"

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            if not (value in CHOICES[entry.name] if entry.name in CHOICES else isinstance(value, bool)):
                raise ValueError(
                    f"style: {entry.name} is {shown(value)}; expected {CHOICES.get(entry.name, 'a bool')}"
                )


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
        head_width, nar_head_width: of one attention head; 0 means the width divided by the heads.
        group_size: codes of codebook 0 per AR step, one of 1, 2, 4, 8.
        max_text: rows of the text position tables, `<eos>` included.
        max_frames: frames of prompt and target together that the position tables cover.
        codebooks: of the codec; the AR makes the first, the NAR the others.
        text_rows, nar_text_rows: rows of the text tables; 0 means the vocabulary and `<eos>`.
        vector_width: of the codec's vectors by which the NAR chooses its codes, see `NARModel.choose`; 0: it
            has none and takes the likeliest (section 3.4).
        style: where the network differs from VALL-E 2.

    Raises:
        ValueError: a size is not positive, heads do not divide the width, the group size is unknown, or a
            style needs vectors that the model has not.
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
    head_width: int = 0
    nar_head_width: int = 0
    codebooks: int = CODEBOOKS
    text_rows: int = 0
    nar_text_rows: int = 0
    vector_width: int = 0
    style: Style = field(default_factory=Style)

    def __post_init__(self) -> None:
        for name in ("vocab_size", "d_model", "heads"):
            if type(getattr(self, name)) is not int or getattr(self, name) <= 0:
                raise ValueError(f"{name} is {shown(getattr(self, name))}; expected a positive integer")
        for source in ("d_model", "heads", "layers", "ffn"):
            self.default(f"nar_{source}", getattr(self, source))
        for part in ("", "nar_"):
            self.default(f"{part}text_rows", self.vocab_size + 1)
            width, heads = getattr(self, f"{part}d_model"), getattr(self, f"{part}heads")
            if not getattr(self, f"{part}head_width") and width % heads:
                raise ValueError(f"width {width} is not a multiple of its {heads} heads")
        for name, value in self.sizes().items():
            if type(value) is not int or value < (name not in OPTIONAL):
                raise ValueError(f"{name} is {shown(value)}; expected a positive integer")
            whole(name, value, SIZES[name])
        for head in (self.ar_head, self.nar_head):
            if head * (self.max_text + self.max_frames) > MAX_ANGLES:
                raise ValueError(
                    f"heads of {head} over {self.max_text} ids and {self.max_frames} frames; "
                    f"expected at most {MAX_ANGLES} numbers in a table of positions"
                )
        if self.group_size not in GROUP_SIZES:
            raise ValueError(f"group_size is {self.group_size}; expected one of {GROUP_SIZES}")
        if self.style.prompt_mean and not self.vector_width:
            raise ValueError("style: prompt_mean is True and vector_width 0; expected vectors to move")

    @property
    def ar_head(self) -> int:
        """Width of one of the AR's attention heads."""
        return self.head_width or self.d_model // self.heads

    @property
    def nar_head(self) -> int:
        """Width of one of the NAR's attention heads."""
        return self.nar_head_width or self.nar_d_model // self.nar_heads

    def default(self, name: str, value: int) -> None:
        """Put a value where 0 was given."""
        if getattr(self, name) == 0:
            object.__setattr__(self, name, value)

    @property
    def max_groups(self) -> int:
        """Rows of the AR's code position table: `<bos>` and every group."""
        return 1 + self.max_frames // self.group_size

    def sizes(self) -> dict[str, int]:
        """The whole numbers, as a bundle's manifest lists them."""
        return {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name != "style"}

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> ModelConfig:
        """Build from parsed JSON; unknown or missing keys are a ValueError that names them."""
        known = {entry.name for entry in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown or "vocab_size" not in values:
            raise ValueError(f"model config: unknown keys {shown(unknown)}, expected some of {sorted(known)}")
        numbers = {name: value for name, value in values.items() if name != "style"}
        for name, value in numbers.items():
            if not isinstance(value, int) or isinstance(value, bool):
                raise ValueError(f"model config: {name} is {shown(value)}; expected an integer")
        style = values.get("style", {})
        if not isinstance(style, dict) or set(style) - {entry.name for entry in fields(Style)}:
            raise ValueError(f"model config: unknown style {shown(style)}")
        return cls(**numbers, style=Style(**style))  # type: ignore[arg-type]
