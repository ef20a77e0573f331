"""Checkpoints are read without running their code. Damaged files give one clear line."""

from __future__ import annotations

import datetime
import io
import os
import pickle
import re
import struct
import time
import warnings
import zipfile
from argparse import Namespace
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.export.importers.peers import Lifeiteng
from tests.fuzz import archives, pickles
from tests.fuzz.files import saved, small
from valle2.export import CheckpointError
from valle2.export.importers import read_any
from valle2.export.weights.unpickle import MAGIC, PROTOCOL, read_container


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.fixture
def mark(tmp_path: Path) -> Iterator[Path]:
    """The folder that code in a file would make. Asserts that it was not made."""
    yield tmp_path / "ran"
    assert not (tmp_path / "ran").exists()


def refused(data: bytes, folder: Path, match: str | None = None) -> str:
    """Assert that a file is refused. Returns the message."""
    (folder / "model.pt").write_bytes(data)
    with pytest.raises(CheckpointError, match=match) as caught:
        read_container(folder / "model.pt")
    message = str(caught.value)
    assert message.isprintable() and len(message) < 500
    return message


# -- code ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["raw", "archive", "old"])
def test_a_pickle_bomb_is_named_and_not_run(form: str, tmp_path: Path, mark: Path) -> None:
    container = {"model": {"weight": torch.zeros(2)}, "extra": Bomb(mark)}
    if form == "raw":
        data = pickle.dumps(Bomb(mark))
    else:
        data = saved(container, _use_new_zipfile_serialization=form == "archive")
    refused(data, tmp_path, r"asks to run '(posix|nt)\.mkdir'")


class Script(torch.nn.Module):
    """A module for a TorchScript archive."""

    def __init__(self) -> None:
        super().__init__()
        self.values = torch.arange(3.0)

    def forward(self) -> torch.Tensor:
        return self.values


def script(mark: Path) -> bytes:
    """A TorchScript archive that writes the file `mark` when TorchScript reads it."""
    source = f'''
def __getstate__(self) -> Tuple[Tensor, bool]:
    return (self.values, self.training)

def __setstate__(self, state: Tuple[Tensor, bool]):
    self.values = state[0]
    self.training = state[1]
    torch.save(state[0], "{mark}")
'''
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scripted = torch.jit.script(Script())
        scripted.define(source)
        out = io.BytesIO()
        torch.jit.save(scripted, out)
        torch.jit.load(io.BytesIO(out.getvalue()))  # type: ignore[no-untyped-call]
    assert mark.exists(), "the archive must be one that runs"
    mark.unlink()
    return out.getvalue()


def test_torchscript_is_refused_whatever_stands_behind_it(tmp_path: Path, mark: Path) -> None:
    data = script(mark)
    assert "TorchScript archive, which is code" in refused(data, tmp_path)
    tails = [b"PK\5\6" + bytes(size) for size in range(40)] + [bytes(size) for size in range(1, 40)]
    for tail in (*tails, archives.EMPTY_END, archives.EMPTY_END + b"x", data, b"x" * 70000):
        refused(data + tail, tmp_path)
        refused(tail + data, tmp_path)


# -- two readers, two contents ------------------------------------------------------------------


def good() -> archives.Parts:
    return archives.parts_of(saved({"w": torch.ones(3)}))


def bad(mark: Path) -> archives.Parts:
    """The same, with a bomb as its pickle."""
    parts = good()
    return {**parts, next(iter(parts)): pickles.bomb(mark)}


def placed(
    parts: archives.Parts, *, extra: bytes = b"", table: Callable[..., bytes] = archives.central
) -> bytes:
    """An archive with extra fields in its directory."""
    body, rows = b"", []
    for name, data in parts.items():
        rows.append(table(name.encode(), len(data), len(body), extra=extra))
        body += archives.header(name.encode(), data)
    joined = b"".join(rows)
    return body + joined + archives.end(len(rows), len(joined), len(body))


def zip64_sizes(name: bytes, size: int, offset: int, *, extra: bytes = b"") -> bytes:
    """A directory entry with its sizes in a ZIP64 field."""
    row = bytearray(archives.central(name, size, offset, extra=extra))
    row[20:28] = b"\xff" * 8
    return bytes(row)


