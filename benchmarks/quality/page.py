"""Put a sweep's tables into a page.

`python -m valle2.benchmarks.quality.page docs/quality.json docs/quality.md` rewrites the page.

A table stands between `<!-- table NAME -->` and `<!-- end -->`, NAME being one of `tables.tables` or
`claims`; what is between them is replaced.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from valle2.benchmarks.quality.paper_claims import beside_paper
from valle2.benchmarks.quality.tables import tables
from valle2.engine.errors import Valle2Error

PLACE = re.compile(r"(<!-- table (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(page: str, result: dict[str, Any]) -> str:
    """The page with the tables of this result.

    Raises:
        Valle2Error: the page asks for a table that the sweep does not have.
    """
    found = tables(result) | {"claims": beside_paper(result)}

    def table(match: re.Match[str]) -> str:
        if match[2] not in found:
            raise Valle2Error(f"the page wants the table {match[2]}; the sweep has {', '.join(found)}")
        return f"{match[1]}{found[match[2]]}\n{match[3]}"

    return PLACE.sub(table, page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("result", type=Path)
    parser.add_argument("page", type=Path)
    args = parser.parse_args()
    page = args.page.read_text(encoding="utf-8")
    args.page.write_text(filled(page, json.loads(args.result.read_text(encoding="utf-8"))), encoding="utf-8")


if __name__ == "__main__":
    main()
