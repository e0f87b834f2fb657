"""The same as `impresa train`."""

from __future__ import annotations

import sys

from impresa.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