def named(parts: archives.Parts, name: bytes) -> bytes:
    """The archive with another name for its first member."""
    rows = [(name, next(iter(parts.values())))]
    rows += [(key.encode(), value) for key, value in list(parts.items())[1:]]
    body, table = b"", b""
    for title, data in rows:
        table += archives.central(title, len(data), len(body))
        body += archives.header(title, data)
    return body + table + archives.end(len(rows), len(table), len(body))


DIFFERENTIALS: dict[str, Callable[[archives.Parts, archives.Parts], bytes]] = {
    "a harmless directory, then a hostile one": archives.two_directories,
    "a hostile directory, then a harmless one": lambda ours, theirs: archives.two_directories(theirs, ours),
    "hostile local headers": lambda ours, theirs: archives.hidden_local(ours, next(iter(theirs.values()))),
    "archives joined": lambda ours, theirs: archives.stored(ours) + archives.stored(theirs),
    "archives joined the other way": lambda ours, theirs: archives.stored(theirs) + archives.stored(ours),
    "a prefix": lambda ours, theirs: b"#!/bin/sh\n" + archives.stored(ours),
    "a pickle before the archive": lambda ours, theirs: next(iter(theirs.values())) + archives.stored(ours),
    "a comment": lambda ours, theirs: archives.stored(ours, comment=b"x"),
    "an archive as a comment": lambda ours, theirs: archives.stored(
        ours, comment=archives.stored(theirs)[-60000:]
    ),
    "deflated": lambda ours, theirs: archives.stored(ours, zipfile.ZIP_DEFLATED),
    "bzip2": lambda ours, theirs: archives.stored(ours, zipfile.ZIP_BZIP2),
    "lzma": lambda ours, theirs: archives.stored(ours, zipfile.ZIP_LZMA),
    "a name with NUL": lambda ours, theirs: named(ours, b"archive/data.pkl\0.txt"),
    "a name that is no UTF-8": lambda ours, theirs: named(ours, b"archive/data.pkl\xff"),
    "a name with a backslash": lambda ours, theirs: named(ours, b"archive\\data.pkl"),
    "a name that leaves": lambda ours, theirs: named(ours, b"archive/../archive/data.pkl"),
    "an absolute name": lambda ours, theirs: named(ours, b"/archive/data.pkl"),
    "a name without a folder": lambda ours, theirs: named(ours, b"data.pkl"),
    "another folder": lambda ours, theirs: named(ours, b"other/data.pkl"),
    "a name twice": lambda ours, theirs: named(ours, list(ours)[1].encode()),
    "no pickle": lambda ours, theirs: archives.stored(dict(list(ours.items())[1:])),
    "a torn ZIP64 field": lambda ours, theirs: placed(ours, extra=b"\1\0\4\0abcd", table=zip64_sizes),
    "no ZIP64 field": lambda ours, theirs: placed(ours, table=zip64_sizes),
    "two ZIP64 fields": lambda ours, theirs: placed(ours, extra=b"\1\0\0\0" * 2, table=zip64_sizes),
    "huge ZIP64 sizes": lambda ours, theirs: placed(
        ours, extra=struct.pack("<2H2Q", 1, 16, 2**63, 2**63), table=zip64_sizes
    ),
    "an extra field that is cut off": lambda ours, theirs: placed(ours, extra=b"\1\0\xff\xff"),
    "big-endian numbers": lambda ours, theirs: archives.stored({**ours, "archive/byteorder": b"big"}),
    "tensor data of another size": lambda ours, theirs: archives.stored({**ours, "archive/data/0": b"12"}),
    "no tensor data": lambda ours, theirs: archives.stored(
        {name: data for name, data in ours.items() if name != "archive/data/0"}
    ),
    "an empty archive": lambda ours, theirs: archives.EMPTY_END,
}


