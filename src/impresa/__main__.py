"""`python -m impresa`: the same as the command `impresa`; for launchers such as torchrun, which start modules."""

from __future__ import annotations

import sys

from impresa.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
