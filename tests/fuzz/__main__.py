"""`python -m tests.fuzz [--count 100000] [--kinds archives ...] [--seed 0]`: reads many hostile files.

Prints a table with one row per kind. The exit status is 1 if any file caused a fault.
"""

from __future__ import annotations

import argparse
import sys

from tests.fuzz.bundles import BundleFuzzer
from tests.fuzz.files import ArchiveFuzzer, CheckpointFuzzer, OldFuzzer, PickleFuzzer, SafetensorsFuzzer
from tests.fuzz.harness import Maker, Report, fuzz

KINDS: dict[str, tuple[Maker, int]] = {
    "archives": (ArchiveFuzzer, 25),
    "pickles": (PickleFuzzer, 30),
    "old files": (OldFuzzer, 15),
    "safetensors": (SafetensorsFuzzer, 5),
    "checkpoints": (CheckpointFuzzer, 5),
    "bundles": (BundleFuzzer, 10),
}
"""By kind: its fuzzer, and its relative share of the files."""


def all_kinds(count: int, seed: int = 0, kinds: tuple[str, ...] = tuple(KINDS)) -> list[Report]:
    """Run every kind with its share of the files."""
    whole = sum(KINDS[kind][1] for kind in kinds)
    return [fuzz(kind, KINDS[kind][0], count * KINDS[kind][1] // whole, seed) for kind in kinds]


def table(reports: list[Report]) -> str:
    """The reports as a Markdown table."""
    rows = ["| kind | files | read | refused | slowest, s | growth, MiB | faults |", "|" + "---|" * 7]
    for found in reports:
        rows.append(
            f"| {found.kind} | {found.files} | {found.read} | {found.refused} | {found.slowest:.2f} "
            f"| {found.growth / 2**20:.1f} | {len(found.faults)} |"
        )
    return "\n".join(rows)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Read hostile files.")
    parser.add_argument("--count", type=int, default=100_000, help="files of all kinds together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    args = parser.parse_args()
    reports = all_kinds(args.count, args.seed, tuple(args.kinds))
    print(table(reports))
    for report in reports:
        for fault, number in report.faults:
            print(f"{report.kind}, file {number}: {fault}")
    return int(any(report.faults for report in reports))


if __name__ == "__main__":
    sys.exit(main())
