"""Servers in a thread of this process, in-process clients, and the models behind them."""

from __future__ import annotations

import base64
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from fastapi import FastAPI
from fastapi.testclient import TestClient

from impresa.data.audio import LogMelTransform
from impresa.run_dir.load import load
from impresa.serving.app import app_of
from impresa.serving.run import bound, server_of
from impresa.serving.settings import Limits, Settings
from impresa.serving.state import state_of
from impresa.tasks import task_of
from impresa.tasks.alignment.embedder import EmbeddingModel
from impresa.tasks.answering.answerer import AnsweringModel
from pictures import png
from tiny_run import HEARING, finished_run, tiny_experiment
from tiny_vlm import answering, tiny_vlm

LOCAL = "http://127.0.0.1"


@cache
def embedding_model() -> EmbeddingModel:
    model = load(finished_run(), "cpu")
    assert isinstance(model, EmbeddingModel)
    return model


@cache
def hearing_model() -> EmbeddingModel:
    """An untrained model of images, texts, sounds, and images with sounds."""
    config = tiny_experiment()
    hearing = tiny_experiment(*HEARING).audio_encoder
    config = replace(config, audio_encoder=hearing, losses=replace(config.losses, pairs=("image+audio-text",)))
    preprocessing = replace(embedding_model().preprocessing, audio=LogMelTransform(0.3))
    torch.manual_seed(0)
    return EmbeddingModel(task_of(config).build(preprocessing), config, preprocessing, "cpu")  # type: ignore[arg-type]


@cache
def talking_model() -> AnsweringModel:
    """An untrained model, whose answers depend on the image and on what has been said."""
    torch.manual_seed(0)
    return answering(tiny_vlm("decoder.max_len=96", "dataset.max_images=2"))


def app_with(model: EmbeddingModel | AnsweringModel, limits: Limits | None = None, **settings: Any) -> FastAPI:
    """An app whose model is called `tiny`."""
    given = Settings(run=Path("tiny"), name="tiny", limits=limits or Limits(), **settings)
    return app_of(state_of(given, model))


@contextmanager
def client_of(app: FastAPI) -> Iterator[TestClient]:
    """A client without a network."""
    with TestClient(app, base_url=LOCAL, raise_server_exceptions=False) as client:
        yield client


@contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """The address of a server in a thread."""
    with bound("127.0.0.1", 0) as listening:
        server = server_of(app)
        thread = threading.Thread(target=lambda: server.run(sockets=[listening]), daemon=True)
        thread.start()
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        try:
            yield f"{LOCAL}:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(timeout=60)


def connected(url: str) -> socket.socket:
    """A connection to a server that `served` gave."""
    host, port = url.removeprefix("http://").split(":")
    found = socket.socket()
    found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)  # little room for answers
    found.settimeout(60)
    found.connect((host, int(port)))
    return found


def data_url(content: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def picture(number: int, side: int = 20) -> str:
    """A picture whose colour says which it is."""
    return data_url(png(number * 37, side, side))


def fault_of(answer: Any) -> dict[str, Any]:
    """OpenAI's error object, and nothing beside it but the message for other clients."""
    found = answer.json()
    assert set(found) == {"error", "detail"}
    assert found["detail"] == found["error"]["message"]
    assert set(found["error"]) == {"message", "type", "param", "code"}
    assert isinstance(found["error"]["message"], str)
    error: dict[str, Any] = found["error"]
    return error
