"""Voices, presets and text files of strangers: one line for what is wrong, bounded in time and memory."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.fuzz.toy import write_preset, write_text, write_toy
from valle2.engine import ManifestError, read_manifest
from valle2.runtime import Prompt, Valle2
from valle2.runtime.cli.main import main
from valle2.runtime.errors import ModelError, PromptError, TextError
from valle2.runtime.presets import ENTRIES, read_preset
from valle2.runtime.text.tokenizer import MAX_PREPARED, TextFrontEnd
from valle2.runtime.voices import MAX_BYTES, MAX_FRAMES, read_prompt, store_prompt, voice_names

CODES = np.arange(80, dtype=np.int64).reshape(10, 8)


def refused(read: Callable[[], object], kind: type[Exception] = PromptError) -> str:
    """The one line of an error, for which no more memory is taken than a file of the greatest size has."""
    tracemalloc.start()
    try:
        with pytest.raises(kind) as error:
            read()
        assert tracemalloc.get_traced_memory()[1] < 32 * 2**20
    finally:
        tracemalloc.stop()
    message = str(error.value)
    assert len(message.splitlines()) == 1 and len(message) < 700
    return message


# -- voices -----------------------------------------------------------------------------------


def voice_file(header: Any, data: bytes = CODES.astype("<i2").tobytes(), size: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode("utf-8", "surrogatepass")
    return (len(text) if size is None else size).to_bytes(8, "little") + text + data


def header(**changes: Any) -> dict[str, Any]:
    """A header; changes: of the entry of the codes."""
    return {"codes": {"dtype": "I16", "shape": [10, 8], "data_offsets": [0, 160]} | changes}


VOICES: dict[str, bytes] = {
    "empty": b"",
    "seven bytes": b"\0" * 7,
    "no header": b"\0" * 8,
    "a header beyond the file": voice_file(header(), size=2**63),
    "a header of all numbers": b"\xff" * 8 + b"{}",
    "a header cut off": voice_file(header())[:40],
    "a large header": voice_file(b" " * (2**20 + 1) + b"{}"),
    "no JSON": voice_file(b"{'codes'"),
    "deep JSON": voice_file(b"[" * 500_000),
    "a list": voice_file([1]),
    "no codes": voice_file({"other": header()["codes"]}),
    "codes that are text": voice_file({"codes": "x"}),
    "codes twice": voice_file(b'{"codes": 1, "codes": 1}'),
    "floats": voice_file(header(dtype="F16")),
    "an unknown type": voice_file(header(dtype="I4")),
    "a type that is a list": voice_file(header(dtype=["I16"])),
    "one axis": voice_file(header(shape=[80])),
    "three axes": voice_file(header(shape=[1, 10, 8])),
    "a huge shape": voice_file(header(shape=[2**40, 8])),
    "a shape that overflows": voice_file(header(shape=[2**63, 2**63])),
    "a negative shape": voice_file(header(shape=[-10, -8])),
    "a shape of text": voice_file(header(shape=["10", "8"])),
    "no frames": voice_file(header(shape=[0, 8], data_offsets=[0, 0])),
    "four codebooks": voice_file(header(shape=[20, 4])),
    "offsets beyond the file": voice_file(header(data_offsets=[0, 2**40])),
    "offsets in reverse": voice_file(header(data_offsets=[160, 0])),
    "negative offsets": voice_file(header(data_offsets=[-160, 0])),
    "one offset": voice_file(header(data_offsets=[160])),
    "codes cut off": voice_file(header(), b"\0" * 100),
    "codes beyond 1023": voice_file(header(), np.full(80, 1024, "<i2").tobytes()),
    "codes below 0": voice_file(header(), np.full(80, -1, "<i2").tobytes()),
    "a large number": voice_file(header(dtype="U64", data_offsets=[0, 640]), b"\xff" * 640),
    "too many frames": voice_file(
        header(shape=[MAX_FRAMES + 1, 8], data_offsets=[0, 16 * (MAX_FRAMES + 1)]),
        bytes(16 * (MAX_FRAMES + 1)),
    ),
    "a large file": voice_file(header(), bytes(MAX_BYTES)),
    "metadata that is a list": voice_file({**header(), "__metadata__": [1]}),
    "metadata of numbers": voice_file({**header(), "__metadata__": {"transcript": 3}}),
    "a long transcript": voice_file({**header(), "__metadata__": {"transcript": "a" * 20_000}}),
    "a transcript that moves the cursor": voice_file({**header(), "__metadata__": {"transcript": "\x1b[2J"}}),
    "half a character": voice_file({**header(), "__metadata__": {"source": "\ud800"}}),
}


@pytest.mark.parametrize("kind", VOICES)
def test_a_voice_file_that_is_none(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "v.safetensors"
    path.write_bytes(VOICES[kind])
    assert "is not a voice file" in refused(lambda: read_prompt(path, "v"))


@pytest.mark.parametrize("kind", ["absent", "folder", "pipe", "device"])
def test_something_else_in_a_voice_s_place(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "v.safetensors"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    assert "is not a voice file" in refused(lambda: read_prompt(path, "v"))


@pytest.mark.parametrize("kind", ["I16", "U16", "I32", "U32", "I64", "U64"])
def test_voices_of_every_whole_type(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "v.safetensors"
    numbers = CODES.astype(f"<{kind[0].lower()}{int(kind[1:]) // 8}").tobytes()
    path.write_bytes(voice_file(header(dtype=kind, data_offsets=[0, len(numbers)]), numbers))
    assert np.array_equal(read_prompt(path, "v").codes, CODES)


def test_a_voice_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "v.safetensors"
    store_prompt(path, Prompt(CODES, "Héllo,\r\nthere.", "v", "me", "CC0", "given"))
    found = read_prompt(path, "v")
    assert np.array_equal(found.codes, CODES) and found.codes.dtype == np.int64
    assert (found.transcript, found.source, found.licence) == ("Héllo,\nthere.", "me", "CC0")


def test_no_voice_is_read_that_the_manifest_does_not_list(tmp_path: Path) -> None:
    write_toy(tmp_path / "toy")
    manifest = read_manifest(tmp_path / "toy")
    files = dict.fromkeys(
        ("voices/sub/amber.safetensors", "voices/A.safetensors", "voices/b.safetensors"), "0"
    )
    object.__setattr__(manifest, "files", files)
    assert voice_names(manifest) == ["b"]


# -- presets ----------------------------------------------------------------------------------


def npy(shape: Any, data: bytes, kind: str = "<i8", version: tuple[int, int] = (1, 0)) -> bytes:
    text = f"{{'descr': {kind!r}, 'fortran_order': False, 'shape': {shape!r}}}".encode()
    return (
        b"\x93NUMPY"
        + bytes(version)
        + len(text).to_bytes(2 if version[0] == 1 else 4, "little")
        + text
        + data
    )


def preset_file(audio: bytes | None = None, text: bytes | None = None, **given: Any) -> bytes:
    """An archive with other bytes in the place of an entry."""
    usual = [npy((1, 4, 8), bytes(256)), npy((1, 3), bytes(24)), npy((), (2).to_bytes(8, "little"))]
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data, own in zip(ENTRIES, usual, (audio, text, given.get("language")), strict=True):
            archive.writestr(f"{name}.npy", data if own is None else own)
    return written.getvalue()


PRESETS: dict[str, bytes] = {
    "empty": b"",
    "no archive": b"PK\x03\x04" + bytes(100),
    "a bomb": preset_file(npy((1, 2**23, 8), bytes(2**26))),
    "a bomb in the text": preset_file(text=npy((1, 2**23), bytes(2**26))),
    "a shape beyond its bytes": preset_file(npy((1, 2**40, 8), bytes(256))),
    "a shape that overflows": preset_file(npy((1, 2**62, 8), b"")),
    "a negative shape": preset_file(npy((1, -4, 8), bytes(256))),
    "many axes": preset_file(npy((1,) * 200, bytes(8))),
    "objects": preset_file(npy((1, 4, 8), bytes(256), "|O")),
    "floats": preset_file(npy((1, 4, 8), bytes(256), "<f8")),
    "records": preset_file(npy((1, 4, 8), bytes(256), "|V8")),
    "text": preset_file(npy((1, 4, 8), bytes(1024), "<U1")),
    "a pickle": preset_file(b"\x80\x04cos\nsystem\n(X\x04\x00\x00\x00trueR."),
    "no header": preset_file(b"\x93NUMPY\x01\x00"),
    "another version": preset_file(npy((1, 4, 8), bytes(256), version=(9, 0))),
    "a header that is code": preset_file(b"\x93NUMPY\x01\x00\x10\x00__import__('os')" + bytes(256)),
    "a deep header": preset_file(b"\x93NUMPY\x01\x00\xe8\x03" + b"(" * 1000 + bytes(256)),
    "a long header": preset_file(b"\x93NUMPY\x02\x00\x00\x00\x10\x00" + b" " * 2**20),
    "codes beyond 1023": preset_file(npy((1, 4, 8), b"\xff\x7f" + bytes(254))),
    "codes below 0": preset_file(npy((1, 4, 8), b"\xff" * 256)),
    "phones below 0": preset_file(text=npy((1, 3), b"\xff" * 24)),
    "no phones": preset_file(text=npy((1, 0), b"")),
    "an unknown language": preset_file(language=npy((), (7).to_bytes(8, "little"))),
    "several languages": preset_file(language=npy((2,), bytes(16))),
    "cut off": preset_file()[:-30],
    "a large file": preset_file() + bytes(2**23),
}


@pytest.mark.parametrize("kind", PRESETS)
def test_a_preset_that_is_none(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "v.npz"
    path.write_bytes(PRESETS[kind])
    refused(lambda: read_preset(path))


def test_damaged_presets(tmp_path: Path) -> None:
    """Every byte in turn: read, or refused in one line."""
    path = write_preset(tmp_path / "v.npz")
    data = path.read_bytes()
    for index in range(0, len(data), 3):
        path.write_bytes(data[:index] + bytes([data[index] ^ 0xFF]) + data[index + 1 :])
        try:
            assert read_preset(path).codes.shape == (4, 8)
        except PromptError as error:
            assert len(str(error).splitlines()) == 1


def test_numpy_s_own_presets_are_read(tmp_path: Path) -> None:
    writers: tuple[Any, ...] = (np.savez, np.savez_compressed)  # numpy's stubs differ between its versions
    for write in writers:
        arrays = (CODES[None].astype(np.int32), np.asfortranarray(np.ones((1, 3), np.int16)), np.array([1]))
        write(tmp_path / "v.npz", **dict(zip(ENTRIES, arrays, strict=True)))
        preset = read_preset(tmp_path / "v.npz")
        assert np.array_equal(preset.codes, CODES) and preset.language == "ja"


# -- text -------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "text").mkdir()
    write_text(tmp_path / "text")
    return tmp_path


def changed(folder: Path, **changes: Any) -> str:
    """The line in which a tokenizer with other entries is refused."""
    path = folder / "text" / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return refused(lambda: TextFrontEnd.load(folder, {"kind": "phonemes"}), ManifestError)


SPLIT = {"type": "Split", "behavior": "Isolated", "invert": False}


TEMPLATE: dict[str, Any] = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "a", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {"a": {"id": "a", "ids": [1], "tokens": ["a"]}},
}
MARK: dict[str, Any] = {"id": "a", "ids": [1], "tokens": ["a"]}


@pytest.mark.parametrize(
    "changes",
    [
        {"pre_tokenizer": SPLIT | {"pattern": {"Regex": "(a+)+$"}}},
        {"pre_tokenizer": SPLIT | {"pattern": {"Regex": r"\[(a+)+]"}}},
        {"pre_tokenizer": SPLIT | {"pattern": {"Regex": "(?#[)(a+)+(?#])"}}},
        {"pre_tokenizer": SPLIT | {"pattern": {"Regex": "(?x)#[\n(a+)+#]"}}},
        {"pre_tokenizer": SPLIT | {"pattern": {"Regex": "a{50000}"}}},
        {"pre_tokenizer": SPLIT | {"pattern": {"Regex": "a" * 10_000}}},
        {"pre_tokenizer": SPLIT | {"pattern": {"Regex": "("}}},
        {"normalizer": {"type": "Replace", "pattern": {"String": "a"}, "content": "b" * 5000}},
        {"normalizer": {"type": "Prepend", "prepend": "b" * 5000}},
        {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}},
        {"normalizer": 3},
        {"model": None},
        {"model": {"type": "Unigram", "unk_id": 2**31, "vocab": [["a", 0.0]]}},
        {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}},
        {"version": "9.9"},
        {"added_tokens": [{"id": -1}]},
        {"post_processor": TEMPLATE | {"single": [{"Sequence": {"id": "A", "type_id": 0}}] * 60_000}},
        {"post_processor": TEMPLATE | {"special_tokens": {"a": MARK | {"ids": [1] * 60_000}}}},
        {
            "post_processor": {
                "type": "Sequence",
                "processors": [TEMPLATE | {"single": [{"Sequence": {"id": "A", "type_id": 0}}] * 8}] * 8,
            }
        },
        {"post_processor": {"type": "Sequence", "processors": [TEMPLATE] * 100}},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Whitespace"}] * 1000}},
        {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}] * 1000}},
        {"added_tokens": [MARK] * 50_000},
        {"added_tokens": [MARK | {"content": "a" * 5000}]},
        {"model": {"type": "WordPiece", "max_input_chars_per_word": 10**9, "vocab": {"a": 0}}},
        {"model": {"type": "BPE", "continuing_subword_prefix": "a" * 10**6, "vocab": {}, "merges": []}},
        {"model": {"type": "Unigram", "unk_id": None, "vocab": [["a" * 10**6, 0.0]]}},
    ],
)
def test_a_tokenizer_that_is_none(folder: Path, changes: dict[str, Any]) -> None:
    assert "the text front end does not load" in changed(folder, **changes)


@pytest.mark.parametrize(
    "pattern",
    [
        r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+""",
    ],
)
def test_patterns_of_common_tokenizers_are_taken(folder: Path, pattern: str) -> None:
    path = folder / "text" / "tokenizer.json"
    split = SPLIT | {"pattern": {"Regex": pattern}}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pre_tokenizer": split}))
    TextFrontEnd.load(folder, {"kind": "phonemes"})


