"""A page in headless Chromium, for the tests of pages; they are skipped where it is missing."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WITH_CHROMIUM = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium; apt-get install chromium")


class Visit(NamedTuple):
    """What a browser made of a page."""

    dom: str
    """After loading, scripts' work included."""
    console: list[str]
    """Lines that the page, or the browser about it, wrote there."""


def visit(page: str, folder: Path, *options: str) -> Visit:
    """The page once it is loaded; with `options` they are done in place of printing the DOM."""
    assert CHROMIUM is not None
    path = folder / "page.html"
    path.write_text(page, encoding="utf-8")
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--timeout=60000"]
    flags += ["--enable-logging=stderr", f"--user-data-dir={folder / 'profile'}"]
    command = [CHROMIUM, *flags, *(options or ["--dump-dom"]), path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return Visit(done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line])


def opened(page: str, folder: Path, *options: str) -> str:
    """The DOM of a page; see `visit`."""
    return visit(page, folder, *options).dom
