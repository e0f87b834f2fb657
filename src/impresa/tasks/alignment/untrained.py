"""A pretrained pair in use before any training, to be measured: what a fine-tuning of it has to beat."""

from __future__ import annotations

import torch

from impresa.config.describe import Fault
from impresa.config.encoder import is_from_scratch
from impresa.config.experiment import ExperimentConfig, towers
from impresa.data.preprocessing import (
    Preprocessing,
    prepare_audio_transform,
    prepare_image_transform,
    prepare_tokenizer,
)
from impresa.errors import ConfigError
from impresa.tasks.alignment.embedder import EmbeddingModel
from impresa.tasks.alignment.task import AlignmentTask
from impresa.tasks.devices import Device


def untrained(config: ExperimentConfig, device: Device | None = None) -> EmbeddingModel:
    """The model as training would start from it.

    Args:
        config: an alignment whose towers are all pretrained; its data are not read.
        device: see `UsableModel`.

    Raises:
        ConfigError: the config has a decoder, or a tower with nothing to measure; or a tower cannot be read.
    """
    if config.decoder is not None:
        raise ConfigError(Fault("decoder", "answers nothing before it is trained; name a run").line())
    for modality, part, tower in towers(config):
        if tower.checkpoint is not None or is_from_scratch(modality, tower):
            kind = tower.checkpoint or tower.backbone
            fault = f"{kind} is no pretrained model, so that nothing can be measured before a training"
            raise ConfigError(
                Fault(f"{part}.backbone", f"{fault}; name a run, or a config of a pretrained pair").line()
            )
    tokenizer = prepare_tokenizer(config, ())  # the text tower brings its own
    preprocessing = Preprocessing(tokenizer, prepare_image_transform(config), prepare_audio_transform(config))
    torch.manual_seed(config.seed)
    task = AlignmentTask(config)
    return task.use(task.build(preprocessing), preprocessing, device)


def how_untrained(model: EmbeddingModel) -> str:
    """The sentence that says what the figures of such a model are of."""
    if AlignmentTask(model.config).is_of_use_untrained(model.model):
        return "nothing was trained, these are the figures of the pretrained pair as it is"
    return "nothing was trained, and the heads are new: these are the figures of chance"
