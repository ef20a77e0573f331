"""Parsers in front of uploads, and settings that cost more than they give."""

from __future__ import annotations

import pytest

pytest.importorskip("fastapi", reason="needs the extra: serve")

from valle2.runtime import Prompt, Request, Valle2
from valle2.runtime.errors import SettingsError
from valle2.runtime.server.http.errors import HttpError
from valle2.runtime.server.http.form import check_form_type


@pytest.mark.parametrize(
    "more",
    ["; charset=punycode", "; charset=utf-7", '; Charset="idna"', "; charset*=utf-8''x", "; x=" + "a" * 300],
)
def test_a_form_in_another_charset_is_refused_before_it_is_decoded(more: str) -> None:
    with pytest.raises(HttpError, match="in UTF-8"):
        check_form_type(f"multipart/form-data; boundary=a{more}")
    for kept in ("", "; charset=utf-8", '; charset="UTF-8"'):
        check_form_type(f"multipart/form-data; boundary=a{kept}")


@pytest.mark.parametrize("seconds", [1e-300, 0.001, 0.049])
def test_a_tiny_first_chunk_is_refused(tts: Valle2, voice: Prompt, seconds: float) -> None:
    with pytest.raises(SettingsError, match="expected 0 for whole sentences"):
        tts.encode(Request("hello", voice), seconds)
