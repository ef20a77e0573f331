"""`python -m valle2.runtime.cli` is the command `valle2`."""

import sys

from valle2.runtime.cli.main import main

sys.exit(main())