def test_a_few_tokens_around_a_text_are_taken(folder: Path) -> None:
    plain = TextFrontEnd.load(folder, {"kind": "phonemes"}).encode("hello")
    path = folder / "text" / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"post_processor": TEMPLATE}))
    assert [1, *plain] == list(TextFrontEnd.load(folder, {"kind": "phonemes"}).encode("hello"))


def test_a_text_that_is_too_long_once_it_is_prepared(folder: Path) -> None:
    (folder / "text" / "lexicon.tsv").write_bytes(b"hello\t" + b"h" * 1000)
    front = TextFrontEnd.load(folder, {"kind": "phonemes"})
    message = refused(lambda: front.encode("hello " * 1000), TextError)
    assert f"expected at most {MAX_PREPARED}: split it" in message
    pieces = front.split("hello " * 1000, 2000)
    assert len(pieces) == 1000 and len(front.encode(pieces[0])) == 1001


def test_a_tokenizer_that_makes_texts_longer_takes_shorter_ones(folder: Path) -> None:
    path = folder / "text" / "tokenizer.json"
    longer = {"type": "Replace", "pattern": {"String": "h"}, "content": "h" * 1000}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"normalizer": longer}))
    front = TextFrontEnd.load(folder, {"kind": "phonemes"})
    assert len(front.encode("hello")) > 1000
    assert "expected at most 1047: split it" in refused(lambda: front.encode("hello " * 1000), TextError)


