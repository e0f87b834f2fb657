"""A picture of a study's page for the documentation, taken by a headless Chromium.

`python docs/draw_ablation.py STUDY docs/images/STUDY.png` draws its upper part: verdicts, the judge's table and the
first charts.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from impresa.ablation.report import PAGE
from impresa.errors import CheckpointError, ImpresaError
from impresa.files import write_atomic

WIDTH_PX = 1120
HEIGHT_PX = 1400
TIMEOUT_S = 60


def write_picture(study_dir: Path, path: Path, *, height: int = HEIGHT_PX) -> Path:
    """Draw the upper part of a study's page as a PNG, at twice its size in pixels, and return its path.

    Raises:
        CheckpointError: the study has no page, or there is no Chromium.
    """
    page = study_dir / PAGE
    if not page.is_file():
        raise CheckpointError(f"{page}: is missing; `impresa ablate` writes it")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        raise CheckpointError("there is no Chromium to draw with; apt-get install chromium")
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder, "page.png")
        flags = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--force-device-scale-factor=2",
        ]
        places = [f"--user-data-dir={folder}/profile", f"--screenshot={picture}", f"--window-size={WIDTH_PX},{height}"]
        command = [chromium, *flags, *places, page.resolve().as_uri()]
        subprocess.run(command, capture_output=True, timeout=TIMEOUT_S, check=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        return write_atomic(path, picture.read_bytes())


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line of this module; returns the exit status."""
    parser = argparse.ArgumentParser(description="Draw the upper part of a study's page.")
    parser.add_argument("study", type=Path, help="directory of a study")
    parser.add_argument("out", type=Path, help="PNG to write")
    parser.add_argument("--height", type=int, default=HEIGHT_PX, help="pixels of the page that are drawn")
    args = parser.parse_args(arguments)
    try:
        write_picture(args.study, args.out, height=args.height)
    except ImpresaError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
