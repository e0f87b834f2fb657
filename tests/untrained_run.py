"""Runs of alignments that nobody trained, for tests that need an architecture and not what it has learned."""

from __future__ import annotations

from pathlib import Path

import torch

from impresa.config.experiment import ExperimentConfig
from impresa.data.preprocessing import Preprocessing, prepare_audio_transform, prepare_image_transform
from impresa.data.sources import open_source
from impresa.data.sources.base import reading_of
from impresa.run_dir.save import save_run
from impresa.tasks import task_of
from impresa.tasks.alignment.build import build_alignment
from tiny_run import tiny_experiment

BARE = ("vision_encoder.memory.enabled=false", "vision_encoder.projection=none", "text_encoder.projection=none")
"""Of `tiny_experiment`: towers that CLIP has, but for the norm before the blocks."""
MRL = ("vision_encoder.use_mrl=true", "vision_encoder.mrl_dimensions=[8,4]")


def save_untrained(folder: Path, config: ExperimentConfig) -> Path:
    """A run of the config, whose weights are all far from where they start, so that no part of it is silent."""
    task, source = task_of(config), open_source(config.dataset, "train", reading_of(config))
    tokenizer = task.prepare_tokenizer(source)
    preprocessing = Preprocessing(tokenizer, prepare_image_transform(config), prepare_audio_transform(config))
    torch.manual_seed(0)
    model = build_alignment(config, tokenizer.vocab_size, tokenizer.end_id)
    with torch.no_grad():
        for name, value in (*model.named_parameters(), *model.named_buffers()):
            if value.is_floating_point() and not name.startswith("loss."):
                value.add_(torch.randn_like(value), alpha=0.1)
    save_run(folder, model, config, preprocessing, examples=[source[i] for i in range(4)])
    return folder


def untrained(folder: Path, *overrides: str) -> Path:
    """The same of `tiny_experiment(...)`."""
    return save_untrained(folder, tiny_experiment(*overrides))
