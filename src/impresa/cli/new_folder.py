"""The folder that a command makes for what it writes, and the command line that is put on record there."""

from __future__ import annotations

import sys
from datetime import datetime
from itertools import count
from pathlib import Path


def new_folder(parent: str, name: str) -> Path:
    """PARENT/NAME/DATE-TIME, made at once, so that two commands of the same second do not share it.

    Args:
        parent: folder for all of its kind, as `runs`.
        name: of a config, or the path of its file.
    """
    folder = Path(parent) / Path(name).stem
    moment = datetime.now().strftime("%Y%m%d-%H%M%S")
    for number in count(1):
        made = folder / (moment if number == 1 else f"{moment}-{number}")
        try:
            made.mkdir(parents=True)
        except FileExistsError:
            continue
        return made
    raise AssertionError("count() does not end")


def command_line() -> list[str]:
    """The words of this command, as one would type them again."""
    program = Path(sys.argv[0]).name
    if program == "__main__.py":
        return ["python", "-m", "impresa", *sys.argv[1:]]
    return [*(["python"] if program.endswith(".py") else []), program, *sys.argv[1:]]