def test_a_tokenizer_that_pads_does_not(folder: Path) -> None:
    path = folder / "text" / "tokenizer.json"
    padding: dict[str, Any] = {"strategy": {"Fixed": 2**33}, "direction": "Right"}
    padding |= {"pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0, "pad_token": "x"}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"padding": padding}))
    assert len(TextFrontEnd.load(folder, {"kind": "phonemes"}).encode("hello")) < 10


@pytest.mark.parametrize(
    "data",
    [b"", b"[" * 500_000, b'{"a": 1, "a": 1}', b"\xff\xfe", b"null", b"3", b'{"model": NaN}', b" " * 2**26],
)
def test_a_tokenizer_file_that_is_no_json(folder: Path, data: bytes) -> None:
    (folder / "text" / "tokenizer.json").write_bytes(data)
    with pytest.raises(ManifestError) as error:
        TextFrontEnd.load(folder, {"kind": "phonemes"})
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["lexicon.tsv", "letters.tsv"])
@pytest.mark.parametrize("data", [b"hello\t\xff\n", b"\xff", b"\xed\xa0\x80\ta\n"])
def test_tables_that_are_no_text(folder: Path, name: str, data: bytes) -> None:
    (folder / "text" / name).write_bytes(data)
    assert f"text/{name} is not UTF-8 text" in refused(
        lambda: TextFrontEnd.load(folder, {"kind": "phonemes"}), ManifestError
    )


