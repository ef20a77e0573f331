"""Text that commands read: from standard input and files, with a lexicon, and what is no text."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runtime.cli.test_cli import COMMAND, only_line
from valle2.runtime.cli.main import main
from valle2.runtime.cli.options import MAX_TEXT_BYTES, decoded_text

TEXT = "One line.\nTwo “lines”."


class Terminal(io.BytesIO):
    """Standard input of a person who types."""

    def isatty(self) -> bool:
        return True


def pipe(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def spoken(capsys: pytest.CaptureFixture[str], *args: str) -> list[str]:
    """The sentences that `valle2 text` shows."""
    assert main(["text", *args, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found) == {"sentences", "warnings"}
    assert all(list(each) == ["text", "spoken", "phonemes", "ids"] for each in found["sentences"])
    return [each["text"] for each in found["sentences"]]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("args", [["-"], ["--text-file", "-"]])
def test_text_on_standard_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], end: str, mark: str, args: list[str]
) -> None:
    pipe(monkeypatch, (mark + TEXT.replace("\n", end)).encode())
    assert spoken(capsys, *args) == ["One line.", "Two “lines”."]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (TEXT.encode("utf-16"), "UTF-16 text.*iconv -f UTF-16 -t UTF-8"),
        (TEXT.encode("utf-16-le"), "UTF-16LE text.*iconv -f UTF-16LE"),
        (TEXT.encode("utf-16-be"), "UTF-16BE text.*iconv -f UTF-16BE"),
        (b"\xfe\xff" + TEXT.encode("utf-16-be"), "UTF-16 text"),
        (TEXT.encode("utf-32"), "UTF-32 text"),
        (TEXT.encode("utf-32-le"), "UTF-32LE text"),
        (TEXT.encode("utf-32-be"), "UTF-32BE text"),
        (TEXT.encode("cp1252"), "not UTF-8 text"),
        ("日本語".encode("utf-16-le"), "not UTF-8 text|UTF-16"),
        (b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR", "binary data and no text"),
        (b"Hello\x00there, this is odd", "binary data and no text"),
        (b"\x00", "binary data and no text"),
        (b"ID3\x03\x00\xff\xfb\x90", "binary data and no text"),
        (b"\x1f\x8b\x08\xff", "not UTF-8 text"),
    ],
)
def test_what_is_no_text_is_refused_as_what_it_is(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    data: bytes,
    said: str,
) -> None:
    with pytest.raises(ValueError, match=f"x is .*({said})"):
        decoded_text(data, "x")
    pipe(monkeypatch, data)
    assert main(["text", "-"]) == 1
    assert "standard input is" in only_line(capsys)
    (tmp_path / "text").write_bytes(data)
    assert main(["text", "--text-file", str(tmp_path / "text")]) == 1
    assert "expected UTF-8: convert it first" in only_line(capsys)


def test_standard_input_that_gives_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe(monkeypatch, b"")
    assert main(["text", "-"]) == 1 and "empty or closed" in only_line(capsys)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(Terminal()))
    assert main(["text", "-"]) == 1 and "a terminal" in only_line(capsys)
    pipe(monkeypatch, b"a" * (MAX_TEXT_BYTES + 1))
    assert main(["text", "-"]) == 1 and "more than" in only_line(capsys)
    pipe(monkeypatch, b"a")
    assert main(["text", "-", "--text-file", "-"]) == 1 and "expected a text" in only_line(capsys)


def test_a_closed_standard_input_is_one_line() -> None:
    done = subprocess.run(
        f"{sys.executable} -m valle2.runtime.cli text - <&-",
        shell=True,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "standard input" in done.stderr


def test_a_pipe_is_read() -> None:
    done = subprocess.run([*COMMAND, "text", "-", "--json"], input=b"Hello.", capture_output=True, check=True)
    assert json.loads(done.stdout)["sentences"][0]["text"] == "Hello."


def test_a_lexicon(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = tmp_path / "words.tsv"
    words.write_text("Ljubljana\tljuːbˈljɑːnə\n", encoding="utf-8")
    assert main(["text", "In Ljubljana.", "--lexicon", str(words), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["sentences"]
    assert found["text"] == "In Ljubljana." and "ljubljˈɑnə" in found["phonemes"]
    words.write_text("Ljubljana ljuːbˈljɑːnə\n", encoding="utf-8")
    assert main(["text", "In Ljubljana.", "--lexicon", str(words)]) == 1
    assert "words.tsv, line 1" in only_line(capsys)
    assert main(["say", "hello", "--lexicon", str(tmp_path / "none"), "--model", str(bundle)]) == 1
    assert "cannot be read" in only_line(capsys)


def test_warnings_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["text", "你好 world"]) == 0
    assert "warning: left out, because only Latin letters are read: '你好'" in capsys.readouterr().out


def test_ssml_with_a_mistake_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["text", "<speak>a\n<b>x</speak>"]) == 1
    assert "line 2, column 7" in only_line(capsys)
