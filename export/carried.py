"""Text files and voices of a checkpoint: a bundle gets copies of them.

They lie in `text/` and `voices/` beside the weights. A checkpoint of an embedded model can leave them out and
name that model in `embedded.json`, as `{"text": "demo", "voices": "demo"}`. The repository then holds the
files once.
"""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path

from valle2.engine.bundle.untrusted import is_file, parse_json, read_bounded, shown
from valle2.export.errors import CheckpointError

FOLDERS = ("text", "voices")
POINTER = "embedded.json"
MAX_POINTER = 1000
"""Bytes of the largest pointer file that is read."""


def copy_carried(checkpoint: Path, bundle: Path, root: Path) -> None:
    """Copy a checkpoint's `text/` and `voices/`, if it has them, into a bundle.

    Args:
        checkpoint: the folder of the weights. bundle: an existing folder.
        root: links may lead to files below it. The hub's cache keeps files as links.

    Raises:
        CheckpointError: a file is not a plain file, a link leaves `root`, or `embedded.json` is not valid.
    """
    models = read_pointer(checkpoint)
    for name in FOLDERS:
        source, allowed = (models[name] / name, models[name]) if name in models else (checkpoint / name, root)
        copy_folder(source, bundle / name, allowed)


def read_pointer(checkpoint: Path) -> dict[str, Path]:
    """`text`, `voices` or both -> the folder of the embedded model that the checkpoint names for it.

    Raises:
        CheckpointError: the file has other entries, names an unknown model, or names a folder that the
            checkpoint itself has.
    """
    file = checkpoint / POINTER
    if not is_file(file):
        return {}
    try:
        names = parse_json(read_bounded(file, MAX_POINTER))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from None
    if not isinstance(names, dict) or not set(names) <= set(FOLDERS):
        raise CheckpointError(f"{file}: expected an object with the entries {' and '.join(FOLDERS)}")
    models, found = embedded_models(), {}
    for name, model in names.items():
        if not isinstance(model, str) or model not in models:
            raise CheckpointError(
                f"{file}: unknown embedded model {shown(model)}; expected one of {', '.join(sorted(models))}"
            )
        if (checkpoint / name).exists():
            raise CheckpointError(
                f"{checkpoint} has the folder {name} and {POINTER} names it too; remove one of them"
            )
        found[name] = models[model]
    return found


def embedded_models() -> dict[str, Path]:
    """Name -> bundle folder of the models in the runtime's package. The package is not imported."""
    spec = find_spec("valle2.runtime")
    folder = Path(spec.origin).resolve().with_name("models") if spec and spec.origin else Path()
    return {path.name: path for path in folder.iterdir() if path.is_dir()} if folder.is_dir() else {}


def copy_folder(source: Path, target: Path, root: Path) -> None:
    """Copy the plain files of a folder, if there is one.

    Args:
        root: links may lead to files below it. The hub's cache keeps files as links.

    Raises:
        CheckpointError: an entry is not a plain file, or is a link to a file outside `root`.
    """
    for path in sorted(source.rglob("*")):
        if path.is_dir() and not path.is_symlink():
            continue
        if not path.is_file() or not path.resolve().is_relative_to(root.resolve()):
            raise CheckpointError(
                f"{path} is no plain file of the checkpoint; expected files, and no links that leave {root}"
            )
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
