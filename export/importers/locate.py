"""Finds the files of a checkpoint: local paths, or files of a repository on the hub."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from valle2.engine.bundle.hub import HubId, fetch_file, list_files, parse_id
from valle2.engine.bundle.untrusted import exists
from valle2.engine.errors import HubError
from valle2.export.checkpoint import WEIGHTS

PICKLES = (".pt", ".pth", ".bin", ".ckpt")
BESIDE = ("text", "voices")
PUBLISHED: dict[str, tuple[str, ...]] = {
    "Plachta/VALL-E-X": ("vallex-checkpoint.pt",),
    "amphion/valle": ("valle_ar_mls_196000.bin", "valle_nar_mls_164000.bin"),
}
"""Repositories with more than one model, and the files of the model to take."""


@dataclass(frozen=True, slots=True)
class Files:
    """A checkpoint's one or two files on this machine. hub: `owner/name@commit`, empty for local files."""

    paths: tuple[Path, ...]
    hub: str = ""


def find_files(given: Sequence[str | Path]) -> Files:
    """Find the files of a checkpoint. A local path wins over a name on the hub.

    Args:
        given: one or two of: a path, `owner/name[@revision]`, `owner/name/file[@revision]`.

    Raises:
        HubError: not on the hub, not to be downloaded, or ambiguous.
    """
    names = [None if exists(Path(path)) else parse_id(path) for path in given]
    if not any(names):
        return Files(tuple(map(Path, given)))
    paths: list[Path] = []
    commits: list[str] = []
    for path, name in zip(given, names, strict=True):
        if name is None:
            paths.append(Path(path))
            continue
        try:
            found, commit = fetch_checkpoint(name)
        except HubError as error:
            raise HubError(f"no file {str(path)!r} here, and on the hub: {error}") from None
        paths += found
        commits.append(f"{name.repo}@{commit}")
    return Files(tuple(paths), " ".join(dict.fromkeys(commits)))


def fetch_checkpoint(name: HubId) -> tuple[list[Path], str]:
    """Download the files of one name. Returns them and their commit."""
    listed = (
        [name.file] if name.file else list(PUBLISHED.get(name.repo, ())) or chosen(name, list_files(name))
    )
    first = fetch_file(name, listed[0])
    pinned = HubId(name.repo, first.commit)
    others = [fetch_file(pinned, file).path for file in listed[1:]]
    own = PurePosixPath(listed[0]).name == WEIGHTS
    return [first.path, *([] if own else others)], first.commit


def chosen(name: HubId, files: Sequence[str]) -> list[str]:
    """Choose the files of the checkpoint: valle2's own, or all pickles if there are one or two."""
    if WEIGHTS in files:
        return [WEIGHTS, *(file for file in files if file.split("/")[0] in BESIDE)]
    pickles = [file for file in files if PurePosixPath(file).suffix in PICKLES]
    if len(pickles) in (1, 2):
        return pickles
    if not pickles:
        raise HubError(
            f"{name} holds no checkpoint; expected {WEIGHTS} or a file ending in {', '.join(PICKLES)}"
        )
    shown = ", ".join(pickles[:6]) + (", ..." if len(pickles) > 6 else "")
    raise HubError(
        f"{name} holds {len(pickles)} files that may be checkpoints ({shown}); name one or two: "
        f"{name.repo}/{pickles[0]}"
    )
