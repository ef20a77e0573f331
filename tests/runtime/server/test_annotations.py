"""SSML, lexicons and warnings over HTTP and the WebSocket."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.sync.client import connect

from tests.runtime.server.conftest import serving
from valle2.runtime import Valle2
from valle2.runtime.server.limits import Limits
from valle2.runtime.server.worker import Worker


def load(slots: int) -> Valle2:
    return Valle2.load("demo", threads=1, slots=slots)


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of the embedded model, whose phonemes are known."""
    with serving(Worker(load, Limits(slots=1)), tmp_path_factory.mktemp("voices")) as url:
        yield url


def post(address: str, text: Any, **more: Any) -> httpx.Response:
    body = {"input": text, "response_format": "pcm", "max_frames": 8, **more}
    return httpx.post(f"{address}/v1/audio/speech", json=body, timeout=60)


def error(response: httpx.Response) -> tuple[int, str, str | None]:
    found = response.json()["error"]
    return response.status_code, found["message"], found["param"]


def test_ssml_is_spoken(address: str) -> None:
    plain = post(address, "Hello.")
    paused = post(address, '<speak>Hello.<break time="1s"/></speak>')
    assert plain.status_code == paused.status_code == 200
    assert len(paused.content) - len(plain.content) == pytest.approx(48_000, abs=4)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<speak>a", "line 1, column 9"),
        ("<speak>" + "<p>" * 1000, "nested more than"),
        ("<speak><break time='11s'/>a</speak>", "at most 10 s"),
        ("<!DOCTYPE speak [<!ENTITY a 'b'>]><speak>&a;</speak>", "DOCTYPE"),
        ("<speak>\x00</speak>", "line 1, column 8"),
        ("[x](/ʘə/)", "'ʘ'"),
        ("你好", "nothing that can be spoken"),
    ],
)
def test_a_mistake_in_the_text_is_the_clients(address: str, text: str, said: str) -> None:
    status, message, _ = error(post(address, text))
    assert status == 400 and said in message and "\n" not in message


def test_what_is_left_out_is_told(address: str) -> None:
    response = post(address, "<speak>你好 <emphasis>world</emphasis></speak>")
    assert response.status_code == 200 and "X-Warnings" in response.headers
    assert "X-Warnings" not in post(address, "world").headers
    _, last = talk(address, {"text": "你好 world.", "end": True})
    assert "'你好'" in last["warnings"][0]


def test_a_lexicon_is_taken(address: str) -> None:
    usual, said = post(address, "A fox."), post(address, "A fox.", lexicon={"fox": "ˈeɪʧ"})
    assert said.status_code == 200 and said.content != usual.content
    assert post(address, "A fox.", lexicon={}).content == usual.content
    assert post(address, "A fox.", lexicon=None).content == usual.content


@pytest.mark.parametrize(
    "lexicon",
    [
        ["fox"],
        "fox",
        {"fox": 1},
        {"fox": None},
        {"fox": ""},
        {"": "a"},
        {"fox": "bɑx"},
        {"fox": "a" * 201},
        {"\x00": "a"},
    ],
)
def test_a_malformed_lexicon_is_named(address: str, lexicon: Any) -> None:
    status, message, param = error(post(address, "A fox.", lexicon=lexicon))
    assert (status, param) == (400, "lexicon") and "\n" not in message, message


def talk(address: str, *messages: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Bytes of audio, and the last message."""
    size = 0
    with connect(address.replace("http", "ws") + "/v1/audio/speech/stream") as socket:
        for message in messages:
            socket.send(json.dumps(message))
        for received in socket:
            if isinstance(received, bytes):
                size += len(received)
            elif json.loads(received)["type"] != "format":
                return size, json.loads(received)
    raise AssertionError("the server said neither done nor error")


def test_ssml_over_a_websocket_is_spoken_when_it_is_complete(address: str) -> None:
    text = "<speak>Hello. <break time='1s'/> There.</speak>"
    whole = talk(address, {"text": text}, {"end": True})
    pieces = talk(address, *({"text": letter} for letter in text), {"end": True})
    assert whole[1]["type"] == pieces[1]["type"] == "done" and whole[0] == pieces[0] > 48_000


def test_text_that_only_begins_like_ssml_is_plain(address: str) -> None:
    for text in ("<b>Hello.</b>", "<3 you.", "  <spea", "< 5."):
        size, last = talk(address, *({"text": letter} for letter in text), {"end": True})
        assert last["type"] == "done" and size, text


def test_malformed_ssml_over_a_websocket_is_an_error(address: str) -> None:
    _, last = talk(address, {"text": "<speak>Hello."}, {"end": True})
    assert last["type"] == "error" and "line 1" in last["message"]


def test_a_lexicon_over_a_websocket(address: str) -> None:
    _, last = talk(address, {"text": "A fox.", "lexicon": {"fox": "ˈeɪ"}, "end": True})
    assert last["type"] == "done"
    for lexicon in ({"fox": 1}, ["fox"], {"fox": "bɑx"}):
        _, last = talk(address, {"text": "A fox.", "lexicon": lexicon, "end": True})
        assert last["type"] == "error" and "fox" in last["message"]


def test_a_servers_lexicon_must_fit_its_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from valle2.runtime.cli.main import main

    (tmp_path / "words.tsv").write_text("fox\n", encoding="utf-8")
    assert main(["serve", "--lexicon", str(tmp_path / "words.tsv"), "--voices-dir", str(tmp_path)]) == 1
    assert "line 1" in capsys.readouterr().err
