"""API keys: who has them, what each may ask for, and what it has used. Knows no HTTP.

No message contains a key, or anything that may be one by mistake.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import re
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

from valle2.engine.bundle.untrusted import parse_json
from valle2.runtime.errors import SettingsError
from valle2.runtime.server.limits import HIGHEST, RefusedError, TooLongError

MIN_KEY, MAX_KEY = 16, 512
MAX_KEYS, MAX_FILE_BYTES = 1000, 1_000_000
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
KEY = re.compile(rf"[!-~]{{{MIN_KEY},{MAX_KEY}}}")
ONLY = "default"
"""The name of a key that is alone in its file."""
MINUTE, HOUR = 60.0, 3600.0
PARTS = 60
"""A window forgets its oldest amounts in so many steps."""
FORMS = 'one key; or lines of "NAME KEY"; or a JSON object such as {"NAME": {"key": "...", "requests": 2}}'


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """What one key may ask for. None is no limit.

    Args:
        requests: at once, waiting ones included.
    """

    requests: float | None = None
    requests_per_minute: float | None = None
    characters_per_hour: float | None = None
    audio_seconds_per_hour: float | None = None


LIMITS = tuple(entry.name for entry in fields(KeyLimits))


class Window:
    """Amounts of the last `seconds`, and their sum."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.amounts: deque[list[float]] = deque()  # [when it is forgotten, amount]

    def add(self, amount: float, now: float) -> None:
        """Take note of an amount."""
        step = self.seconds / PARTS
        end = math.ceil(now / step) * step + self.seconds
        if self.amounts and self.amounts[-1][0] == end:
            self.amounts[-1][1] += amount
        else:
            self.amounts.append([end, amount])

    def total(self, now: float) -> float:
        """The sum."""
        while self.amounts and self.amounts[0][0] <= now:
            self.amounts.popleft()
        return sum(amount for _, amount in self.amounts)

    def wait(self, excess: float, now: float) -> float:
        """Seconds until at least `excess` of the sum is forgotten."""
        for end, amount in self.amounts:
            excess -= amount
            if excess <= 0:
                return end - now
        return self.seconds


@dataclass(slots=True, eq=False)
class Key:
    """One key's limits and what it has used since the start of the server.

    `Worker` calls the methods under its lock, with the time of `time.monotonic`.

    Args:
        name: for metrics; empty for all who need no key. digest: SHA-256 of the key.
    """

    name: str = ""
    digest: bytes = b""
    limits: KeyLimits = KeyLimits()
    requests: int = 0
    characters: int = 0
    audio_seconds: float = 0.0
    rejected: int = 0
    open: int = 0
    expected: float = 0.0
    windows: dict[str, Window] = field(
        default_factory=lambda: {
            "requests_per_minute": Window(MINUTE),
            "characters_per_hour": Window(HOUR),
            "audio_seconds_per_hour": Window(HOUR),
        }
    )

    def check(self, characters: int, audio: float, turnover: float) -> None:
        """Check that a request is within the limits.

        Args:
            audio: seconds that are expected. turnover: seconds until a request ends, on average.

        Raises:
            RefusedError: a limit is reached. TooLongError: the request alone exceeds one.
        """
        now, most = time.monotonic(), self.limits.requests
        if most is not None and self.open >= most:
            raise RefusedError(
                f"{self.open} requests of this key are under way; it may have {most:g}: try again later",
                "requests",
                turnover,
            )
        asked = {
            "requests_per_minute": (1.0, 0.0),
            "characters_per_hour": (float(characters), 0.0),
            "audio_seconds_per_hour": (audio, self.expected),
        }
        for name, (amount, reserved) in asked.items():
            limit = getattr(self.limits, name)
            if limit is None:
                continue
            readable = name.replace("_per_", " in one ").replace("_", " ")
            if amount > limit:
                raise TooLongError(
                    f"the text needs {amount:.0f} of the {readable} of this key, which are {limit:g}; send a "
                    "shorter text"
                )
            window = self.windows[name]
            used = window.total(now) + reserved
            if used + amount > limit:
                raise RefusedError(
                    f"{used:.0f} of {limit:g} {readable} are used by this key; try again later",
                    name,
                    window.wait(used + amount - limit, now),
                )

    def begin(self, characters: int, audio: float) -> None:
        """Count a request that was taken. audio: seconds that are expected."""
        now = time.monotonic()
        self.requests += 1
        self.characters += characters
        self.open += 1
        self.expected += audio
        self.windows["requests_per_minute"].add(1, now)
        self.windows["characters_per_hour"].add(characters, now)

    def end(self, expected: float, audio: float) -> None:
        """Count what came of a request. expected: what `begin` was given. audio: seconds that were made."""
        self.open -= 1
        self.expected = max(0.0, self.expected - expected) if self.open else 0.0
        self.audio_seconds += audio
        self.windows["audio_seconds_per_hour"].add(audio, time.monotonic())

    def usage(self) -> dict[str, Any]:
        """What the key has used, its limits, and what it has used of them."""
        now = time.monotonic()
        used = {name: round(window.total(now), 3) for name, window in self.windows.items()}
        return {
            "key": self.name or None,
            "requests": self.requests,
            "characters": self.characters,
            "audio_seconds": round(self.audio_seconds, 3),
            "rejected": self.rejected,
            "limits": asdict(self.limits),
            "used": {"requests": self.open, **used},
        }