MESSAGES: dict[str, str] = {
    "a harmless directory, then a hostile one": "bytes between them belong to no member",
    "a hostile directory, then a harmless one": "bytes between them belong to no member",
    "hostile local headers": "a member is longer than the bytes before the next one",
    "archives joined": "its directory does not end where its end record begins",
    "archives joined the other way": "its directory does not end where its end record begins",
    "a prefix": "its pickle has the opcode 0x23",
    "a pickle before the archive": "asks to run 'posix.mkdir'",
    "a comment": "there are bytes after its end",
    "an archive as a comment": "its directory does not end where its end record begins",
    "deflated": "is a compressed archive",
    "bzip2": "is a compressed archive",
    "lzma": "is a compressed archive",
    "a name with NUL": r"a member named 'archive/data.pkl\x00.txt'",
    "a name that is no UTF-8": "a member's name is not UTF-8",
    "a name with a backslash": "a member named 'archive",
    "a name that leaves": "a member named 'archive/../archive/data.pkl'",
    "an absolute name": "a member named '/archive/data.pkl'",
    "a name without a folder": "it holds more than one folder",
    "another folder": "it holds more than one folder",
    "a name twice": "twice",
    "no pickle": "it has no data.pkl",
    "a torn ZIP64 field": "a ZIP64 field is missing or too short",
    "no ZIP64 field": "a ZIP64 field is missing or too short",
    "two ZIP64 fields": "a member has two ZIP64 fields",
    "huge ZIP64 sizes": "a member is longer than the bytes before the next one",
    "an extra field that is cut off": "an extra field is cut off",
    "big-endian numbers": "written on a machine of another byte order",
    "tensor data of another size": "its tensor data '0' is absent or has another size",
    "no tensor data": "its tensor data '0' is absent or has another size",
    "an empty archive": "its pickle has the opcode 0x50",
}


@pytest.mark.parametrize("name", DIFFERENTIALS)
def test_what_readers_could_read_in_two_ways_is_refused(name: str, tmp_path: Path, mark: Path) -> None:
    data = DIFFERENTIALS[name](good(), bad(mark))
    refused(data, tmp_path, re.escape(MESSAGES[name]))


def test_what_the_differentials_are_made_of_is_read(tmp_path: Path) -> None:
    """The archives above are refused only for their one error."""
    for data in (archives.stored(good()), placed(good()), named(good(), next(iter(good())).encode())):
        (tmp_path / "model.pt").write_bytes(data)
        assert read_container(tmp_path / "model.pt")["w"].tolist() == [1, 1, 1]
    whole = placed(good(), extra=b"", table=archives.central)
    sizes = {name: struct.pack("<2H2Q", 1, 16, len(data), len(data)) for name, data in good().items()}
    body, table = b"", b""
    for name, data in good().items():
        table += zip64_sizes(name.encode(), len(data), len(body), extra=sizes[name])
        body += archives.header(name.encode(), data)
    wide = body + table + archives.end(len(sizes), len(table), len(body))
    assert len(wide) > len(whole)
    (tmp_path / "model.pt").write_bytes(wide)
    assert read_container(tmp_path / "model.pt")["w"].tolist() == [1, 1, 1]


def test_bytes_behind_an_archive_of_every_length(tmp_path: Path) -> None:
    data = saved({"w": torch.ones(3)})
    for size in range(1, 100):
        refused(data + bytes(size), tmp_path)
        refused(data + (b"PK\5\6" + bytes(96))[:size], tmp_path)
        refused(data[:-size], tmp_path)


def test_every_changed_byte_of_the_records_is_refused_or_harmless(tmp_path: Path) -> None:
    """Set each byte of the zip structure to three values: the tensor is unchanged or the file refused."""
    data = saved({"w": torch.ones(3)})
    path = tmp_path / "model.pt"
    start, outcomes = data.index(b"PK\1\2"), set[str]()
    for at in [*range(64), *range(start, len(data))]:
        for value in (0, 0xFF, data[at] ^ 1):
            path.write_bytes(data[:at] + bytes([value]) + data[at + 1 :])
            try:
                assert read_container(path)["w"].tolist() == [1, 1, 1]
                outcomes.add("read")
            except CheckpointError as error:
                assert str(error).isprintable()
                outcomes.add("refused")
    assert outcomes == {"read", "refused"}


# -- work and memory ----------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(len(pickles.BOMBS)))
def test_a_small_pickle_does_not_make_much_work(number: int, tmp_path: Path) -> None:
    parts = good()
    archive = archives.stored({**parts, next(iter(parts)): pickles.BOMBS[number]})
    began = time.process_time()
    refused(archive, tmp_path, "not a readable PyTorch checkpoint|expected a dictionary")
    refused(pickles.BOMBS[number], tmp_path, "not a readable PyTorch checkpoint")
    assert time.process_time() - began < 4


