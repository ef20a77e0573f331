"""What the entries of a manifest and of a build's record may be: names, types and ranges, as tables.

The limits are far above any published model (16 layers, width 1024, 8192 positions) and far below what would
exhaust a machine. Every check returns the value, or raises ValueError with the value and what was expected.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import PurePosixPath
from typing import Any

from valle2.engine.bundle.contract import BUILDS_FOLDER, CODEBOOK_SIZE, CODEBOOKS
from valle2.engine.bundle.untrusted import shown

Range = tuple[int, int]

LOWERINGS = ("ort", "portable", "primitive")
WIDTH, HEADS, LAYERS, INNER, ROWS = (1, 8192), (1, 128), (1, 128), (1, 32768), (1, 2**21)
SIZES: dict[str, Range] = {
    "vocab_size": (1, 2**18),
    "d_model": WIDTH,
    "heads": HEADS,
    "layers": LAYERS,
    "ffn": INNER,
    "group_size": (1, 8),
    "max_text": (1, 2**15),
    "max_frames": (1, 2**17),
    "nar_d_model": WIDTH,
    "nar_heads": HEADS,
    "nar_layers": LAYERS,
    "nar_ffn": INNER,
    "head_width": (0, 1024),
    "nar_head_width": (0, 1024),
    "codebooks": (1, 32),
    "text_rows": ROWS,
    "nar_text_rows": ROWS,
    "vector_width": (0, 4096),
}
REQUIRED_SIZES = tuple(SIZES)[:8]
GROUP_SIZES = (1, 2, 4, 8)
CACHE_LENGTH = (0, 2**17)
MAX_CACHE = 2**30
"""Numbers in all KV caches of one row. A row of the largest published model has 2**28."""

CODEC: dict[str, Range] = {
    "sample_rate": (4000, 192_000),
    "hop": (16, 8192),
    "codebooks": (CODEBOOKS, CODEBOOKS),
}
NEUTRAL = "neutral"
"""Of the codec: the code of each codebook that stands for a code that was not computed."""
REQUIRED_CODEC = ("sample_rate", "hop")
TEXT_KINDS = ("bpe", "phonemes", "ids", "vallex", "lifeiteng", "amphion", "supervoice")
TEXT_TOKENS = (1, 2**15)

MAX_WINDOW, MAX_CANDIDATES, MAX_SPOKEN, MAX_RETRIES = 1000, 32, 1_000_000, 8
SAMPLING: dict[str, tuple[float, float]] = {
    "top_p": (0.0, 1.0),
    "window": (1, MAX_WINDOW),
    "threshold": (0.0, 1.0),
    "seed": (0, 2**63 - 1),
    "candidates": (1, MAX_CANDIDATES),
    "max_frames": (0, MAX_SPOKEN),
    "min_frames": (0, MAX_SPOKEN),
    "loop_frames": (0, MAX_SPOKEN),
    "retries": (-1, MAX_RETRIES),
    "codebooks": (0, CODEBOOKS),
    "first_chunk_codebooks": (0, CODEBOOKS),
    "nar_prompt_seconds": (0.0, 60.0),
}
FRACTIONS = ("top_p", "threshold", "nar_prompt_seconds")
WHOLE = tuple(name for name in SAMPLING if name not in FRACTIONS)
"""The settings of `SAMPLING` that are whole numbers."""
QUALITIES: dict[str, dict[str, int]] = {
    "fast": {"codebooks": 2, "first_chunk_codebooks": 2},
    "balanced": {"codebooks": 4, "first_chunk_codebooks": 2},
    "full": {"codebooks": 0, "first_chunk_codebooks": 0},
}
"""Names for measured settings; docs/quality.md has what each costs and what it saves."""

MAX_FILES, MAX_NAME, MAX_PART, MAX_DEPTH = 4096, 255, 200, 8
GRAPH_SUFFIX = ".onnx"

DTYPES = ("bool", "int8", "uint8", "int32", "int64", "float16", "bfloat16", "float32", "float64")
MAX_TENSORS, MAX_RANK, MAX_AXIS = 1024, 8, 2**24
KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_. -]{0,63}")
TENSOR = re.compile(r"[A-Za-z_][A-Za-z0-9_.:/-]{0,127}")
AXIS = re.compile(r"[A-Za-z0-9_ .,()*/+<>=-]{1,128}")
"""A name, or an expression of the exporter: "batch", "320*s53", "(s96//320)"."""
HASH = re.compile(r"[0-9a-f]{64}")
CONTROLS = re.compile(r"[^\t\n\x20-\x7e\xa0-\u200d\u2010-\u2027\u202f-\u2065\u206a-\ud7ff\ue000-\U0010ffff]")
"""Characters that control a terminal or reverse its text, and code points that are no characters."""


def whole(what: str, value: object, limits: Range) -> int:
    """A whole number in a range."""
    low, high = limits
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{what} is {shown(value)}; expected a whole number from {low} to {high}")
    return value


def real(what: str, value: object, low: float, high: float) -> float:
    """A finite number in a range."""
    if type(value) not in (int, float) or not math.isfinite(value) or not low <= value <= high:  # type: ignore[arg-type, operator]
        raise ValueError(f"{what} is {shown(value)}; expected a number from {low} to {high}")
    return value  # type: ignore[return-value]


def flag(what: str, value: object) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{what} is {shown(value)}; expected true or false")
    return value


def one_of(what: str, value: object, known: Iterable[str]) -> str:
    """One of some words."""
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"{what} is {shown(value)}; expected one of {', '.join(known)}; upgrade valle2")
    return value


def words(what: str, value: object, most: int) -> str:
    """Text for people: of at most this many characters, without control characters."""
    if not isinstance(value, str) or len(value) > most or CONTROLS.search(value):
        raise ValueError(f"{what} is {shown(value)}; expected at most {most} characters of plain text")
    return value


def matching(what: str, value: object, pattern: re.Pattern[str]) -> str:
    """A string that a pattern matches."""
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise ValueError(f"{what} is {shown(value)}; expected a name like {pattern.pattern}")
    return value


def listed(what: str, value: object, most: int) -> list[Any]:
    """A list of at most this many entries."""
    if not isinstance(value, list) or len(value) > most:
        raise ValueError(f"{what} is {shown(value)}; expected a list of at most {most}")
    return value


def entries(what: str, value: object, most: int = 64) -> dict[str, Any]:
    """An object of at most this many entries, whose keys are plain names."""
    if not isinstance(value, dict) or len(value) > most:
        raise ValueError(f"{what} is {shown(value)}; expected at most {most} named entries")
    for key in value:
        matching(f"a key of {what}", key, KEY)
    return value


def with_keys(what: str, value: object, known: Iterable[str], required: Iterable[str]) -> dict[str, Any]:
    """An object with all required keys and no unknown one."""
    found = entries(what, value)
    missing, unknown = sorted(set(required) - set(found)), sorted(set(found) - set(known))
    if missing or unknown:
        raise ValueError(f"{what} lacks {missing} and has unknown {shown(unknown)}; upgrade valle2")
    return found


# -- the entries ------------------------------------------------------------------------------------


def check_sizes(value: object) -> dict[str, int]:
    """The network's sizes."""
    found = with_keys("sizes", value, SIZES, REQUIRED_SIZES)
    for name, size in found.items():
        whole(f"sizes.{name}", size, SIZES[name])
    if found["group_size"] not in GROUP_SIZES:
        raise ValueError(f"sizes.group_size is {found['group_size']}; expected one of {GROUP_SIZES}")
    if found["max_frames"] < found["group_size"]:
        raise ValueError(f"sizes.max_frames is {found['max_frames']}; expected a group at the least")
    if not head_width(found):
        raise ValueError("sizes.heads is larger than the width; expected at least a number a head")
    return found


