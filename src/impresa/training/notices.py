"""Notices of the library on standard error, for the command line."""

from __future__ import annotations

import logging
import sys
from typing import TextIO

from impresa.training.processes import is_main_process


class _StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to what standard error is at that moment: a progress bar puts itself in its place while it is shown."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr


def show_notices() -> None:
    """Show what the library logs, as plain lines; once, however often it is called, and by one of several processes."""
    library = logging.getLogger("impresa")
    if any(isinstance(handler, _StderrHandler) for handler in library.handlers):
        return
    library.addHandler(_StderrHandler())
    library.setLevel(logging.INFO if is_main_process() else logging.ERROR)