def test_an_old_file_whose_list_of_data_is_long_texts(tmp_path: Path) -> None:
    """Sorting them would take too long."""
    parts: list[Any] = [MAGIC, PROTOCOL, {"little_endian": True}, {}]
    texts = b"\x80\x02" + pickles.text("a" * (1 << 20)) + b"q\x010](" + b"h\x01" * 60000 + b"e."
    began = time.process_time()
    refused(b"".join(pickle.dumps(part, 2) for part in parts) + texts, tmp_path, "list of tensor data")
    assert time.process_time() - began < 2


def test_a_file_of_nothing_but_bytes_order_is_not_copied(tmp_path: Path, mark: Path) -> None:
    refused(
        archives.stored({**good(), "archive/byteorder": b" " * 100 + b"little"}),
        tmp_path,
        "another byte order",
    )
    message = refused(saved({"w": torch.ones(2)}).replace(b"X\x01\0\0\x000", b"X\x01\0\0\0\n"), tmp_path)
    assert r"tensor data '\n' is absent" in message


def test_an_archive_of_very_many_members_is_refused(tmp_path: Path) -> None:
    parts = good() | {f"archive/data/x{number}": b"" for number in range(33_000)}
    assert "expected at most 32768" in refused(archives.stored(parts), tmp_path)


def test_values_beside_the_tensors_are_bounded_by_the_file(tmp_path: Path) -> None:
    value = {"w": torch.ones(2), "lists": [[] for _ in range(60_000)]}
    assert "more than 8 MiB" in refused(saved(value), tmp_path)
    value["w"] = torch.ones(12_000_000)
    (tmp_path / "model.pt").write_bytes(saved(value))
    assert len(read_container(tmp_path / "model.pt")["lists"]) == 60_000


# -- damage -------------------------------------------------------------------------------------


def test_damaged_files_are_one_line(tmp_path: Path) -> None:
    data = saved(Lifeiteng().container())
    path = tmp_path / "cut.pt"
    for share in (0.001, 0.5, 0.999):
        path.write_bytes(data[: int(len(data) * share)])
        with pytest.raises(CheckpointError, match=r"not a readable|damaged") as caught:
            read_any([path])
        assert "\n" not in str(caught.value)


def test_what_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "empty.pt").touch()
    for name, message in ((".", "folder"), ("empty.pt", "0 bytes"), ("absent.pt", "no checkpoint there")):
        with pytest.raises(CheckpointError, match=message):
            read_any([tmp_path / name])
    for name in ("x" * 300, "a\0b", "x" * 300 + ".safetensors"):
        with pytest.raises(CheckpointError, match="no checkpoint there"):
            read_any([tmp_path / name])
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(CheckpointError, match="not a readable"):
        read_any([tmp_path / "text.pt"])


def test_a_container_that_is_no_dictionary(tmp_path: Path) -> None:
    for value in ([1, 2], torch.zeros(3)):
        refused(saved(value), tmp_path, "expected a dictionary")


def test_a_whole_module_is_refused(tmp_path: Path) -> None:
    assert "asks to run 'torch.nn.modules" in refused(saved({"model": torch.nn.Linear(2, 2)}), tmp_path)


# -- what is read -------------------------------------------------------------------------------


def same(found: Any, expected: Any) -> bool:
    """Equal, and tensors in dtype and shape too."""
    if isinstance(expected, torch.Tensor | np.ndarray):
        return (
            found.dtype == expected.dtype
            and found.shape == expected.shape
            and bool((found == expected).all())
        )
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(same(found[key], expected[key]) for key in expected)
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(same, found, expected))
    return bool(found == expected)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("old", [False, True])
def test_tensors_and_plain_values_are_read_as_torch_reads_them(
    protocol: int, old: bool, tmp_path: Path
) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(saved(small(), pickle_protocol=protocol, _use_new_zipfile_serialization=not old))
    found, expected = read_container(path), torch.load(path, weights_only=False)
    paths = [str(value) if isinstance(value, Path) else value for value in expected["values"]]
    expected["values"] = [str(value) if hasattr(value, "as_posix") else value for value in paths]
    assert same(found, expected)
    shared = {found["model"][name].untyped_storage().data_ptr() for name in ("a.weight", "a.turned", "a.row")}
    assert len(shared) == 1


