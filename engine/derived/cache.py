"""Makes the graphs of a precision from a bundle's recipe, once per user, in the user's cache folder.

Several processes may do so at the same time: a folder appears whole, and the first one stays. What is made
has the hashes that the recipe's record lists, or it is not used.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np

from valle2.engine.bundle.artifacts import build_command
from valle2.engine.bundle.files import replacing_folder
from valle2.engine.bundle.manifest import Manifest, check_file
from valle2.engine.bundle.precisions import (
    RECORD_FILE,
    STORED,
    OrtBuildRecord,
    cached_folder,
    check_build,
    read_build_record,
    recipe_folder,
    recipe_record,
)
from valle2.engine.derived.recipe import CONSTANTS, read_recipe
from valle2.engine.errors import BackendError, Valle2Error

log = logging.getLogger("valle2.engine")
UNKNOWN = ""
"""Stands for the hash of a file whose content is checked by what is made of it."""


def usable_precision(bundle: Path, manifest: Manifest, precision: str) -> str:
    """The precision, with its graphs made if a recipe has to make them; "fp32" if they cannot be kept.

    manifest: the bundle's, in one lowering. A precision without a recipe is returned as it is.
    """
    record = recipe_record(bundle, manifest, precision)
    if record is None:
        return precision
    try:
        folder = cached_folder(manifest, precision)
        if not is_intact(folder, record, bundle, manifest, precision):
            make(folder, record, bundle, manifest, precision)
    except (OSError, ValueError, Valle2Error) as error:
        reason = getattr(error, "strerror", None) or error
        log.warning("%s cannot be kept (%s); running %s in %s", precision, reason, manifest.name, STORED)
        return STORED
    return precision


def is_intact(folder: Path, record: OrtBuildRecord, bundle: Path, manifest: Manifest, precision: str) -> bool:
    """Does a folder have what the record lists?"""
    if read_build_record(folder) != record:
        return False
    try:
        check_build(folder, record, manifest, build_command(bundle, "ort", precision))
    except BackendError:
        return False
    return True


def make(folder: Path, record: OrtBuildRecord, bundle: Path, manifest: Manifest, precision: str) -> None:
    """Make the graphs and their weights.

    Raises:
        OSError: the folder cannot be written. ValueError: the recipe is damaged.
    """
    log.warning("making the %s weights of %s in %s, once", precision, manifest.name, folder)
    folder.parent.mkdir(parents=True, exist_ok=True)

    def is_kept() -> bool:
        """Another process was first."""
        return is_intact(folder, record, bundle, manifest, precision)

    try:
        with replacing_folder(folder, is_kept) as made:
            fill(made, record, bundle, manifest, precision)
            if not is_intact(made, record, bundle, manifest, precision):
                raise ValueError("the recipe makes other weights than its record lists")
    except OSError:
        if not is_kept():
            raise


def fill(made: Path, record: OrtBuildRecord, bundle: Path, manifest: Manifest, precision: str) -> None:
    """Write the files of a record into a folder. Only files that manifest and record list are read.

    Raises:
        OSError: a file cannot be read or written. ValueError: the recipe is damaged. ManifestError: a file is
            not a plain file of the bundle, or has changed.
    """
    source = recipe_folder(bundle, precision)
    recipe = read_recipe(source)
    if recipe is None or not set(recipe) <= set(record.files):
        raise ValueError(f"{source} has no recipe that can be read")
    copied = [name for name in record.files if name not in recipe]
    for name in copied:
        check_file(source, name, record.files[name], check_hash=True)
    check_file(source, CONSTANTS, UNKNOWN, check_hash=False)
    for file in recipe.values():
        check_file(bundle, file.source, manifest.files.get(file.source), check_hash=False)
    constants = np.fromfile(source / CONSTANTS, np.uint8)
    for name, file in recipe.items():
        file.make(np.fromfile(bundle / file.source, np.uint8), constants).tofile(made / name)
    for name in (RECORD_FILE, *copied):
        shutil.copyfile(source / name, made / name)
