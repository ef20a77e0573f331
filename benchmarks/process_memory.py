"""Memory of a process, as the operating system reports it; None where the system does not report it.

Only the standard library is imported, so that a process that measures itself holds nothing else yet.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path


def resident_bytes(pid: int | str = "self") -> int | None:
    """Memory that a process has in use now (Linux)."""
    return status_bytes(pid, "VmRSS")


def peak_bytes() -> int | None:
    """The most memory that this process ever had in use (Linux, macOS)."""
    found = status_bytes("self", "VmHWM")
    if found is None and sys.platform == "darwin":
        from resource import RUSAGE_SELF, getrusage

        return getrusage(RUSAGE_SELF).ru_maxrss
    return found


def status_bytes(pid: int | str, name: str) -> int | None:
    """One line of `/proc/PID/status`, in bytes."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(rf"^{name}:\s+(\d+) kB", status, re.MULTILINE)
    return 1024 * int(found[1]) if found else None