@pytest.mark.parametrize(
    "data", [b"", b"\t\n\t\t\t\n", b"hello\tx\ty\tz\n", b"hello\t\nfox\t=\t==\n", b"s\t\n'\t\n"]
)
def test_tables_with_odd_lines_are_spoken(folder: Path, data: bytes) -> None:
    for name in ("lexicon.tsv", "letters.tsv"):
        (folder / "text" / name).write_bytes(data)
    front = TextFrontEnd.load(folder, {"kind": "phonemes"})
    for text in ("hello foxes, the fox's.", "xcb's", "it's B B C's", "a" + "'s" * 5000):
        try:
            front.encode(text)
        except TextError as error:
            assert "nothing that can be spoken" in str(error)


def test_tables_of_too_many_lines(folder: Path) -> None:
    for mark in (b"\n", b"\r"):
        (folder / "text" / "lexicon.tsv").write_bytes(mark * 2**21)
        message = refused(lambda: TextFrontEnd.load(folder, {"kind": "phonemes"}), ManifestError)
        assert "text/lexicon.tsv has more than 400000 lines" in message


@pytest.mark.parametrize("name", ["lexicon.tsv", "letters.tsv"])
@pytest.mark.parametrize("line", [b"hello\t" + b"a" * 2**22, b"hello\t" + b"a=b\t" * 2**20, b"a" * 1025])
def test_tables_with_long_lines(folder: Path, name: str, line: bytes) -> None:
    (folder / "text" / name).write_bytes(b"a\tb\n" + line)
    with pytest.raises(ManifestError) as error:
        TextFrontEnd.load(folder, {"kind": "phonemes"})
    assert f"text/{name}: a line has {len(line)} bytes; expected at most 1024" in str(error.value)


