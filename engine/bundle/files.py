"""A folder that is written aside and takes its place whole, or not at all."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A folder beside the target that takes its place when the block ends well."""
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield aside
        for path in (aside, *aside.rglob("*")):  # onnx writes weights that one user can read
            path.chmod(0o755 if path.is_dir() else 0o644)
        if target.exists():
            old = aside.with_name(f"{aside.name}.old")
            target.rename(old)
            aside.rename(target)
            shutil.rmtree(old)
        else:
            aside.rename(target)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
