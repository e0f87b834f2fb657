"""How far a request has come, which decides what it is told when its time is over."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass


@dataclass
class Progress:
    """Of one request."""

    begun: bool = False
    """The model has begun with a part of it."""


PROGRESS: ContextVar[Progress | None] = ContextVar("progress", default=None)
"""Of the request that is being answered."""
