"""From a configuration to a model: the only place that chooses classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch

from impresa.config.checks import FUSED_PAIR, is_from_scratch
from impresa.config.experiment import DecoderConfig, EncoderConfig, ExperimentConfig, Modality
from impresa.config.paths import expanded
from impresa.data.audio import NUM_MELS, LogMelTransform
from impresa.decoders.kinds import decoder_class
from impresa.encoders.audio import AudioEncoder
from impresa.encoders.text import TextEncoder
from impresa.encoders.tower import Tower
from impresa.encoders.vision import VisionEncoder
from impresa.errors import ConfigError
from impresa.fusion import FusedEmbedding, build_fusion
from impresa.losses.contrastive import ContrastiveLoss
from impresa.models.alignment import AlignmentModel
from impresa.models.vlm import VisionLanguageModel
from impresa.weights import load_part, with_stored_backbone

AnyTower = TypeVar("AnyTower", bound=Tower)


def build_alignment(
    config: ExperimentConfig, vocab_size: int, end_id: int, *, load_weights: bool = True
) -> AlignmentModel:
    """An alignment model as training starts from it, on the CPU in float32.

    New weights come from torch's global seed. Each encoder has a seed of its own, so that a switch in one of them
    leaves the start of the others as it is. Pretrained towers, and towers of other runs, are loaded.

    Args:
        config: the experiment, with towers of other runs as they are there (`adopt_towers`).
        vocab_size: size of the tokenizer.
        end_id: the tokenizer's end token.
        load_weights: false builds such towers without their weights, for those that come from a run.

    Raises:
        ConfigError: the tokenizer is larger than the text encoder's `vocab_size` allows, or a pretrained tower cannot
            be loaded.
        CheckpointError: the files of a pretrained tower are incomplete.
    """
    bound = config.text_encoder.vocab_size
    if vocab_size > bound and is_from_scratch("text", config.text_encoder):
        fault = f"{bound} is less than the {vocab_size} tokens of the tokenizer"
        raise ConfigError(f"text_encoder.vocab_size: {fault}; raise it or train a smaller tokenizer")
    vision_encoder = _build_vision(config, load_weights)
    text_encoder = _build_text(config, vocab_size, end_id, load_weights)
    audio_encoder = _build_audio(config, load_weights)
    fusion = None
    if audio_encoder is not None and FUSED_PAIR in (config.losses.pairs or ()):
        widths: dict[Modality, int] = {"image": vision_encoder.dim, "audio": audio_encoder.dim}
        with _own_seed():
            width = config.vision_encoder.embed_dim
            fusion = FusedEmbedding(build_fusion(config.fusion, widths, width), width)
    dims = config.vision_encoder.mrl_dimensions if config.vision_encoder.use_mrl else ()
    loss = ContrastiveLoss(config.losses, mrl_dimensions=dims, seed=config.seed)
    return AlignmentModel(vision_encoder, text_encoder, loss, audio_encoder, fusion)


def build_vlm(
    config: ExperimentConfig, vocab_size: int, *, load_weights: bool = True, revision: str | None = None
) -> VisionLanguageModel:
    """A vision-language model as training starts from it, on the CPU; seeds as of `build_alignment`.

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
    vision_encoder = _build_vision(config, load_weights)
    audio_encoder = _build_audio(config, load_weights)
    vision_encoder.keep(config.decoder.prefix, drop_last_block=_skips_last_block(config.decoder, vision_encoder))
    widths: dict[Modality, int] = {"image": vision_encoder.dim}
    if audio_encoder is not None:
        audio_encoder.keep("tokens" if audio_encoder.perceiver is None else "perceiver", drop_last_block=False)
        widths["audio"] = audio_encoder.dim
    with _own_seed():
        decoder = decoder_class(config.decoder).from_config(
            config.decoder,
            vocab_size,
            precision=config.optimization.precision,
            load_weights=load_weights,
            revision=revision,
        )
    with _own_seed():
        fusion = build_fusion(config.fusion, widths, decoder.hidden_size)
    return VisionLanguageModel(vision_encoder, fusion, decoder, audio_encoder=audio_encoder)


def keeps_language_model_elsewhere(decoder: DecoderConfig) -> bool:
    """Whether a run stores the language model by name alone: it is pretrained, and nothing in it is trained."""
    return decoder_class(decoder).is_stored_by_name(decoder)


def _skips_last_block(decoder: DecoderConfig, tower: VisionEncoder) -> bool:
    match decoder.prefix_layer:
        case "auto":
            return tower.is_frozen and tower.sums_up_in_cls and tower.has_block_to_spare
        case layer:
            return layer == "penultimate"


def _build_vision(config: ExperimentConfig, load_weights: bool) -> VisionEncoder:
    def build(tower: EncoderConfig, load_weights: bool) -> VisionEncoder:
        return VisionEncoder(tower, config.dataset.image_size, load_weights=load_weights)

    return _build_tower(build, config.vision_encoder, "vision_encoder", load_weights)


def _build_text(config: ExperimentConfig, vocab_size: int, end_id: int, load_weights: bool) -> TextEncoder:
    def build(tower: EncoderConfig, load_weights: bool) -> TextEncoder:
        return TextEncoder(tower, vocab_size, end_id, load_weights=load_weights)

    return _build_tower(build, config.text_encoder, "text_encoder", load_weights)


def _build_audio(config: ExperimentConfig, load_weights: bool) -> AudioEncoder | None:
    if config.audio_encoder is None:
        return None
    max_frames = LogMelTransform(config.audio_encoder.audio_max_seconds).max_frames

    def build(tower: EncoderConfig, load_weights: bool) -> AudioEncoder:
        return AudioEncoder(tower, num_mels=NUM_MELS, max_frames=max_frames, load_weights=load_weights)

    return _build_tower(build, config.audio_encoder, "audio_encoder", load_weights)


def _build_tower(
    build: Callable[[EncoderConfig, bool], AnyTower], tower: EncoderConfig, part: str, load_weights: bool
) -> AnyTower:
    """A tower with its own seed; one of another run with the weights that it has there."""
    with _own_seed():
        if tower.checkpoint is None or not load_weights:
            return build(tower, load_weights)
        run_dir = expanded(tower.checkpoint)
        built = build(with_stored_backbone(tower, run_dir, part), False)
        load_part(built, run_dir, part)
        return built


@contextmanager
def _own_seed() -> Iterator[None]:
    seed = int(torch.randint(2**62, ()))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
