"""The processor time to prepare a text of 4,096 characters, for texts that are costly to read.

    python -m valle2.benchmarks.serving.text_time

The texts are those of `hostile`, and random ones of each kind in `KINDS`: their parts do not repeat, so that
nothing can be kept from the part before. What earlier texts gave is forgotten before each measurement.
Process CPU time, the least of several repetitions; a random text is another one in each.
"""

from __future__ import annotations

import argparse
import json
import random
import string
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from statistics import median
from typing import Any

from valle2.benchmarks.serving import hostile
from valle2.runtime import Request, Valle2
from valle2.runtime.errors import TextError
from valle2.runtime.text.written.memo import forget

CHARACTERS = 4096
PROSE = "The quick brown fox jumps over the lazy dog, and nobody knows why it does so every day. "
MONTHS = ("Jan", "Feb.", "March", "May", "Sept", "December")
SHORT = ("etc.", "Mr.", "Dr.", "St.", "vs.", "No. 5", "e.g.", "Inc.", "p.", "a.m.", "Jan.", "Mon.", "U.S.")
UNITS = ("km/h", "kg", "m^2", "°C", "GB/s", "sq ft", "%", "in")
SIGNS = "$€£¥₹%°×÷±≤≥≠≈→∞√π©§ß&+=@№™⅓½²"
SEPARATORS = (" ", ", ", ". ", "")


def word(rng: random.Random, letters: int = 0) -> str:
    """Random small letters, 1 to 9 unless their number is given."""
    return "".join(rng.choices(string.ascii_lowercase, k=letters or rng.randint(1, 9)))


def of_range(rng: random.Random, first: int, last: int, count: int = 30) -> str:
    """Random characters between two code points."""
    return "".join(chr(rng.randint(first, last)) for _ in range(count))


KINDS: dict[str, Callable[[random.Random], str]] = {
    "integers": lambda rng: str(rng.randrange(10 ** rng.randint(1, 12))),
    "300 digits": lambda rng: "".join(rng.choices(string.digits, k=300)),
    "prices": lambda rng: f"${rng.randrange(10**8):,}.{rng.randrange(100):02d}",
    "euros": lambda rng: f"{rng.randrange(10**5)} €",
    "times": lambda rng: f"{rng.randrange(24)}:{rng.randrange(60):02d}:{rng.randrange(60):02d}",
    "half days": lambda rng: f"{rng.randrange(13)}:{rng.randrange(60):02d} p.m.",
    "dates": lambda rng: f"{rng.randint(1, 12)}/{rng.randint(1, 31)}/{rng.randint(1900, 2100)}",
    "ISO dates": lambda rng: f"{rng.randint(1900, 2100)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}",
    "long dates": lambda rng: f"{rng.choice(MONTHS)} {rng.randint(1, 28)}, {rng.randint(1900, 2100)}.",
    "addresses": lambda rng: f"https://{word(rng)}.{word(rng)}.com/{word(rng)}?a={rng.randrange(999)}&b=c",
    "mail": lambda rng: f"{word(rng)}@{word(rng)}.com",
    "IP addresses": lambda rng: ".".join(str(rng.randrange(256)) for _ in range(4)),
    "versions": lambda rng: f"v{rng.randrange(30)}.{rng.randrange(30)}.{rng.randrange(30)}",
    "paths": lambda rng: f"{word(rng)}/{word(rng)}/{word(rng)}.txt",
    "numerals": lambda rng: "".join(rng.choices("IVXLC", k=rng.randint(1, 5))),
    "capitals": lambda rng: "".join(rng.choices(string.ascii_uppercase, k=rng.randint(1, 6))),
    "humps": lambda rng: word(rng) + word(rng).capitalize() + word(rng).capitalize(),
    "phones": lambda rng: f"+1 ({rng.randrange(999):03d}) 555-{rng.randrange(9999):04d}",
    "fractions": lambda rng: f"{rng.randrange(99)}/{rng.randrange(99)}",
    "units": lambda rng: f"{rng.randrange(999)} {rng.choice(UNITS)}",
    "exponents": lambda rng: f"-{rng.randrange(9)}.{rng.randrange(99)}e{rng.randrange(-99, 99)}",
    "powers": lambda rng: f"{word(rng, 1)}^{rng.randrange(9)}",
    "ranges": lambda rng: f"{rng.randrange(999)}-{rng.randrange(999)}",
    "ordinals": lambda rng: f"{rng.randrange(999)}th",
    "feet": lambda rng: f"{rng.randrange(9)}'{rng.randrange(12)}\"",
    "unknown words": word,
    "long words": lambda rng: word(rng, 40),
    "hyphens": lambda rng: "-".join(word(rng) for _ in range(6)),
    "apostrophes": lambda rng: f"{word(rng)}'{word(rng)}",
    "short sentences": lambda rng: f"{word(rng, rng.randint(1, 3))}!",
    "abbreviations": lambda rng: rng.choice(SHORT),
    "lines": lambda rng: f"{word(rng)}\n\n",
    "links": lambda rng: f"[{word(rng)}](http://{word(rng)})",
    "HTML": lambda rng: f"<{rng.choice(('b', 'i', 'p', 'div', 'td'))}>{word(rng)}</b>",
    "lists": lambda rng: f"\n- {word(rng)}",
    "entities": lambda rng: f"&#{rng.randint(33, 70000)};",
    "ASCII": lambda rng: of_range(rng, 32, 126, 60),
    "marks": lambda rng: "".join(rng.choices(string.punctuation, k=rng.randint(1, 6))),
    "signs": lambda rng: "".join(rng.choices(SIGNS, k=8)),
    "Latin letters": lambda rng: of_range(rng, 0xC0, 0x24F, 6),
    "scripts": lambda rng: of_range(rng, 0x20, 0xD7FF),
    "symbols": lambda rng: of_range(rng, 0x1F000, 0x1FAFF),
    "accents": lambda rng: f"a{of_range(rng, 0x300, 0x36F)}",
    "old forms": lambda rng: of_range(rng, 0xF900, 0xFFEF),
}
"""Makers of one part of a random text."""
READ_AS = ("characters", "date", "cardinal", "ordinal", "time", "telephone", "fraction", "currency", "unit")
"""Values of `interpret-as`."""