class Client(NamedTuple):
    """Who sends a request.

    Args:
        name: requests of the same name count as one client's. key: what limits and counts them, if anything.
    """

    name: str = ""
    key: Key | None = None


class Keys:
    """The keys of a server. Without any, all may use it.

    Args:
        keys: pairwise different in names and digests.
    """

    def __init__(self, *keys: Key) -> None:
        self.keys = keys
        self.anyone = Key()

    def __bool__(self) -> bool:
        return bool(self.keys)

    def find(self, given: str) -> Key | None:
        """The key that a client sent, or None. The time does not depend on how much of a key was right."""
        digest, found = digest_of(given), None
        for key in self.keys:
            if hmac.compare_digest(digest, key.digest):
                found = key
        return found


def digest_of(key: str) -> bytes:
    """SHA-256 of a key."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def read_keys(path: Path) -> Keys:
    """The keys in a file of one of `FORMS`.

    Raises:
        SettingsError: the file cannot be read, or an entry is wrong. The message has no part of the entry.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        text = data.decode("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise SettingsError(f"{path} cannot be read: {reason}; expected a file with API keys") from None
    if len(data) > MAX_FILE_BYTES:
        raise SettingsError(f"{path} has more than {MAX_FILE_BYTES} bytes; expected {FORMS}")
    entries = json_entries(path, data) if text.startswith("{") else text_entries(path, text)
    return Keys(*checked(path, entries))


def text_entries(path: Path, text: str) -> Iterator[tuple[str, str, str, KeyLimits]]:
    """The place, name, key and limits of each line.

    Raises:
        SettingsError: a line is neither a name and a key, nor the only one and a key.
    """
    lines = [(number, line.split()) for number, line in enumerate(text.splitlines(), 1)]
    lines = [(number, words) for number, words in lines if words and not words[0].startswith("#")]
    for number, words in lines:
        place = f"{path}, line {number}"
        if len(lines) == 1 and len(words) == 1:
            yield place, ONLY, words[0], KeyLimits()
        elif len(words) == 2:
            yield place, words[0], words[1], KeyLimits()
        else:
            raise SettingsError(f"{place} has {len(words)} words; expected {FORMS}")


def json_entries(path: Path, data: bytes) -> Iterator[tuple[str, str, str, KeyLimits]]:
    """The place, name, key and limits of each member of a JSON object.

    Raises:
        SettingsError: it is not such an object, or a member has another form.
    """
    try:
        found = parse_json(data)
    except ValueError as error:
        reason = (
            str(error) if str(error).startswith("not JSON") else "a name is given twice, or a number is wrong"
        )
        raise SettingsError(f"{path}: {reason}; expected {FORMS}") from None
    for number, (name, entry) in enumerate(found.items(), 1):
        place = f"{path}, entry {number}"
        if not isinstance(entry, dict) or not isinstance(entry.get("key"), str):
            raise SettingsError(f'{place} has no text as its "key"; expected {FORMS}')
        given = {limit: value for limit, value in entry.items() if limit != "key" and value is not None}
        if set(given) - set(LIMITS):
            raise SettingsError(f'{place} has an unknown field; expected "key" and {", ".join(LIMITS)}')
        for limit, value in given.items():
            number_given = isinstance(value, int | float) and not isinstance(value, bool)
            if not number_given or not 0 < value <= HIGHEST:
                raise SettingsError(f"{place}: {limit} must be a number above 0 and at most {HIGHEST:g}")
        yield place, name, entry["key"], KeyLimits(**given)


def checked(path: Path, entries: Iterator[tuple[str, str, str, KeyLimits]]) -> list[Key]:
    """The keys, if every name and key is well formed and given once.

    Raises:
        SettingsError: they are not, or there are none or too many.
    """
    keys, names, digests = list[Key](), set[str](), set[bytes]()
    for place, name, key, limits in entries:
        if not KEY.fullmatch(key):
            raise SettingsError(
                f"{place} holds a key of {len(key)} characters; expected {MIN_KEY} to {MAX_KEY} ASCII "
                "characters without spaces: make one with openssl rand -hex 24"
            )
        if not NAME.fullmatch(name):
            raise SettingsError(f"{place} has a name that is not 1 to 64 of A-Z a-z 0-9 . _ -")
        digest = digest_of(key)
        if name in names or digest in digests:
            raise SettingsError(f"{place} has the name or the key of an earlier entry; give each once")
        names.add(name)
        digests.add(digest)
        keys.append(Key(name, digest, limits))
    if not keys or len(keys) > MAX_KEYS:
        raise SettingsError(f"{path} holds {len(keys)} keys; expected 1 to {MAX_KEYS}: {FORMS}")
    return keys
