"""Recognises the code base of a checkpoint and reads it.

Tensor names tell the kind of a file. `FAMILIES` lists the kinds that make a model, and their importer.
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
from valle2.export.importers.lifeiteng import read_lifeiteng, read_vallex
from valle2.export.importers.supervoice import read_supervoice
from valle2.export.options import AUTO, FORMATS, OWN, ImportOptions
from valle2.export.weights import SUFFIX, TensorReader, find_state, read_metadata, read_values

PLAIN = (bool, int, float, str)
"""Types of the values beside the weights that importers read."""
KINDS: dict[str, tuple[str, ...]] = {
    "vallex": ("ar_language_embedding.word_embeddings.weight",),
    "lifeiteng": ("ar_text_embedding.word_embeddings.weight",),
    "amphion AR": ("model.lm_head.weight", "model.model.embed_tokens.weight"),
    "amphion NAR": ("model.lm_head.0.weight", "phone_embedder.weight"),
    "supervoice AR": ("bos_embedding.weight", "transformer.output_norm.gamma"),
    "supervoice NAR": ("codec_index_embedding.weight",),
}
"""Tensor names that only this kind has. The first match wins."""


@dataclass(frozen=True, slots=True)
class Source:
    """One file: its kind, its tensors, and the plain values beside them."""

    kind: str
    reader: TensorReader
    extras: dict[str, Any]


Importer = Callable[[Sequence[Source], ImportOptions], Checkpoint]
FAMILIES: dict[str, tuple[tuple[str, ...], Importer]] = {
    "vallex": (("vallex",), lambda found, options: read_vallex(found[0].reader, found[0].extras, options)),
    "lifeiteng": (
        ("lifeiteng",),
        lambda found, options: read_lifeiteng(found[0].reader, found[0].extras, options),
    ),
    "amphion": (
        ("amphion AR", "amphion NAR"),
        lambda found, options: read_amphion(found[0].reader, found[1].reader, options),
    ),
    "supervoice": (
        ("supervoice AR", "supervoice NAR"),
        lambda found, options: read_supervoice(found[0].reader, found[1].reader, options),
    ),
}
"""By code base: the kinds of its files, and the importer that takes them in this order."""


def read_any(paths: Sequence[Path], options: ImportOptions | None = None) -> Checkpoint:
    """Load a checkpoint of valle2 or of another known code base.

    Args:
        paths: the file, or the two files in any order.
        options: the format, and settings that the files may not hold.

    Raises:
        CheckpointError: an unknown file, not of the named format, or one that contradicts itself.
    """
    options = options or ImportOptions()
    form = options.form
    if form == OWN or (form == AUTO and is_own(paths[0])):
        if len(paths) > 1:
            raise CheckpointError(f"{paths[1]}: valle2's own checkpoints are one file; leave the second out")
        return read_checkpoint(paths[0])
    sources = [read_source(path) for path in paths]
    family = sources[0].kind.split()[0]
    if form not in (AUTO, family):
        raise CheckpointError(f"{paths[0]} is a checkpoint of {family}; expected {form}: try --format auto")
    kinds, importer = FAMILIES[family]
    found = {source.kind: source for source in sources}
    if len(sources) != len(kinds) or set(found) != set(kinds):
        got = ", ".join(source.kind for source in sources)
        raise CheckpointError(f"{paths[0]}: got {got}; expected the files {' and '.join(kinds)} of one model")
    try:
        return importer([found[kind] for kind in kinds], options)
    except CheckpointError:
        raise
    except ValueError as error:  # sizes that do not make a network
        raise CheckpointError(f"{paths[0]}: {error}") from None


def is_own(path: Path) -> bool:
    """Whether a path is a checkpoint in valle2's own format: a folder of one, or a file with its metadata."""
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
    return Source(kind, TensorReader(path, tensors), extras)


def kind_of(names: Container[str]) -> str:
    """The first kind whose tensor names are all present, or an empty string."""
    return next((kind for kind, marks in KINDS.items() if all(name in names for name in marks)), "")


def plain(value: Any) -> Any:
    """A NumPy or PyTorch number as a plain Python number. Other values stay."""
    single = isinstance(value, np.generic) or (isinstance(value, Tensor) and not value.ndim)
    return value.item() if single else value