def test_plain_values_have_their_types(tmp_path: Path) -> None:
    value = {
        "types": [int, str, range(3), np.float32, ..., datetime.time(1, 2), defaultdict(int, a=1)],
        "empty": np.str_(""),
        "scalar": np.float64(0.5),
        "count": np.int32(7),
        "text": np.str_("hé"),
        "namespace": Namespace(nhead=4),
        "queue": deque([1], maxlen=3),
        "counts": Counter("aab"),
        "version": torch.torch_version.TorchVersion("2.1.0"),
        "array": np.arange(4).astype(">i4").astype("i4"),
        "ordered": OrderedDict(b=1, a=2),
    }
    (tmp_path / "model.pt").write_bytes(saved({"values": value}))
    found = read_container(tmp_path / "model.pt")["values"]
    assert type(found["scalar"]) is np.float64 and type(found["count"]) is np.int32
    assert found["text"] == "hé" and found["namespace"].nhead == 4
    assert found["queue"].maxlen == 3 and found["counts"] == {"a": 2, "b": 1}
    assert found["version"] == "2.1.0" and type(found["version"]) is str
    assert found["types"][2] == range(3) and found["types"][4:] == [..., datetime.time(1, 2), {"a": 1}]
    assert found["empty"] == ""
    assert found["array"].tolist() == [0, 1, 2, 3] and list(found["ordered"]) == ["b", "a"]


class Marked(torch.Tensor):
    """A tensor class of a user's own."""


def test_tensors_with_attributes_are_plain_and_own_classes_are_refused(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    weight.no_decay = True  # type: ignore[attr-defined]
    (tmp_path / "model.pt").write_bytes(saved({"w": weight, "f8": torch.ones(2).to(torch.float8_e4m3fn)}))
    found = read_container(tmp_path / "model.pt")
    assert found["w"].tolist() == [1, 1] and found["f8"].dtype == torch.float8_e4m3fn
    assert "asks to run" in refused(saved({"w": torch.ones(2).as_subclass(Marked)}), tmp_path)


class Places(pickle.Pickler):
    """Pickles a storage as torch does: by a key outside the pickle."""

    def persistent_id(self, value: Any) -> Any:
        return ("storage", torch.FloatStorage, "0", "cpu", 4) if value is Places else None


class Beyond:
    """A tensor with this offset, size and stride in a storage of four numbers."""

    def __init__(self, *place: Any) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return torch._utils._rebuild_tensor_v2, (Places, *self.place, False, OrderedDict())


def tensor_at(*place: Any) -> bytes:
    """An archive of such a tensor."""
    out = io.BytesIO()
    Places(out, 2).dump({"w": Beyond(*place)})
    return archives.stored({"a/data.pkl": out.getvalue(), "a/data/0": torch.arange(4.0).numpy().tobytes()})


PLACES: tuple[tuple[Any, ...], ...] = (
    (-1, (2,), (1,)),
    (0, (5,), (1,)),
    (2, (3,), (1,)),
    (0, (2, 3), (2, 1)),
    (0, (2**40,), (2**40,)),
    (0, (2,), (-1,)),
    (0, (2.0,), (1,)),
    (0, (2,), (1, 1)),
    (True, (2,), (1,)),
    (0, [[2]], (1,)),
    (0, (1,) * 40, (1,) * 40),
    (5, (0,), (1,)),
)


BEYOND = "reaches beyond its storage|not a list of whole numbers|without (numbers|a shape)|is malformed"


@pytest.mark.parametrize("place", PLACES)
def test_a_tensor_beyond_its_storage_is_refused(place: tuple[Any, ...], tmp_path: Path) -> None:
    refused(tensor_at(*place), tmp_path, BEYOND)


def test_a_tensor_inside_its_storage_is_read(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(tensor_at(1, (2, 2), (1, 1)))
    assert read_container(tmp_path / "model.pt")["w"].tolist() == [[1, 2], [2, 3]]
