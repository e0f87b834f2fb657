"""Folders that tests of one process share."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from pathlib import Path


def shared_folder() -> Path:
    """An empty folder that lasts as long as this process."""
    folder = Path(tempfile.mkdtemp(prefix="impresa-test-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder
