"""`python -m tests.make_toy FOLDER` writes the tests' toy checkpoint, whose weights are random."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.conftest import toy_checkpoint, write_toy

if __name__ == "__main__":
    print(write_toy(Path(sys.argv[1]), toy_checkpoint(2, 400)))
