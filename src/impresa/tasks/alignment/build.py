"""From a configuration to an alignment model."""

from __future__ import annotations

import logging

from impresa.config.describe import listed
from impresa.config.encoder import Modality, is_from_scratch
from impresa.config.experiment import PAIR, ExperimentConfig
from impresa.config.losses import FUSED_PAIR
from impresa.errors import ConfigError
from impresa.fusion import FusedEmbedding, build_fusion
from impresa.losses.contrastive import ContrastiveLoss
from impresa.tasks.alignment.chunks import check_rows_are_independent
from impresa.tasks.alignment.model import AlignmentModel
from impresa.tasks.encoders import build_audio, build_text, build_vision, own_seed

logger = logging.getLogger(__name__)


def build_alignment(
    config: ExperimentConfig, vocab_size: int, end_id: int, *, load_weights: bool = True
) -> AlignmentModel:
    """An alignment model as training starts from it, on the CPU in float32.

    New weights come from torch's global seed, from which each encoder draws a seed of its own (`own_seed`).

    Towers of other runs are in `config` as they are there (`adopt_towers`). The tokenizer has `vocab_size` tokens, the
    last of a text is `end_id`. `load_weights` false leaves out weights of pretrained towers and of other runs.
    """
    bound = config.text_encoder.vocab_size
    if vocab_size > bound and is_from_scratch("text", config.text_encoder):
        fault = f"{bound} is less than the {vocab_size} tokens of the tokenizer"
        raise ConfigError(f"text_encoder.vocab_size: {fault}; raise it or train a smaller tokenizer")
    vision_encoder = build_vision(config, load_weights)
    text_encoder = build_text(config, vocab_size, end_id, load_weights)
    if load_weights:  # what is not trained packs nothing
        text_encoder.pack(config.optimization.packing)
    audio_encoder = build_audio(config, load_weights)
    fusion = None
    if audio_encoder is not None and FUSED_PAIR in (config.losses.pairs or ()):
        widths: dict[Modality, int] = {"image": vision_encoder.dim, "audio": audio_encoder.dim}
        with own_seed():
            width = config.vision_encoder.embed_dim
            fusion = FusedEmbedding(build_fusion(config.fusion, widths, width), width)
    dims = config.vision_encoder.mrl_dimensions if config.vision_encoder.use_mrl else ()
    loss = ContrastiveLoss(config.losses, mrl_dimensions=dims, seed=config.seed)
    chunk_size = config.optimization.chunk_size
    model = AlignmentModel(vision_encoder, text_encoder, loss, audio_encoder, fusion, chunk_size=chunk_size)
    if chunk_size is not None:
        check_rows_are_independent(model)
    if load_weights:
        _name_lost_heads(config, model)
    return model


def _name_lost_heads(config: ExperimentConfig, model: AlignmentModel) -> None:
    """Say where `projection: auto` cannot keep the pair's own heads."""
    lost = {
        part: getattr(model, part).backbone.own_width
        for part in PAIR
        if getattr(config, part).projection == "auto"
        and getattr(config, part).checkpoint is None
        and not getattr(model, part).has_own_head
    }
    if lost:
        keys, width = listed([f"{part}.projection" for part in lost], "and"), next(iter(lost.values()))
        own = "the pair has none" if width is None else f"theirs give {width}; set it to that to keep them"
        logger.info(f"{keys}: auto is mlp here, no own head gives embed_dim {config.vision_encoder.embed_dim} ({own})")
