"""From a configuration to a vision-language model: the only place that chooses among decoders."""

from __future__ import annotations

from impresa.config.experiment import DecoderConfig, ExperimentConfig, Modality
from impresa.decoders.kinds import build_decoder
from impresa.encoders.vision import VisionEncoder
from impresa.fusion import build_fusion
from impresa.tasks.answering.model import VisionLanguageModel
from impresa.tasks.encoders import build_audio, build_vision, own_seed


def build_vlm(
    config: ExperimentConfig, vocab_size: int, *, load_weights: bool = True, revision: str | None = None
) -> VisionLanguageModel:
    """A vision-language model as training starts from it, on the CPU; seeds as in `build_alignment`.

    Args:
        config: an experiment with a decoder, with towers of other runs as they are there (`adopt_towers`).
        vocab_size: tokens of the decoder's texts; a pretrained language model has its own.
        load_weights: false builds what is pretrained without its weights, but for what a run does not store: a frozen
            language model.
        revision: commit of a language model from the hub; None is the newest.

    Raises:
        ConfigError: a part cannot be loaded, or the image tower has not the tokens that `decoder.prefix` names.
        CheckpointError: the files of a pretrained part are incomplete.
    """
    assert config.decoder is not None
    vision_encoder = build_vision(config, load_weights)
    audio_encoder = build_audio(config, load_weights)
    vision_encoder.keep(config.decoder.prefix, drop_last_block=_skips_last_block(config.decoder, vision_encoder))
    widths: dict[Modality, int] = {"image": vision_encoder.dim}
    if audio_encoder is not None:
        audio_encoder.keep("tokens" if audio_encoder.perceiver is None else "perceiver", drop_last_block=False)
        widths["audio"] = audio_encoder.dim
    with own_seed():
        decoder = build_decoder(
            config.decoder,
            vocab_size,
            precision=config.optimization.precision,
            load_weights=load_weights,
            revision=revision,
        )
    with own_seed():
        fusion = build_fusion(config.fusion, widths, decoder.hidden_size)
    return VisionLanguageModel(vision_encoder, fusion, decoder, audio_encoder=audio_encoder)


def _skips_last_block(decoder: DecoderConfig, tower: VisionEncoder) -> bool:
    match decoder.prefix_layer:
        case "auto":
            return tower.is_frozen and tower.sums_up_in_cls and tower.has_block_to_spare
        case layer:
            return layer == "penultimate"
