"""Waiting for something that another thread or process does."""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE_S = 300
"""Far more than anything takes: a test that waits in vain fails, and one on a busy machine does not."""


def wait_until(is_so: Callable[[], object]) -> None:
    """Look again and again until it is so."""
    end = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.02)
