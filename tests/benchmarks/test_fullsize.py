"""The full-size model, tried on small sizes: made once, found again, speech of the requested length."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.benchmarks.conftest import SMALL
from valle2.benchmarks import fullsize
from valle2.benchmarks.fullsize import SIZES, FullSizeModel, full_size
from valle2.engine.bundle.files import cache_directory
from valle2.engine.errors import Valle2Error
from valle2.runtime import Settings, Valle2


def test_the_papers_sizes() -> None:
    assert (SIZES["layers"], SIZES["d_model"], SIZES["heads"], SIZES["ffn"]) == (12, 1024, 16, 4096)
    assert SIZES["max_text"] + 1 + SIZES["max_frames"] // SIZES["group_size"] >= 3000 + 16


def test_lengths_are_what_was_asked_for(small_full_size: FullSizeModel) -> None:
    tts = Valle2.load(small_full_size.bundle, precision="fp32")
    settings = Settings(top_p=0.0, threshold=1.0, max_frames=60)
    speech = tts.synthesize(fullsize.TEXT, tts.voice("noise"), settings)
    assert len(speech.codes) == 60 and speech.finish_reason == "max_frames"


def test_a_cached_model_is_not_made_again(
    small_full_size: FullSizeModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fullsize, "make", lambda *_: pytest.fail("made again"))
    assert full_size(small_full_size.bundle.parents[1], **SMALL) == small_full_size


def test_without_torch_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fullsize, "find_spec", lambda name: None)
    with pytest.raises(Valle2Error, match=r"pip install 'valle2\[export\]'"):
        full_size(tmp_path, **SMALL)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="the rule of Linux")
def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_directory() == tmp_path / "valle2"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_directory() == Path.home() / ".cache" / "valle2"


@pytest.mark.skipif(sys.platform != "linux", reason="the rule of Linux")
def test_the_cache_of_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_directory() == tmp_path / "valle2"
    monkeypatch.delenv("XDG_CACHE_HOME")
    with pytest.raises(Valle2Error, match="set XDG_CACHE_HOME to a folder"):
        cache_directory()
