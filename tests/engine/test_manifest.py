"""A bundle is opened only if its manifest, hashes and paths check out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import edit_manifest
from valle2.engine import Manifest, ManifestError, read_manifest
from valle2.engine.manifest import parse_manifest
from valle2.engine.replace import replacing


def test_round_trip(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    assert parse_manifest(manifest.to_json(), bundle) == Manifest(
        **{name: getattr(manifest, name) for name in manifest.__slots__}
    )


def test_whoever_serves_a_bundle_may_read_it(bundle: Path, tmp_path: Path) -> None:
    """Also a user who did not export it: the weights as `onnx` writes them, and what is made aside."""
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in bundle.rglob("*"))
    with replacing(tmp_path / "made") as aside:
        (aside / "inner").mkdir(0o700)
        (aside / "inner" / "ar.weights").touch(0o600)
    modes = [path.stat().st_mode & 0o777 for path in (tmp_path / "made", *(tmp_path / "made").rglob("*"))]
    assert modes == [0o755, 0o755, 0o644]


def test_missing_file(broken: Path) -> None:
    (broken / "nar.weights").unlink()
    with pytest.raises(ManifestError, match=r"lacks the file nar\.weights"):
        read_manifest(broken)


def test_flipped_byte(broken: Path) -> None:
    data = bytearray((broken / "ar.weights").read_bytes())
    data[100] ^= 1
    (broken / "ar.weights").write_bytes(data)
    with pytest.raises(ManifestError, match="sha256 differs"):
        read_manifest(broken)


def test_newer_format(broken: Path) -> None:
    edit_manifest(broken, lambda values: values.update(format=99))
    with pytest.raises(ManifestError, match=r"format 99.*upgrade"):
        read_manifest(broken)


@pytest.mark.parametrize("name", ["../secret.onnx", "/etc/passwd", "voices/../../x"])
def test_path_that_leaves_the_folder(broken: Path, name: str) -> None:
    edit_manifest(broken, lambda values: values["files"].update({name: "0" * 64}))  # type: ignore[attr-defined]
    with pytest.raises(ManifestError, match="leaves the bundle"):
        read_manifest(broken)


def test_link_that_leaves_the_folder(broken: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes((broken / "nar.weights").read_bytes())
    (broken / "nar.weights").unlink()
    (broken / "nar.weights").symlink_to(outside)
    with pytest.raises(ManifestError, match="leaves the bundle"):
        read_manifest(broken)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "7", '{"format": 1}', "[" * 100_000, '{"format": 1, "graphs": 3}']
)
def test_damaged_manifest(broken: Path, text: str) -> None:
    (broken / "manifest.json").write_text(text)
    with pytest.raises(ManifestError):
        read_manifest(broken)


@pytest.mark.parametrize("entry", ["graphs", "sizes", "codec", "files"])
@pytest.mark.parametrize("value", [None, 3, "x", [1], {"a": "b"}, {"a": None}])
def test_wrong_entries(broken: Path, entry: str, value: object) -> None:
    edit_manifest(broken, lambda values: values.update({entry: value}))
    with pytest.raises(ManifestError):
        read_manifest(broken)


def test_no_bundle_there(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="not a bundle"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ManifestError, match="not a bundle"):
        read_manifest(tmp_path)


def test_json_is_stable(bundle: Path) -> None:
    text = (bundle / "manifest.json").read_text()
    assert json.loads(text)["format"] == 1
    assert text == read_manifest(bundle).to_json()
