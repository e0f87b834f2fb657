"""Pages in a headless Chromium, where there is one."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium; apt-get install chromium")


def opened(page: str, folder: Path, *options: str) -> str:
    """The page as a browser has it after loading: its DOM, scripts' work included."""
    return _opened(page, folder, *(options or ["--dump-dom"])).stdout


def console(page: str, folder: Path) -> list[str]:
    """Lines that the browser writes to its console while the page loads: errors, refusals of the page's policy."""
    log = _opened(page, folder, "--enable-logging=stderr", "--dump-dom").stderr
    return [line for line in log.splitlines() if "CONSOLE" in line]


def _opened(page: str, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    assert CHROMIUM is not None
    path = folder / "page.html"
    path.write_text(page, encoding="utf-8")
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--timeout=3000"]
    command = [CHROMIUM, *flags, f"--user-data-dir={folder / 'profile'}", *options, path.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
