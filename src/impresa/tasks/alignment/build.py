"""From a configuration to an alignment model."""

from __future__ import annotations

from impresa.config.experiment import FUSED_PAIR, ExperimentConfig, Modality, is_from_scratch
from impresa.errors import ConfigError
from impresa.fusion import FusedEmbedding, build_fusion
from impresa.losses.contrastive import ContrastiveLoss
from impresa.tasks.alignment.model import AlignmentModel
from impresa.tasks.encoders import build_audio, build_text, build_vision, own_seed


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
    audio_encoder = build_audio(config, load_weights)
    fusion = None
    if audio_encoder is not None and FUSED_PAIR in (config.losses.pairs or ()):
        widths: dict[Modality, int] = {"image": vision_encoder.dim, "audio": audio_encoder.dim}
        with own_seed():
            width = config.vision_encoder.embed_dim
            fusion = FusedEmbedding(build_fusion(config.fusion, widths, width), width)
    dims = config.vision_encoder.mrl_dimensions if config.vision_encoder.use_mrl else ()
    loss = ContrastiveLoss(config.losses, mrl_dimensions=dims, seed=config.seed)
    return AlignmentModel(vision_encoder, text_encoder, loss, audio_encoder, fusion)
