"""Tiny vision-language models: what one is built from, an experiment on the tiny alignment, and a run of it."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from impresa.config import ExperimentConfig, load_experiment
from impresa.data.chat import PlainChat
from impresa.data.dialogue import Dialogue, Turn, ask
from impresa.data.images import ImageTransform
from impresa.data.preprocessing import Preprocessing
from impresa.data.sample import Sample
from impresa.tasks.answering.answerer import AnsweringModel
from impresa.tasks.answering.batch import DialogueBatch, DialogueCollator
from impresa.tasks.answering.build import build_vlm
from impresa.tasks.answering.model import VisionLanguageModel
from tiny_run import finished_run

SIZE = 16
"""Side of the images."""
TRM = (
    *("decoder.type=trm", "decoder.dim=16", "decoder.num_heads=2", "decoder.mlp_ratio=2", "decoder.vocab_size=300"),
    *("decoder.recursion.num_layers=1", "decoder.recursion.num_cycles=2", "decoder.recursion.num_steps=1"),
    *("decoder.recursion.dropout=0", "decoder.max_len=48", "decoder.generation.max_new_tokens=6"),
)
SMALL = (
    *("dataset.image_size=16", "dataset.batch_size=6", "dataset.augmentation=none", "dataset.num_workers=0"),
    *("dataset.shapes.num_train=18", "dataset.shapes.num_val=6", "dataset.shapes.num_test=6"),
    *("trainer.accelerator=cpu", "trainer.epochs=2", "trainer.logging.tensorboard=false"),
    *("trainer.logging.eval_interval=100", "trainer.logging.save_interval=100", "trainer.logging.log_interval=1"),
    *("optimization.lr=1e-2", "optimization.warmup_epochs=0", "optimization.ema_decay=null"),
)
TOWER = (
    *("vision_encoder.checkpoint=null", "vision_encoder.dim=16", "vision_encoder.depth=2"),
    *("vision_encoder.num_heads=2", "vision_encoder.patch_size=8", "vision_encoder.embed_dim=16"),
)
"""An image tower from scratch, which is trained."""


def tiny_vlm(*overrides: str) -> ExperimentConfig:
    """`shapes_vqa_trm` made tiny, with a tower from scratch."""
    return load_experiment("shapes_vqa_trm", [*SMALL, *TRM, *TOWER, *overrides])


def tiny_vlm_on(run_dir: Path, *overrides: str) -> ExperimentConfig:
    """The same on the tower of a finished run."""
    on = (f"vision_encoder.checkpoint={run_dir}", "decoder.prefix_layer=last")
    return load_experiment("shapes_vqa_trm", [*SMALL, *TRM, *on, *overrides])


def tiny_qwen_vlm(folder: Path, *overrides: str) -> ExperimentConfig:
    """A tower from scratch before the Qwen model of a folder."""
    qwen = ("decoder.type=qwen", f"decoder.model={folder}", "decoder.dim=256", "decoder.num_heads=8")
    qwen += ("decoder.mlp_ratio=4", "decoder.vocab_size=8192", "decoder.max_len=160")
    return load_experiment("shapes_vqa_trm", [*SMALL, *TRM, *TOWER, *qwen, *overrides])


@cache
def finished_vlm() -> Path:
    """A run of `tiny_vlm_on(finished_run())`, trained once for all tests of a process; not to be changed."""
    from impresa.training.run import train

    folder = Path(tempfile.mkdtemp(prefix="impresa-test-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return train(tiny_vlm_on(finished_run()), folder / "run", command=["impresa", "train", "shapes_vqa_trm"])


def picture(seed: int, side: int = 20) -> Image.Image:
    """An image of four plain squares."""
    colours = torch.randint(0, 256, (2, 2, 3), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    pixels = colours.repeat_interleave(side // 2, dim=0).repeat_interleave(side // 2, dim=1)
    return Image.fromarray(pixels.numpy())


DIALOGUES: tuple[tuple[Dialogue, ...], ...] = (
    (ask("what colour?", "red", "colour"), ask("how many shapes are there?", "two", "count")),
    (ask("is there a circle?", "yes, there is", "existence"),),
    (Dialogue((Turn("what?", "a square"), Turn("where is it?", "left"))), ask("how many?", "one")),
)


def samples() -> list[Sample]:
    """Three images with five dialogues."""
    return [Sample(id=f"s{i}", image=picture(i), dialogues=said) for i, said in enumerate(DIALOGUES)]


def chat() -> PlainChat:
    """A tokenizer of the dialogues."""
    return PlainChat.train([dialogue for said in DIALOGUES for dialogue in said], 280)


def collated(some: list[Sample], chat_format: Any = None, audio_transform: Any = None) -> DialogueBatch:
    """A batch of samples."""
    collate = DialogueCollator(Preprocessing(chat_format or chat(), ImageTransform(SIZE), audio_transform), 160)
    batch = collate(some)
    assert not batch.bad
    return batch


def rough(model: VisionLanguageModel) -> VisionLanguageModel:
    """The model with weights far from their start where they are trained, so that no part of it is silent."""
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            scale = 1.0 if "recursion" in name or "fusion" in name else 0.3
            parameter.data += scale * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    return model


def answering(config: ExperimentConfig, chat_format: Any = None) -> AnsweringModel:
    """An untrained model in use, whose answers depend on the image."""
    chat_format = chat_format or chat()
    model = rough(build_vlm(config, chat_format.vocab_size))
    return AnsweringModel(model, config, Preprocessing(chat_format, ImageTransform(SIZE)), "cpu")
