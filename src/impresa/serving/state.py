"""State that all routes of a server share: its settings, its model, and the parts that compute with it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import torch

from impresa.config.paths import expanded
from impresa.run_dir.load import load
from impresa.serving.embedder import Embedder
from impresa.serving.engine import Engine
from impresa.serving.faults import ApiError, bad
from impresa.serving.media import Media
from impresa.serving.metrics import Metrics
from impresa.serving.settings import Settings
from impresa.serving.writer import Writer
from impresa.tasks.alignment.embedder import EmbeddingModel
from impresa.tasks.answering.answerer import AnsweringModel
from impresa.tasks.devices import usable_device

_FEWEST_READERS, _MOST_READERS = 2, 16
_OTHER = "model_not_supported"


@dataclass
class State:
    """A server's parts."""

    settings: Settings
    model: EmbeddingModel | AnsweringModel
    name: str
    """The model's, as clients write it."""
    metrics: Metrics
    engine: Engine
    media: Media
    embedder: Embedder | None
    """Of a model that embeds."""
    writer: Writer | None
    """Of a model that answers."""
    is_ready: bool = False
    """False before the start and from the beginning of the end."""
    started: int = field(default_factory=lambda: int(time.time()))
    """In seconds since 1970."""

    def check_name(self, name: str | None) -> None:
        """Refuse the name of another model; None stands for the one there is."""
        if name is not None and name != self.name:
            raise ApiError(404, f"there is no model {name!r:.100}; GET /v1/models lists it", "model", "model_not_found")

    def require_embedder(self) -> Embedder:
        """The embedder; a model that answers is refused."""
        if self.embedder is None:
            raise bad(f"{self.name} answers questions and embeds nothing; POST /v1/chat/completions", "model", _OTHER)
        return self.embedder

    def require_writer(self) -> Writer:
        """The writer; a model that embeds is refused."""
        if self.writer is None:
            raise bad(f"{self.name} embeds and answers nothing; POST /v1/embeddings", "model", _OTHER)
        return self.writer

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """From the server's start to its end."""
        async with AsyncExitStack() as stack:
            stack.callback(self.engine.close)
            for part in (self.media, self.embedder, self.writer):
                if part is not None:
                    await stack.enter_async_context(part.running())
            self.is_ready = True
            try:
                yield
            finally:
                self.is_ready = False


def load_state(settings: Settings) -> State:
    """The state of a server that is about to start. Errors: those of `impresa.load`."""
    device = usable_device(settings.device, "--device") if settings.device else None
    return state_of(settings, load(settings.run, device))


def state_of(settings: Settings, model: EmbeddingModel | AnsweringModel) -> State:
    """The same of a model that is loaded."""
    name = settings.name or expanded(str(settings.run)).resolve().name
    readers = min(max(torch.get_num_threads(), _FEWEST_READERS), _MOST_READERS)
    metrics, engine = Metrics(), Engine(readers)
    media = Media(settings, engine)
    parts = engine, media, settings.limits, metrics
    embedder = Embedder(model, *parts) if isinstance(model, EmbeddingModel) else None
    writer = Writer(model, *parts) if isinstance(model, AnsweringModel) else None
    return State(settings, model, name, metrics, engine, media, embedder, writer)
