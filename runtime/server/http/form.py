"""The form of `POST /v1/voices`: UTF-8 alone, few parts, small fields."""

from __future__ import annotations

import re

from fastapi import Request
from pydantic import BaseModel, Field, ValidationError
from starlette.datastructures import UploadFile

from valle2.engine.bundle.untrusted import shown
from valle2.runtime.server.http.errors import HttpError, invalid_value
from valle2.runtime.server.store import NAME_CHARACTERS

FORM_TYPE = "multipart/form-data"
MAX_FIELDS, MAX_FIELD_BYTES, MAX_TYPE = 8, 16_384, 300
CHARSET = re.compile(r'charset="?(utf-8|us-ascii)"?(?=\s*(;|$))')


class VoiceForm(BaseModel):
    """The text fields of an upload."""

    name: str = Field(max_length=NAME_CHARACTERS)
    transcript: str = Field(max_length=1000)
    consent: bool


FORM_SCHEMA = VoiceForm.model_json_schema()
FORM_SCHEMA["properties"]["file"] = {"type": "string", "format": "binary"}
FORM_SCHEMA["required"].append("file")
FORM_BODY = {"requestBody": {"required": True, "content": {FORM_TYPE: {"schema": FORM_SCHEMA}}}}


def check_form_type(content_type: str) -> None:
    """Refuse a form that is not in UTF-8 before any of it is decoded; some codecs of Python are quadratic.

    Raises:
        HttpError: 400.
    """
    given = content_type.lower()
    named = "charset" in CHARSET.sub("", given)
    if len(given) > MAX_TYPE or not given.startswith(FORM_TYPE) or named or "*" in given:
        raise HttpError(400, f"the content type is {shown(content_type)}; send {FORM_TYPE} in UTF-8")


async def read_form(request: Request) -> tuple[VoiceForm, bytes]:
    """The fields and the recording of an upload.

    Raises:
        HttpError: 400; the form is of another type or charset, or a field is missing or wrong.
        HTTPException: 400; the form is malformed or has too many or too large fields.
    """
    check_form_type(request.headers.get("content-type", ""))
    async with request.form(max_files=1, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES) as form:
        try:
            fields = VoiceForm.model_validate({name: form[name] for name in form if name != "file"})
        except ValidationError as error:
            raise invalid_value(error.errors()[0]) from None
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise HttpError(400, "file is missing; it must be a recording", "file")
        return fields, await file.read()