def random_texts(
    length: int, seed: int = 0, separators: Sequence[str] = SEPARATORS
) -> Iterator[tuple[str, str]]:
    """Names and texts: each kind with each separator, mixtures of all kinds, and SSML."""
    for separator in separators:
        for name, make in KINDS.items():
            yield f"{name}, {separator!r}", filled(make, separator, length, random.Random(f"{seed}{name}"))
        rng = random.Random(seed)
        mixed = filled(lambda rng: rng.choice(list(KINDS.values()))(rng), separator, length, rng)
        yield f"mixed, {separator!r}", mixed
    for kind in READ_AS:
        rng = random.Random(f"{seed}{kind}")
        element = f"<say-as interpret-as='{kind}'>%d/%d</say-as>"
        count = (length - len("<speak></speak>")) // (len(element) + 2)
        parts = [element % (rng.randrange(1000), rng.randrange(100)) for _ in range(count)]
        yield f"say-as {kind}", f"<speak>{''.join(parts)}</speak>"


def filled(make: Callable[[random.Random], str], separator: str, length: int, rng: random.Random) -> str:
    """Parts with a separator between them, up to a length."""
    parts, size = [make(rng)], 0
    while size < length:
        size += len(parts[-1]) + len(separator)
        parts.append(make(rng))
    return separator.join(parts)[:length]


def repeated_texts(length: int) -> Iterator[tuple[str, str]]:
    """Names and texts of `hostile`, and prose."""
    yield "prose", (PROSE * length)[:length]
    for text in hostile.texts(length):
        yield repr(text[:32]), text


def milliseconds(tts: Valle2, text: str) -> float:
    """Process CPU time to prepare one text of which nothing is kept. A text may be refused."""
    request = Request(text, tts.voice(tts.default_voice()))
    forget()
    began = time.process_time()
    with suppress(TextError):
        tts.encode(request)
    return 1000 * (time.process_time() - began)


def text_times(tts: Valle2, length: int, repeats: int) -> dict[str, float]:
    """The least of the times of each text, slowest first."""
    milliseconds(tts, f"{PROSE} zxqvkj")  # the rules for unknown words are read when the first one comes
    found: dict[str, float] = {}
    for seed in range(repeats):
        for name, text in (*repeated_texts(length), *random_texts(length, seed)):
            found[name] = min(milliseconds(tts, text), found.get(name, float("inf")))
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def report(found: dict[str, float], shown: int) -> dict[str, Any]:
    """The slowest texts, the median and prose, in milliseconds."""
    slowest = {name: round(value, 1) for name, value in list(found.items())[:shown]}
    middle = round(median(found.values()), 1)
    return {
        "texts": len(found),
        "slowest_ms": slowest,
        "median_ms": middle,
        "prose_ms": round(found["prose"], 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--characters", type=int, default=CHARACTERS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--shown", type=int, default=12)
    args = parser.parse_args()
    tts = Valle2.load(args.model, threads=1)
    print(json.dumps(report(text_times(tts, args.characters, args.repeats), args.shown), indent=1))


if __name__ == "__main__":
    main()
