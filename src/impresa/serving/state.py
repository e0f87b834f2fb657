"""What all routes of a server share: its settings, its model, and what computes with it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from impresa.config.paths import expanded
from impresa.run_dir.load import load
from impresa.serving.faults import ApiError
from impresa.serving.metrics import Metrics
from impresa.serving.settings import Settings
from impresa.tasks.devices import usable_device

if TYPE_CHECKING:
    from impresa.tasks.alignment.embedder import EmbeddingModel
    from impresa.tasks.answering.answerer import AnsweringModel


@dataclass
class State:
    """A server's parts."""

    settings: Settings
    model: EmbeddingModel | AnsweringModel
    name: str
    """The model's, as clients write it."""
    metrics: Metrics
    is_ready: bool = False
    """False before the start and from the beginning of the end."""
    started: int = field(default_factory=lambda: int(time.time()))
    """In seconds since 1970."""

    def check_name(self, name: str | None) -> None:
        """Refuse the name of another model; None stands for the one there is."""
        if name is not None and name != self.name:
            raise ApiError(404, f"there is no model {name!r:.100}; GET /v1/models lists it", "model", "model_not_found")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """From the server's start to its end."""
        self.is_ready = True
        try:
            yield
        finally:
            self.is_ready = False


def load_state(settings: Settings) -> State:
    """The state of a server that is about to start. Errors: those of `impresa.load`."""
    device = usable_device(settings.device, "--device") if settings.device else None
    model = load(settings.run, device)
    name = settings.name or expanded(str(settings.run)).resolve().name
    return State(settings, model, name, Metrics())
