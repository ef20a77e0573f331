"""Hashes of files, and files and folders that appear whole or not at all.

New content is written under another name in the same folder and takes its place with a rename. If anything
fails before that, the old content stays as it was.
"""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from valle2.engine.errors import Valle2Error

PART_SUFFIX = ".part"
"""Of the names that content has while it is written: hidden, random, and short enough for any file system."""
OCCUPIED = {errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR}
"""What systems answer to a folder's rename if something else than an empty folder has the name."""
READ_BYTES = 2**20
"""Bytes of a file that are read at once."""


def cache_directory() -> Path:
    """This user's cache directory: the one that the environment names, or the platform's own.

    Raises:
        Valle2Error: the environment names none and this user has no home folder.
    """
    variable = "LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME"
    named = "" if sys.platform == "darwin" else os.environ.get(variable)
    try:
        if sys.platform == "win32":
            return (Path(named) if named else Path.home() / "AppData" / "Local") / "valle2" / "Cache"
        if sys.platform == "darwin":
            return Path.home() / "Library" / "Caches" / "valle2"
        return (Path(named) if named else Path.home() / ".cache") / "valle2"
    except RuntimeError:
        raise Valle2Error(
            f"the home folder is unknown, because HOME is not set; set {variable} to a folder for "
            "files that valle2 keeps"
        ) from None


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(READ_BYTES):
            digest.update(part)
    return digest.hexdigest()


@contextmanager
def replacing_file(target: Path) -> Iterator[Path]:
    """Yield an unused path beside the target. The file made there becomes the target when the block ends.

    If the block raises, what it made is removed.

    Raises:
        OSError: the file cannot be renamed.
    """
    part = part_beside(target)
    try:
        yield part
        os.replace(part, target)
    finally:
        with suppress(OSError):  # the rename took it away, or the folder has become read-only
            part.unlink(missing_ok=True)


@contextmanager
def replacing_folder(target: Path, is_kept: Callable[[], bool] | None = None) -> Iterator[Path]:
    """Yield a new folder beside the target. It becomes the target when the block ends.

    Everybody may read what it holds. If the block raises, the folder is removed.

    Args:
        is_kept: does a target that is there when the block ends stay? By default it does not.

    Raises:
        OSError: the folder cannot be made or renamed.
    """
    part = part_beside(target)
    part.mkdir()
    try:
        yield part
        for path in (part, *part.rglob("*")):  # onnx writes weights that only their owner may read
            path.chmod(0o755 if path.is_dir() else 0o644)
        swap_folder(part, target, is_kept)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_file(target: Path, data: bytes | memoryview) -> None:
    """Replace a file's content.

    Raises:
        OSError: it cannot be written; the earlier content is untouched.
    """
    with replacing_file(target) as part:
        part.write_bytes(data)


def swap_folder(part: Path, target: Path, is_kept: Callable[[], bool] | None = None) -> None:
    """Rename a folder to the target, then remove the folder that was there.

    A full folder cannot be replaced in one rename, so for a moment there is none at the target. If the second
    of the two fails, the first is undone. With `is_kept`, a folder that another process has put there may
    stay, and its readers see it all the time.
    """
    try:
        part.rename(target)
        return
    except OSError as error:
        if error.errno not in OCCUPIED or not target.exists():
            raise
    if is_kept is not None and is_kept():
        return
    old = part_beside(target)
    target.rename(old)
    try:
        part.rename(target)
    except BaseException:
        old.rename(target)
        raise
    if old.is_symlink():
        old.unlink()
    else:
        shutil.rmtree(old, ignore_errors=True)


def part_beside(target: Path) -> Path:
    """An unused name in the target's folder."""
    return target.with_name(f".{secrets.token_hex(8)}{PART_SUFFIX}")