def head_width(sizes: Mapping[str, int]) -> int:
    """Numbers in the key, or in the value, of one position in one head of the AR."""
    return sizes.get("head_width") or sizes["d_model"] // sizes["heads"]


def check_codec(value: object) -> dict[str, Any]:
    """The sizes of the codec and its neutral codes; empty without a codec."""
    found = with_keys("codec", value, (*CODEC, NEUTRAL), REQUIRED_CODEC if value else ())
    for name, size in found.items():
        if name != NEUTRAL:
            whole(f"codec.{name}", size, CODEC[name])
    if NEUTRAL in found:
        codes = listed("codec.neutral", found[NEUTRAL], CODEBOOKS)
        if len(codes) != CODEBOOKS:
            raise ValueError(f"codec.neutral has {len(codes)} codes; expected {CODEBOOKS}")
        for code in codes:
            whole("a code of codec.neutral", code, (0, CODEBOOK_SIZE - 1))
    return found


def check_text(value: object) -> dict[str, Any]:
    """The text front end."""
    found = with_keys("text", value, ("kind", "max_tokens"), ("kind",))
    one_of("text.kind", found["kind"], TEXT_KINDS)
    if "max_tokens" in found:
        whole("text.max_tokens", found["max_tokens"], TEXT_TOKENS)
    return found


