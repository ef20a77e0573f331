"""The Markdown files: no line of prose is too long, and every relative link and anchor resolves."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "demo" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
LINKING = [*PAGES, ROOT / "CHANGELOG.md"]
COLUMNS = 100
FENCE = ("```", "~~~")
OUTSIDE = ("|", "<!--")
"""Tables and comments: a cell and a marker cannot be wrapped."""
LINK = re.compile(r"\]\(([^()\s]*)(?:\s\"[^\"]*\")?\)")
BARE_LINK = re.compile(r"(?:[-*+] |\d+\. )?!?\[[^\]]*\]\(\S*\)[.,;:]?|\[[^\]]+\]: \S+")
HEADING = re.compile(r"#{1,6}\s+(.+?)\s*#*$")
CODE = {".py", ".toml", ".yaml", ".yml", ".sh", ".cuda", ".jetson"}
PAGE = re.compile(r"\bdocs/[\w/-]+\.md\b")
"""A page that a comment or a message in the code names."""
ELSEWHERE = re.compile(r"[a-z][a-z0-9+.-]*:", re.I)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def unfenced(page: Path) -> Iterator[tuple[int, str]]:
    """(number, line) of every line outside code blocks."""
    fenced = False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        fence = line.strip().startswith(FENCE)
        if not fence and not fenced:
            yield number, line
        fenced ^= fence


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings: lower case, no punctuation, hyphens for spaces."""
    found: dict[str, int] = {}
    names = set()
    for _, line in unfenced(page):
        heading = HEADING.fullmatch(line)
        if heading:
            text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading[1])
            slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
            count = found.get(slug, 0)
            found[slug] = count + 1
            names.add(f"{slug}-{count}" if count else slug)
    return names


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_no_line_of_prose_is_too_long(page: Path) -> None:
    long = [
        f"{name_of(page)}:{number}: {len(line)} columns; wrap it at {COLUMNS}"
        for number, line in unfenced(page)
        if len(line) > COLUMNS and not line.lstrip().startswith(OUTSIDE)
        if " " in line.strip() and not BARE_LINK.fullmatch(line.strip())
    ]
    assert not long, "\n".join(long)


@pytest.mark.parametrize("page", LINKING, ids=name_of)
def test_every_relative_link_resolves(page: Path) -> None:
    broken = []
    for number, line in unfenced(page):
        for target in LINK.findall(re.sub(r"`[^`]*`", "", line)):
            if ELSEWHERE.match(target):
                continue
            path, _, anchor = unquote(target).partition("#")
            file = page.parent / path if path else page
            if not file.exists() or (anchor and anchor not in anchors(file)):
                broken.append(f"{name_of(page)}:{number}: {target} leads nowhere")
    assert not broken, "\n".join(broken)


def test_every_page_of_the_documentation_is_reached_from_the_readme() -> None:
    """A page that no other page links to is a page that nobody finds."""
    waiting, seen = [ROOT / "README.md"], set()
    while waiting:
        page = waiting.pop()
        if page in seen or page.suffix != ".md" or not page.is_file():
            continue
        seen.add(page)
        for _, line in unfenced(page):
            for target in LINK.findall(line):
                if not ELSEWHERE.match(target):
                    waiting.append((page.parent / unquote(target).partition("#")[0]).resolve())
    lost = sorted(name_of(page) for page in PAGES if page.resolve() not in {p.resolve() for p in seen})
    assert not lost, f"no page links to {', '.join(lost)}"


def test_code_names_pages_that_exist() -> None:
    lost = []
    for folder in ("engine", "export", "runtime", "benchmarks", "demo", "deploy", "tests"):
        for file in sorted((ROOT / folder).rglob("*")):
            if file.suffix not in CODE or file == Path(__file__).resolve():
                continue
            for name in PAGE.findall(file.read_text(encoding="utf-8")):
                if not (ROOT / name).is_file():
                    lost.append(f"{name_of(file)}: there is no {name}")
    assert not lost, "\n".join(lost)


def test_the_check_itself(tmp_path: Path) -> None:
    """Headings become anchors as on GitHub, and code blocks are left out."""
    page = tmp_path / "page.md"
    page.write_text("# `say`, and more\n```\n# no heading\n```\n## Twice\n## Twice\n", encoding="utf-8")
    assert anchors(page) == {"say-and-more", "twice", "twice-1"}
    assert LINK.findall("[![a](b.svg)](c.md#d) [e](f.md)") == ["b.svg", "c.md#d", "f.md"]
