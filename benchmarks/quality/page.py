"""Write the tables of sweeps into a Markdown page, in place.

    python -m valle2.benchmarks.quality.page docs/data/quality.json docs/quality.md --plot docs/quality.svg

Several files may stand before the page; of an axis in several files the first one counts. The text
between `<!-- table NAME -->` and `<!-- end -->` is replaced. NAME is one of `tables.tables`, or `claims` for
the table of `paper_claims`.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from valle2.benchmarks.quality.paper_claims import beside_paper
from valle2.benchmarks.quality.tables import plot, tables
from valle2.engine.errors import Valle2Error

PLACE = re.compile(r"(<!-- table (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def fill(page: str, *results: dict[str, Any]) -> str:
    """The page with the tables of sweeps' results.

    Raises:
        Valle2Error: the page names a table that no sweep has.
    """
    claims = beside_paper(*results)
    found = {"claims": claims} if claims else {}
    for result in results:
        found = tables(result) | found

    def table(match: re.Match[str]) -> str:
        if match[2] not in found:
            raise Valle2Error(f"the page names the table {match[2]}; expected one of {', '.join(found)}")
        return f"{match[1]}{found[match[2]]}\n{match[3]}"

    return PLACE.sub(table, page)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("page", type=Path)
    parser.add_argument("--plot", type=Path, help="also draw the axis `sampling` into this .svg or .png")
    args = parser.parse_args()
    results = [json.loads(path.read_text(encoding="utf-8")) for path in args.results]
    args.page.write_text(fill(args.page.read_text(encoding="utf-8"), *results), encoding="utf-8")
    if args.plot:
        plot(next((result for result in results if "sampling" in result["axes"]), results[0]), args.plot)


if __name__ == "__main__":
    main()