def check_sampling(value: object) -> dict[str, float]:
    """Default settings."""
    found = with_keys("sampling", value, SAMPLING, ())
    for name, setting in found.items():
        low, high = SAMPLING[name]
        if name in WHOLE:
            whole(f"sampling.{name}", setting, (int(low), int(high)))
        else:
            real(f"sampling.{name}", setting, low, high)
    return found


def check_provenance(value: object) -> dict[str, str]:
    """Source and licence."""
    found = entries("provenance", value)
    for name, text in found.items():
        words(f"provenance.{name}", text, 10_000)
    return found


def check_parity(value: object) -> dict[str, float]:
    """Differences that the export found."""
    found = entries("parity", value)
    for name, gap in found.items():
        real(f"parity.{name}", gap, 0.0, 1e6)
    return found


def ids(what: str, value: object) -> list[int]:
    """A few token ids."""
    return [whole(f"an id of {what}", entry, (0, ROWS[1])) for entry in listed(what, value, 8)]


def counted(high: int) -> Callable[[str, object], int]:
    """A check for whole numbers from 0 to `high`."""
    return lambda what, value: whole(what, value, (0, high))


NAR_TEXTS = ("same", "bare", "target")
RULES: dict[str, Callable[[str, object], object]] = {
    "text_begin": ids,
    "text_end": ids,
    "nar_text": lambda what, value: one_of(what, value, NAR_TEXTS),
    "languages": counted(64),
    "code_bos": flag,
    "whole_text": flag,
    "frames_per_token": counted(4096),
    "frames_extra": counted(2**17),
    "frames_least": counted(2**17),
    "fewest_per_token": counted(4096),
    "limit_counts_prompt": flag,
    "max_positions": counted(2**18),
    "family": lambda what, value: words(what, value, 64),
}


def check_rules(value: object) -> dict[str, Any]:
    """The token layout of a model related to VALL-E 2; see `runtime.generation.token_layout`."""
    found = with_keys("rules", value, RULES, ())
    for name, rule in found.items():
        RULES[name](f"rules.{name}", rule)
    return found


# -- files ------------------------------------------------------------------------------------------


def leaves_bundle(name: str) -> bool:
    """Does a name lead out of its bundle?"""
    inner = PurePosixPath(name)
    return inner.is_absolute() or ".." in inner.parts


def fault_of(name: str) -> str:
    """What is wrong with the name of a file, as the end of a sentence; empty if nothing is."""
    if leaves_bundle(name):
        return "leaves the bundle"
    parts = name.split("/")
    plain = name.isprintable() and not any(mark in name for mark in '\\:*?"<>|')
    sized = len(name.encode("utf-8", "replace")) <= MAX_NAME and len(parts) <= MAX_DEPTH
    if not plain or not sized or not all(map(plain_part, parts)):
        return "is no plain file name"
    return "is where valle2 build writes" if parts[0].casefold() == BUILDS_FOLDER else ""


def plain_part(part: str) -> bool:
    """Is this a file name on every system?"""
    return bool(part) and len(part.encode()) <= MAX_PART and part[-1] not in ". " and part[0] != " "


def check_digests(what: str, value: object) -> dict[str, str]:
    """Hashes by file name. The names are not checked."""
    if not isinstance(value, dict) or len(value) > MAX_FILES:
        raise ValueError(f"{what} is {shown(value)}; expected at most {MAX_FILES} names with their sha256")
    for name, digest in value.items():
        if not isinstance(digest, str) or not HASH.fullmatch(digest):
            raise ValueError(f"the sha256 of {shown(name)} is {shown(digest)}; expected 64 digits of 0-9a-f")
    return value


def check_graph_name(what: str, name: object) -> str:
    """The file of a graph: in the bundle's own folder, and with the suffix that selects the ONNX parser."""
    if not isinstance(name, str) or fault_of(name) or "/" in name or not name.endswith(GRAPH_SUFFIX):
        raise ValueError(f"{what} is {shown(name)}; expected a plain file name that ends in {GRAPH_SUFFIX}")
    return name
