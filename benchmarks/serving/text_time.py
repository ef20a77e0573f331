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
READ = """
etc. Mr.␣A St. e.g. a.m. BBC U.S.A. Ph.D. No.␣5 vs w/o w/␣x #5 §5 C# R&D Henry␣VIII Chapter␣X
XIVth␣century Jan-Feb Mon-Tue 2024-01-15 1/15/2024 on␣12/25 Jan␣5 5␣Jan May␣5-7 1:30:45 2h␣30m 9-5␣pm
9.30␣am 9am 3:2 5,50␣€ $.50 Rs.␣5 $5-10 -$1.5M 5¢ 100␣USD USD␣100 5'11" 5"␣pipe 1/2" 3x4 1e9 5␣km␣-␣6␣km
5°␣N km/h per␣m2 5k␣items x^2 ~5 -> != == < 2*3 2␣/␣3 90s 24/7 +1␣800␣555␣0199 555-123-4567
1234␣5678␣9012 ISBN␣9783161484100 CA␣90210 call␣911 1.5/2.5 5␣1/2 3/4 A-Z 5-10 -5 5th .5 1,234,567 JPEG
maxTokens OECD https://a.b/c a@b.com file.txt /usr/lib/x C:\\a 1.2.3.4 v1.2.3 #HashTag 😀 👨‍👩‍👧 é Łódź
œuvre ﬁ ① ½ ² ™ №␣5 ’s “a” (a) [a] {a} <b>a</b> **a** `a` |␣a␣| --- ![a](b) &#65; <!--␣a␣--> <br> 中文
こんにちは 한국어 Привет عربي हिन्दी ไทย Ελληνικά עברית ı İ ß … — – · • 'tis rock-n-roll [tomato](/təˈmeɪtoʊ/)
zxqvkj I.␣I. 2nd hello... a, ∞ √2 ±5 á́ €5-€6 5€-6€ 5␣million gave␣1/2 a␣5␣m 5␣m␣wide 7pm 5.5% 100°F
5MB/s 3D 16:9 AT&T 00:00 99:99 9/11 50/50 007 1.000.000 1␣000␣000 ½␣cup .. -- '' (( & @ ^ * _
"""
TRIGGERS = tuple(trigger.replace("␣", " ") for trigger in READ.split())
"""What each of the rules reads, other scripts, and markup."""
ELEMENTS = (
    "<phoneme alphabet='ipa' ph='təˈmeɪtoʊ'>tomato</phoneme> ",
    "<sub alias='$5,000.50 on 1/2/2020'>x</sub> ",
    "<break time='1ms'/>a. ",
    "<s>$5</s>",
    "<prosody rate='90%'>5 km</prosody> ",
)
"""Elements of SSML that are read."""
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
    "everything": lambda rng: "".join(
        rng.choice("123456789") if character.isdigit() else character for character in rng.choice(TRIGGERS)
    ),
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
    """Names and texts of `hostile`, prose, and each of `TRIGGERS` and `ELEMENTS`."""
    yield "prose", (PROSE * length)[:length]
    for trigger in TRIGGERS:
        yield f"{trigger} repeated", (trigger * length)[:length]
    for element in ELEMENTS:
        yield f"{element} repeated", f"<speak>{element * ((length - 15) // len(element))}</speak>"
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
