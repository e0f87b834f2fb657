"""Surroundings of the Python of the guides: files of the names that it uses, and tiny models for its runs."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import torch

import impresa
from impresa.data.audio import LogMelTransform
from impresa.data.images import ImageTransform
from impresa.data.preprocessing import Preprocessing
from impresa.run_dir.load import load_embedder
from impresa.tasks.alignment.embedder import EmbeddingModel
from impresa.tasks.answering.answerer import AnsweringModel
from impresa.tasks.answering.build import build_vlm
from pictures import png
from sounds_on_disk import wav
from tiny_run import HEARING, finished_run
from tiny_vlm import chat, rough, tiny_vlm
from untrained_run import untrained

SECONDS = 0.3
WIDE = tuple(f"{tower}.embed_dim=128" for tower in ("vision_encoder", "text_encoder", "audio_encoder"))


@cache
def aligned() -> EmbeddingModel:
    """128 dimensions, as the demo has them, of pictures, texts and sounds."""
    folder = Path(mkdtemp(prefix="impresa-test-"))
    try:
        return load_embedder(untrained(folder / "run", *HEARING, *WIDE), "cpu")
    finally:
        shutil.rmtree(folder)


@cache
def answering() -> AnsweringModel:
    """For one picture or two, and sounds."""
    config = tiny_vlm("dataset.max_images=2", "decoder.max_len=96", *HEARING, "audio_encoder.patch_size=32")
    model = rough(build_vlm(config, chat().vocab_size))
    return AnsweringModel(model, config, Preprocessing(chat(), ImageTransform(16), LogMelTransform(SECONDS)), "cpu")


def surroundings(folder: Path, text: str, patch: pytest.MonkeyPatch, until: ExitStack) -> dict[str, Any]:
    """The names that a block takes for granted, in a folder with the files that it names. What it asks is served
    `until` the stack is closed."""
    for number, name in enumerate(("a.png", "b.png", "c.png", "photos/1.png")):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(png(number, 20, 16))
    for name in ("a.wav", "b.wav", "clip.wav", "bark.wav", "rain.mp3"):
        (folder / name).write_bytes(wav(440, SECONDS))
    patch.setattr(
        impresa, "load", lambda run, device=None: answering() if "vqa" in str(run) else aligned(), raising=False
    )
    known: dict[str, Any] = {"impresa": impresa, "run": "runs/shapes", "samples": torch.zeros(4_410)}
    known["model"] = answering() if ".ask(" in text or ".stream(" in text else aligned()
    known["images"] = aligned().encode_image(["a.png", "b.png"])
    if "client." in text:
        known["client"] = _client(until, patch, answers="chat." in text)
    if "open_index" in text:
        pytest.importorskip("lancedb")
        from some_index import indexed, table

        table(folder / "photos")
        indexed(folder / "photos.index", folder / "photos", run=finished_run())
        patch.undo()  # an index loads its own run
        patch.chdir(folder)
    return known


def _client(until: ExitStack, patch: pytest.MonkeyPatch, *, answers: bool) -> Any:
    """OpenAI's client of a server in this process, whatever address it is given."""
    openai = pytest.importorskip("openai")
    from impresa.serving.app import app_of
    from impresa.serving.settings import Settings
    from impresa.serving.state import state_of
    from served import served

    name, model = ("vqa", answering()) if answers else ("shapes", aligned())
    url = until.enter_context(served(app_of(state_of(Settings(run=Path(name), name=name), model))))
    make = openai.OpenAI
    patch.setattr(openai, "OpenAI", lambda *, base_url, api_key: make(base_url=f"{url}/v1", api_key=api_key))
    return openai.OpenAI(base_url="", api_key="none")
