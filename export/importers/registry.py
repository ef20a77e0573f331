"""Which code base a checkpoint comes from, and its reader.

A kind is recognised by tensor names; `FAMILIES` says which kinds make a model and who reads them.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from valle2.engine.bundle.untrusted import exists, is_file, is_folder, shown
from valle2.export.checkpoint import METADATA, WEIGHTS, Checkpoint, read_checkpoint
from valle2.export.errors import CheckpointError
from valle2.export.importers.amphion import read_amphion
from valle2.export.importers.family import Options
from valle2.export.importers.lifeiteng import read_lifeiteng, read_vallex
from valle2.export.importers.supervoice import read_supervoice
from valle2.export.models.config import FORMATS
from valle2.export.weights.safetensors_file import read_metadata
from valle2.export.weights.state_dict import SUFFIX, find_state, read_values
from valle2.export.weights.tensors import Claims

OWN = "valle2"
PLAIN = (bool, int, float, str)
KINDS: dict[str, tuple[str, ...]] = {
    "vallex": ("ar_language_embedding.word_embeddings.weight",),
    "lifeiteng": ("ar_text_embedding.word_embeddings.weight",),
    "amphion AR": ("model.lm_head.weight", "model.model.embed_tokens.weight"),
    "amphion NAR": ("model.lm_head.0.weight", "phone_embedder.weight"),
    "supervoice AR": ("bos_embedding.weight", "transformer.output_norm.gamma"),
    "supervoice NAR": ("codec_index_embedding.weight",),
}
"""Tensor names that only this kind has; the first match wins."""


@dataclass(frozen=True, slots=True)
class Source:
    """One file: its kind, its tensors, and the plain values beside them."""

    kind: str
    claims: Claims
    extras: dict[str, Any]


Reader = Callable[[Sequence[Source], Options], Checkpoint]
FAMILIES: dict[str, tuple[tuple[str, ...], Reader]] = {
    "vallex": (("vallex",), lambda found, options: read_vallex(found[0].claims, found[0].extras, options)),
    "lifeiteng": (
        ("lifeiteng",),
        lambda found, options: read_lifeiteng(found[0].claims, found[0].extras, options),
    ),
    "amphion": (
        ("amphion AR", "amphion NAR"),
        lambda found, options: read_amphion(found[0].claims, found[1].claims, options),
    ),
    "supervoice": (
        ("supervoice AR", "supervoice NAR"),
        lambda found, options: read_supervoice(found[0].claims, found[1].claims, options),
    ),
}


def read_any(paths: Sequence[Path], form: str = "auto", options: Options | None = None) -> Checkpoint:
    """Load a checkpoint of valle2 or of a code base that it knows.

    Args:
        paths: the file, or the two files in any order. form: one of `config.FORMATS`.
        options: what the files may not say.

    Raises:
        CheckpointError: not such a checkpoint, not the one that was named, or one that does not fit itself.
    """
    if form not in FORMATS:
        raise CheckpointError(f"unknown format {form!r}; expected one of {', '.join(FORMATS)}")
    if form == OWN or (form == "auto" and is_own(paths[0])):
        if len(paths) > 1:
            raise CheckpointError(f"{paths[1]}: valle2's own checkpoints are one file; leave the second out")
        return read_checkpoint(paths[0])
    sources = [read_source(path) for path in paths]
    family = sources[0].kind.split()[0]
    if form not in ("auto", family):
        raise CheckpointError(f"{paths[0]} is a checkpoint of {family}; expected {form}: try --format auto")
    kinds, reader = FAMILIES[family]
    found = {source.kind: source for source in sources}
    if len(sources) != len(kinds) or set(found) != set(kinds):
        got = ", ".join(source.kind for source in sources)
        raise CheckpointError(f"{paths[0]}: got {got}; expected the files {' and '.join(kinds)} of one model")
    try:
        return reader([found[kind] for kind in kinds], options or Options())
    except CheckpointError:
        raise
    except ValueError as error:  # sizes that make no network
        raise CheckpointError(f"{paths[0]}: {error}") from None


def is_own(path: Path) -> bool:
    """Is this meant to be a checkpoint of valle2's own format? It says so in its metadata."""
    if is_folder(path):
        return exists(path / WEIGHTS)
    return path.suffix == SUFFIX and (not is_file(path) or METADATA in read_metadata(path))


def read_source(path: Path) -> Source:
    """Read one file and recognise it."""
    container = read_values(path)
    tensors = find_state(container, path, lambda names: bool(kind_of(names)))
    values = {name: plain(value) for name, value in container.items() if isinstance(name, str)}
    extras = {name: value for name, value in values.items() if isinstance(value, PLAIN)}
    kind = kind_of(tensors)
    if not kind:
        raise CheckpointError(
            f"{path} is no checkpoint that valle2 knows (it has {shown(min(tensors))}); "
            f"expected one of {', '.join(FORMATS[1:])}"
        )
    return Source(kind, Claims(path, tensors), extras)


def kind_of(names: Container[str]) -> str:
    """The first kind whose tensor names are all there, or an empty string."""
    return next((kind for kind, marks in KINDS.items() if all(name in names for name in marks)), "")


def plain(value: Any) -> Any:
    """A number of numpy or torch as the plain number that it is."""
    single = isinstance(value, np.generic) or (isinstance(value, Tensor) and not value.ndim)
    return value.item() if single else value
