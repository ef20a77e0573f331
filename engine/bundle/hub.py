"""Fetches files from the Hugging Face hub: `owner/name`, `owner/name@revision`, `owner/name/file@revision`.

Downloads go to the hub's own cache, which other programs share. The cache holds links that leave their
folder, so a bundle is hard-linked from there into a folder of plain files. huggingface_hub is imported only
when something is fetched.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from valle2.engine.bundle.files import replacing_file, sha256
from valle2.engine.bundle.manifest import FILE_NAME, MAX_BYTES, parse_manifest
from valle2.engine.bundle.untrusted import exists, read_bounded
from valle2.engine.errors import HubError, ManifestError

PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
ID = re.compile(rf"(?P<repo>{PART}/{PART})(?P<file>(?:/[^/@\\]+)*)(?:@(?P<revision>[A-Za-z0-9][\w./-]*))?")
MAX_ID = 1000
MAIN = "main"
BUNDLES = "bundles"
CACHE_VARIABLES = ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME")
"""Variables of the environment that name the folder of the hub's cache."""
REASONS: dict[str, str] = {
    "GatedRepoError": "is gated; ask for access on its page, then log in with: hf auth login",
    "RepositoryNotFoundError": "is not on the hub, or is private; check the name, or log in: hf auth login",
    "RevisionNotFoundError": "has no revision {revision!r} on the hub; leave @{revision} out for {main}",
    "RemoteEntryNotFoundError": "has no file {file} on the hub; check its page",
    "HFValidationError": "is not a name on the hub; expected owner/name",
}
"""What an error of huggingface_hub means, by the name of its class or of a base. The first match counts."""


@dataclass(frozen=True, slots=True)
class HubId:
    """A name on the hub. file: one file of the repository, empty for all of it."""

    repo: str
    revision: str = MAIN
    file: str = ""

    def __str__(self) -> str:
        return self.repo + (f"@{self.revision}" if self.revision != MAIN else "")


@dataclass(frozen=True, slots=True)
class Fetched:
    """A file in the hub's cache, and the commit that it belongs to."""

    path: Path
    commit: str


def parse_id(text: str | Path) -> HubId | None:
    """The text as a name on the hub, None if it is not one."""
    name = text.as_posix() if isinstance(text, Path) else text
    found = ID.fullmatch(name) if len(name) <= MAX_ID else None
    if found is None:
        return None
    return HubId(found["repo"], found["revision"] or MAIN, found["file"].removeprefix("/"))


def fetch_bundle(name: HubId) -> Path:
    """Fetch a bundle: its manifest, then the files that the manifest lists and no others.

    Files that are already here are not fetched again.

    Returns:
        The bundle's folder.

    Raises:
        HubError: it cannot be fetched, its manifest is refused, or a file has another hash than its manifest
            says.
    """
    if name.file:
        raise HubError(f"{name.repo}/{name.file} is a file; expected a bundle such as {name.repo}")
    try:
        listed = fetch_file(name, FILE_NAME)
    except HubError as error:
        if "has no file" not in str(error):
            raise
        raise HubError(
            f"{name} holds no bundle (no {FILE_NAME}); if it holds a checkpoint, make a bundle of it: "
            f"valle2 export {name} -o {name.repo.split('/')[1].lower()}"
        ) from None
    try:
        manifest = parse_manifest(read_bounded(listed.path, MAX_BYTES), listed.path)
    except (ManifestError, OSError) as error:
        raise HubError(f"{name} holds no bundle that can be used: {error}") from None
    folder = listed.path.parents[2] / BUNDLES / listed.commit
    pinned = HubId(name.repo, listed.commit)
    for file in sorted(manifest.files):
        if not exists(folder / file):
            link_file(fetch_file(pinned, file).path, folder / file, manifest.files[file], name)
    if not exists(folder / FILE_NAME):
        link_file(listed.path, folder / FILE_NAME, "", name)
    return folder


def link_file(cached: Path, target: Path, digest: str, name: HubId) -> None:
    """Check the hash of a cached file and link it into the bundle. digest: empty for the manifest itself."""
    real = cached.resolve()
    if digest and sha256(real) != digest:
        cached.unlink()
        real.unlink(missing_ok=True)
        raise HubError(
            f"{target.name} of {name} is not the file that its manifest lists (sha256 differs); it was "
            "deleted here: try again, and if that does not help, tell the owner"
        )
    with explained(name, target.name):
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing_file(target) as part:
            try:
                os.link(real, part)
            except OSError:  # a file system without hard links
                shutil.copyfile(real, part)


def fetch_file(name: HubId, file: str) -> Fetched:
    """Fetch one file, from the cache if it is there. A broken download continues where it stopped.

    Raises:
        HubError: it cannot be fetched.
    """
    check_installed()
    import huggingface_hub.constants

    with explained(name, file):
        path = Path(huggingface_hub.hf_hub_download(name.repo, file, revision=name.revision))
    return Fetched(path, path.parents[len(Path(file).parents) - 1].name)


def list_files(name: HubId) -> list[str]:
    """Names of all files of a repository; offline, of those in the cache.

    Raises:
        HubError: the hub cannot be reached and the cache has none.
    """
    check_installed()
    import huggingface_hub.constants

    with explained(name, "list of files"):
        if not huggingface_hub.constants.HF_HUB_OFFLINE:
            return sorted(huggingface_hub.HfApi().list_repo_files(name.repo, revision=name.revision))
        folder = Path(
            huggingface_hub.snapshot_download(name.repo, revision=name.revision, allow_patterns=["*/"])
        )
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def check_installed() -> None:
    """Check that the hub's library is here and has a folder for its cache.

    Without a home folder the library would make a folder named `~` in the current one.

    Raises:
        HubError: the library is not installed, or nothing names a folder.
    """
    if find_spec("huggingface_hub") is None:
        raise HubError("models of the hub need huggingface_hub; install with: pip install 'valle2[hub]'")
    named = any(os.environ.get(name) for name in CACHE_VARIABLES)
    if not named and not os.path.isabs(os.path.expanduser("~")):
        raise HubError(
            "the home folder is unknown, because HOME is not set; set HF_HOME to a folder for models of the "
            "hub"
        )


@contextmanager
def explained(name: HubId, file: str) -> Iterator[None]:
    """Turn any error of the block into a HubError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Exception as error:  # huggingface_hub, its HTTP client and the file system all raise their own
        raise HubError(f"{name} {reason(error, name, file)}") from None


def reason(error: Exception, name: HubId, file: str) -> str:
    """What an error means, as the end of a sentence that begins with the model's name."""
    bases = {base.__name__ for base in type(error).__mro__}
    for known, text in REASONS.items():
        if known in bases:
            return text.format(revision=name.revision, file=file, main=MAIN)
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return f"may not be read (HTTP {status}); log in with: hf auth login"
    if status is not None:
        return f"cannot be read: the hub answered {file} with HTTP {status}; try again later"
    if getattr(error, "errno", None) == errno.ENOSPC:
        return f"does not fit on the disk ({file}); make room, or set HF_HOME to a folder with more"
    if isinstance(error, PermissionError):
        return f"cannot be stored: {error.filename} is read-only; set HF_HOME to a folder of yours"
    if bases & {"LocalEntryNotFoundError", "OfflineModeIsEnabled", "HTTPError", "ConnectionError"}:
        return (
            f"is not on this machine ({file}) and the hub cannot be reached; "
            "go online, or unset HF_HUB_OFFLINE"
        )
    return f"cannot be fetched: {' '.join(str(error).split())[:200] or type(error).__name__}; try again"
