"""Exit status 0 if the server in this container is healthy and takes requests, else 1 with the reason."""

from __future__ import annotations

import sys
from urllib.request import urlopen

ADDRESS = "http://127.0.0.1:8000"


def main(address: str) -> int:
    for path in ("health", "ready"):
        try:
            urlopen(f"{address}/{path}", timeout=4).close()
        except OSError as error:
            print(f"/{path}: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else ADDRESS))
