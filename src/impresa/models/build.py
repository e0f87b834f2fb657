"""From a configuration to a model: the only place that chooses classes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from impresa.config.checks import FUSED_PAIR, is_from_scratch
from impresa.config.experiment import ExperimentConfig, Modality
from impresa.data.audio import NUM_MELS, LogMelTransform
from impresa.encoders.audio import AudioEncoder
from impresa.encoders.text import TextEncoder
from impresa.encoders.vision import VisionEncoder
from impresa.errors import ConfigError
from impresa.fusion import FusedEmbedding, build_fusion
from impresa.losses.contrastive import ContrastiveLoss
from impresa.models.alignment import AlignmentModel


def build_alignment(
    config: ExperimentConfig, vocab_size: int, end_id: int, *, load_weights: bool = True
) -> AlignmentModel:
    """An alignment model as training starts from it, on the CPU in float32.

    New weights come from torch's global seed. Each encoder has a seed of its own, so that a switch in one of them
    leaves the start of the others as it is. Pretrained towers are loaded.

    Args:
        config: the experiment.
        vocab_size: size of the tokenizer.
        end_id: the tokenizer's end token.
        load_weights: false builds pretrained towers without their weights, for those that come from a run.

    Raises:
        ConfigError: the tokenizer is larger than the text encoder's `vocab_size` allows, or a pretrained tower cannot
            be loaded.
        CheckpointError: the files of a pretrained tower are incomplete.
    """
    bound = config.text_encoder.vocab_size
    if vocab_size > bound and is_from_scratch("text", config.text_encoder):
        fault = f"{bound} is less than the {vocab_size} tokens of the tokenizer"
        raise ConfigError(f"text_encoder.vocab_size: {fault}; raise it or train a smaller tokenizer")
    with _own_seed():
        vision_encoder = VisionEncoder(config.vision_encoder, config.dataset.image_size, load_weights=load_weights)
    with _own_seed():
        text_encoder = TextEncoder(config.text_encoder, vocab_size, end_id, load_weights=load_weights)
    audio_encoder = None
    if config.audio_encoder is not None:
        max_frames = LogMelTransform(config.audio_encoder.audio_max_seconds).max_frames
        with _own_seed():
            audio_encoder = AudioEncoder(
                config.audio_encoder, num_mels=NUM_MELS, max_frames=max_frames, load_weights=load_weights
            )
    fusion = None
    if audio_encoder is not None and FUSED_PAIR in (config.losses.pairs or ()):
        widths: dict[Modality, int] = {"image": vision_encoder.dim, "audio": audio_encoder.dim}
        with _own_seed():
            width = config.vision_encoder.embed_dim
            fusion = FusedEmbedding(build_fusion(config.fusion, widths, width), width)
    dims = config.vision_encoder.mrl_dimensions if config.vision_encoder.use_mrl else ()
    loss = ContrastiveLoss(config.losses, mrl_dimensions=dims, seed=config.seed)
    return AlignmentModel(vision_encoder, text_encoder, loss, audio_encoder, fusion)


@contextmanager
def _own_seed() -> Iterator[None]:
    seed = int(torch.randint(2**62, ()))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
