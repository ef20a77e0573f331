"""Configuration of a VALL-E 2 network: its sizes, and the choices that the paper leaves open."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from valle2.engine.bundle.contract import CODEBOOKS
from valle2.engine.bundle.schema import GROUP_SIZES, SIZES, whole
from valle2.engine.bundle.untrusted import shown

MAX_ANGLES = 2**23
"""Numbers in a table of rotary positions. The published models' tables have 2**18."""
OPTIONAL = ("head_width", "nar_head_width", "vector_width")
"""Sizes that may be 0."""

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
    """How a related network differs from VALL-E 2. The defaults are VALL-E 2.

    Args:
        norm: "layer" (mean and variance, epsilon 1e-5), "rms" (epsilon 1e-6) or "l2" (length 1, times the
            root of the width).
        norm_first: normalise before attention and feed-forward, and at the end; otherwise after each of them.
        activation: "gelu" (exact), "relu" or "silu". gated: half of the feed-forward input gates the rest.
        qkv_bias: query, key and value have biases. bias: the other matrices of a block have biases.
        positions: "table" adds learned rows to the embeddings, with separate counts for text and codes;
            "rotary" rotates queries and keys, with one count for the row. nar_positions: of the NAR.
        text_ahead: in the AR, text attends to all of the text, not only to earlier text.
        code_bos: the AR's codes begin with a `<bos>` position.
        head: the output weights: the code tables ("tied"), a matrix per codebook ("own"), or one matrix for
            all codebooks ("one"). head_bias: the output has a bias.
        one_table: the NAR embeds all codebooks with one table.
        stage: the NAR gets its stage from a "token" at the end, or from the gain and shift of every "norm".
        stage_position: the stage token has a position.
        whole_prompt: at every stage the NAR sees all codebooks of the prompt, not only those below the stage.
        prenet: layers between embedding and positions.
        argmax_ends: `<eos>` ends the speech whenever it is the likeliest code.
        prompt_mean: a NAR with vectors moves their mean to the prompt's mean, see `NARModel.choose`.

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
        """Whether the NAR rotates queries and keys instead of adding position rows."""
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
    """Sizes of an AR and a NAR model that belong together.

    Choices where the paper is silent:
        Blocks are pre-LayerNorm with a final LayerNorm, GELU is exact, and the group layers have no bias.
        `<bos>` is a learned vector, text `<eos>` the last row of the text table, and the AR's code `<eos>`
        row 1024 of its tied table. Weights are drawn from N(0, 0.02).

    Args:
        vocab_size: text tokens without `<eos>`.
        d_model, heads, layers, ffn: the AR's Transformer (section 4.1.1).
        nar_d_model, nar_heads, nar_layers, nar_ffn: the NAR's Transformer; 0 means as the AR's.
        head_width, nar_head_width: width of one attention head; 0 means the model width divided by the heads.
        group_size: codes of codebook 0 per AR step: 1, 2, 4 or 8.
        max_text: rows of the text position tables, with `<eos>`.
        max_frames: most frames of prompt and target together.
        codebooks: of the codec. The AR predicts the first codebook, the NAR the others.
        text_rows, nar_text_rows: rows of the text tables; 0 means the vocabulary and `<eos>`.
        vector_width: width of the codec vectors by which the NAR chooses codes, see `NARModel.choose`; 0
            means that it takes the likeliest codes (section 3.4).
        style: how the network differs from VALL-E 2.

    Raises:
        ValueError: a size is not positive, heads do not divide the width, the group size is unknown, or a
            style needs vectors that the model does not have.
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
        """Replace a 0 by its default."""
        if getattr(self, name) == 0:
            object.__setattr__(self, name, value)

    @property
    def max_groups(self) -> int:
        """Rows of the AR's code position table: `<bos>` and every group."""
        return 1 + self.max_frames // self.group_size

    def sizes(self) -> dict[str, int]:
        """The sizes, as a bundle's manifest lists them."""
        return {entry.name: getattr(self, entry.name) for entry in fields(self) if entry.name != "style"}

    def to_dict(self) -> dict[str, Any]:
        """All entries, `style` as a dictionary. `from_dict` reads it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> ModelConfig:
        """Build from parsed JSON. Raises ValueError for unknown or missing keys and wrong types."""
        known = {entry.name for entry in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown or "vocab_size" not in values:
            raise ValueError(f"model config: unknown keys {shown(unknown)}; expected some of {sorted(known)}")
        numbers = {name: value for name, value in values.items() if name != "style"}
        for name, value in numbers.items():
            if not isinstance(value, int) or isinstance(value, bool):
                raise ValueError(f"model config: {name} is {shown(value)}; expected an integer")
        style = values.get("style", {})
        if not isinstance(style, dict) or set(style) - {entry.name for entry in fields(Style)}:
            raise ValueError(f"model config: unknown style {shown(style)}")
        return cls(**numbers, style=Style(**style))  # type: ignore[arg-type]
