"""Models of the hub, fetched from a small server that speaks its protocol."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import huggingface_hub.constants
import pytest

from tests.hub import REPO, Hub, serve
from valle2.engine import HubError, hash_files, read_manifest, write_manifest
from valle2.engine.bundle import hub as hub_module
from valle2.engine.bundle.hub import HubId, fetch_bundle, parse_id
from valle2.export.importers.locate import find_files
from valle2.runtime.errors import ModelError
from valle2.runtime.tts import MODELS, find_model

BIG = os.urandom(300_000)
NAME = HubId(REPO)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.setattr(huggingface_hub.constants, "DOWNLOAD_CHUNK_SIZE", 4096)
    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)
    return tmp_path / "cache"


@pytest.fixture
def server(cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serve() as hub:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield hub
        huggingface_hub.close_session()


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()


def small_bundle(folder: Path) -> dict[str, bytes]:
    """Files of a bundle that no engine can run, and two that its manifest does not list."""
    folder.mkdir()
    manifest = read_manifest(MODELS / "demo", check_hashes=False)
    graphs = {name: graph for name, graph in manifest.graphs.items() if name in ("ar", "nar")}
    for name in ("ar.onnx", "ar.weights", "nar.onnx"):
        (folder / name).write_bytes(BIG if name == "ar.weights" else name.encode())
    write_manifest(folder, replace(manifest, graphs=graphs, others={}, files=hash_files(folder)))
    listed = {path.name: path.read_bytes() for path in folder.iterdir()}
    return listed | {"README.md": b"read me", "extra.pt": b"unwanted"}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes]:
    return small_bundle(tmp_path / "made")


def test_only_listed_files_are_fetched_and_once(server: Hub, files: dict[str, bytes]) -> None:
    commit = server.commit(files)
    folder = fetch_bundle(NAME)
    assert folder.name == commit and read_manifest(folder).name
    assert sorted(server.got()) == ["ar.onnx", "ar.weights", "manifest.json", "nar.onnx"]
    assert not any(path.is_symlink() for path in folder.iterdir())
    server.asked.clear()
    assert fetch_bundle(NAME) == folder and server.got() == []


def test_a_revision_is_pinned(server: Hub, files: dict[str, bytes]) -> None:
    old = server.commit(files, "v1")
    server.commit({**files, "README.md": b"newer"})
    assert fetch_bundle(HubId(REPO, "v1")).name == old == fetch_bundle(HubId(REPO, old)).name
    assert fetch_bundle(NAME).name != old
    with pytest.raises(HubError, match="has no revision 'v9' on the hub; leave @v9 out"):
        fetch_bundle(HubId(REPO, "v9"))


def test_a_broken_download_goes_on_where_it_broke(server: Hub, files: dict[str, bytes]) -> None:
    server.commit(files)
    server.cut["ar.weights"] = [200_000]
    folder = fetch_bundle(NAME)
    ranges = [asked for _, path, asked in server.asked if path.endswith("ar.weights") and asked]
    assert ranges == [f"bytes={200_000 // 4096 * 4096}-"]
    assert (folder / "ar.weights").read_bytes() == BIG


def test_finished_files_survive_an_interruption(
    server: Hub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    server.commit(files)
    place = hub_module.link_file

    def interrupted(cached: Path, target: Path, digest: str, name: HubId) -> None:
        if target.name == "nar.onnx":
            raise KeyboardInterrupt
        place(cached, target, digest, name)

    monkeypatch.setattr(hub_module, "link_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch_bundle(NAME)
    monkeypatch.setattr(hub_module, "link_file", place)
    server.asked.clear()
    read_manifest(fetch_bundle(NAME))
    assert server.got() == []


def test_a_corrupt_file_is_named_deleted_and_fetched_again(server: Hub, files: dict[str, bytes]) -> None:
    good, commit = files["ar.weights"], server.commit(files)
    server.commits[commit]["ar.weights"] = b"x" * len(good)
    with pytest.raises(HubError, match=r"ar.weights of team/voice is not the file .*sha256 differs"):
        fetch_bundle(NAME)
    server.commits[commit]["ar.weights"] = good
    read_manifest(fetch_bundle(NAME))


def test_offline_uses_the_cache(
    server: Hub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    server.commit(files)
    folder = fetch_bundle(NAME)
    offline(monkeypatch)
    server.asked.clear()
    assert fetch_bundle(NAME) == folder and server.asked == []
    with pytest.raises(HubError, match=r"other/one is not on this machine .*cannot be reached; go online"):
        fetch_bundle(HubId("other/one"))


REFUSALS = {
    (401, "RepoNotFound"): "is not on the hub, or is private",
    (401, ""): "may not be read .HTTP 401.; log in",
    (403, "GatedRepo"): "is gated; ask for access",
    (404, "RepoNotFound"): "is not on the hub, or is private",
}


@pytest.mark.parametrize("refusal", REFUSALS)
def test_refusals_are_one_line(server: Hub, refusal: tuple[int, str]) -> None:
    server.refusals["other/one"] = refusal
    with pytest.raises(HubError, match=REFUSALS[refusal]) as caught:
        find_model("other/one")
    assert "no folder 'other/one' here" in str(caught.value) and "\n" not in str(caught.value)


def test_a_full_disk_and_a_missing_package(
    server: Hub, files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    server.commit(files)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(huggingface_hub, "hf_hub_download", full)
        with pytest.raises(HubError, match="does not fit on the disk"):
            fetch_bundle(NAME)
    monkeypatch.setattr(hub_module, "find_spec", lambda name: None)
    with pytest.raises(HubError, match=r"pip install 'valle2\[hub\]'"):
        fetch_bundle(NAME)


def test_a_repository_without_a_bundle_says_how_to_make_one(server: Hub) -> None:
    server.commit({"model.pt": b"x"})
    with pytest.raises(HubError, match="valle2 export team/voice -o voice"):
        fetch_bundle(NAME)


def test_a_manifest_that_leads_out_is_refused(server: Hub, files: dict[str, bytes]) -> None:
    text = files["manifest.json"].decode().replace('"nar.onnx": "', '"../nar.onnx": "')
    server.commit({**files, "manifest.json": text.encode()})
    with pytest.raises(HubError, match="leaves the bundle"):
        fetch_bundle(NAME)


def test_embedded_models_and_folders_win(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "team/voice").mkdir(parents=True)
    with pytest.raises(ModelError, match="folders win over the hub"):
        find_model(REPO)
    (tmp_path / "team/voice/manifest.json").touch()
    assert find_model(REPO) == Path(REPO) and find_model("demo") == MODELS / "demo"


@pytest.mark.parametrize(
    "text", ["demo", "./a/b", "/a/b", "../b", "a//b", "a\\b", "a/b@", "a/b@../x", "~/a/b"]
)
def test_what_is_no_name_of_the_hub(text: str) -> None:
    assert parse_id(text) is None


def test_names_of_the_hub() -> None:
    assert parse_id("a/b.c") == HubId("a/b.c") and parse_id(Path("a/b@v1.0")) == HubId("a/b", "v1.0")
    assert parse_id("a/b/x/y.pt@main") == HubId("a/b", "main", "x/y.pt")


def test_checkpoints_of_the_hub(server: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    own = {"model.safetensors": b"w", "text/t.json": b"t", "voices/v.safetensors": b"v", "other.pt": b"o"}
    commit = server.commit(own)
    found = find_files([REPO])
    assert found.hub == f"{REPO}@{commit}" and [path.name for path in found.paths] == ["model.safetensors"]
    assert (found.paths[0].parent / "text/t.json").read_bytes() == b"t" and "other.pt" not in server.got()
    server.commit({"a.pt": b"a", "b.pt": b"b", "README.md": b""}, "two")
    assert [path.name for path in find_files([f"{REPO}@two"]).paths] == ["a.pt", "b.pt"]
    server.commit({"a.pt": b"a", "b.pt": b"b", "c.bin": b"c"}, "many")
    with pytest.raises(HubError, match=r"3 files .*a.pt, b.pt, c.bin.*; name one or two: team/voice/a.pt"):
        find_files([f"{REPO}@many"])
    one, two = find_files([f"{REPO}/a.pt@many", f"{REPO}/c.bin@many"]).paths
    assert (one.read_bytes(), two.read_bytes()) == (b"a", b"c")
    with pytest.raises(HubError, match=r"has no file d.pt on the hub"):
        find_files([f"{REPO}/d.pt@many"])
    server.commit({"README.md": b""}, "none")
    with pytest.raises(HubError, match="holds no checkpoint"):
        find_files([f"{REPO}@none"])
    offline(monkeypatch)
    assert [path.name for path in find_files([f"{REPO}@two"]).paths] == ["a.pt", "b.pt"]


def test_the_command_line_speaks_with_a_model_of_the_hub(server: Hub, tmp_path: Path) -> None:
    """In a process of its own: no torch, progress and messages as a user sees them."""
    demo = MODELS / "demo"
    server.commit({p.relative_to(demo).as_posix(): p.read_bytes() for p in demo.rglob("*") if p.is_file()})
    code = (
        "import sys\n"
        "from valle2.runtime.cli.main import main\n"
        f"assert main(['say', 'hello', '--model', '{REPO}', '-o', {str(tmp_path / 'o.wav')!r}]) == 0\n"
        f"assert main(['inspect', '{REPO}', '--json']) == 0\n"
        "assert main(['inspect', 'other/one']) == 1\n"
        "assert 'torch' not in sys.modules\n"
    )
    environment = {**os.environ, "HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and (tmp_path / "o.wav").stat().st_size > 1000, done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("valle2:")]
    assert len(errors) == 1 and "other/one is not on the hub" in errors[0]


def test_a_user_without_a_home_is_told_to_name_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as without HOME and without an account
    for name in hub_module.CACHE_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(HubError, match="set HF_HOME to a folder"):
        fetch_bundle(HubId("owner/name"))
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    hub_module.check_installed()