def test_text_files_that_the_manifest_does_not_list_are_not_read(tmp_path: Path) -> None:
    folder = tmp_path / "toy"
    write_toy(folder)
    rewrite(folder, lambda files: files.pop("text/letters.tsv"))
    (folder / "text" / "letters.tsv").write_bytes(b"\xff")
    assert Valle2.load(folder, threads=1).front is not None
    rewrite(folder, lambda files: files.pop("text/tokenizer.json"))
    with pytest.raises(ManifestError, match=r"the bundle lists no text/tokenizer\.json"):
        Valle2.load(folder, threads=1)
    rewrite(folder, lambda files: files.pop("text/lexicon.tsv"))
    assert Valle2.load(folder, threads=1).front is None


def test_ids_that_the_graphs_have_no_rows_for(tmp_path: Path) -> None:
    folder = tmp_path / "toy"
    write_toy(folder)
    path = folder / "text" / "tokenizer.json"
    values = json.loads(path.read_text())
    values["model"]["vocab"]["a"] = 10**6
    path.write_text(json.dumps(values))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    rewrite(folder, lambda files: files.update({"text/tokenizer.json": digest}))
    with pytest.raises(ModelError, match="the tokenizer has 1000001 ids and the model 35 tokens"):
        Valle2.load(folder, threads=1)


def rewrite(folder: Path, change: Callable[[dict[str, str]], object]) -> None:
    """Change the list of files."""
    path = folder / "manifest.json"
    values = json.loads(path.read_text())
    change(values["files"])
    path.write_text(json.dumps(values))


def test_the_commands_on_the_smallest_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "toy"
    write_toy(folder)
    assert main(["say", "hello there", "--model", str(folder), "-o", str(tmp_path / "o.wav"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["finish_reason"] == "eos"
    assert main(["inspect", str(folder), "--budget"]) == 0
    assert main(["voices", "list", "--model", str(folder)]) == 0
    assert main(["build", str(folder), "--target", "ort", "--precision", "int8"]) == 0
