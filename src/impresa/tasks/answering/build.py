"""From a configuration to a vision-language model, whose weights may be those of a finished run."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError

from impresa.config.decoder import DecoderConfig
from impresa.config.encoder import Modality
from impresa.config.experiment import ExperimentConfig
from impresa.decoders.kinds import build_decoder
from impresa.encoders.lora import is_adapter
from impresa.encoders.vision import VisionEncoder
from impresa.errors import CheckpointError
from impresa.fusion import build_fusion
from impresa.run_dir.layout import WEIGHTS
from impresa.run_dir.weights import read_weights
from impresa.tasks.answering.language_model import is_identified
from impresa.tasks.answering.model import VisionLanguageModel
from impresa.tasks.answering.squares import SquareMarks
from impresa.tasks.encoders import build_audio, build_vision, own_seed

_RECURSION, _BASE = "decoder.recursion.", "decoder.model."
"""Prefixes in the state dict: the recursion behind the language model, and that model itself."""


def build_vlm(
    config: ExperimentConfig, vocab_size: int, *, load_weights: bool = True, revision: str | None = None
) -> VisionLanguageModel:
    """A vision-language model as training starts from it, on the CPU; seeds as in `build_alignment`.

    Arguments are those of `build_alignment`. A pretrained language model has its own vocabulary; `revision` is its
    commit on the hub, None for the newest. If it is frozen, it is loaded without `load_weights` too: no run stores it.
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
    if config.optimization.packing and load_weights:
        decoder.check_packing()
    decoder.packing = config.optimization.packing
    with own_seed():
        fusion = build_fusion(config.fusion, widths, decoder.hidden_size)
    marks = None
    if config.dataset.max_images > 1 or config.decoder.tiles > 1:
        with own_seed():
            marks = SquareMarks(config.dataset.max_images, config.decoder.tiles, vision_encoder.dim)
    return VisionLanguageModel(vision_encoder, fusion, decoder, audio_encoder=audio_encoder, square_marks=marks)


def _skips_last_block(decoder: DecoderConfig, tower: VisionEncoder) -> bool:
    if decoder.prefix_layer == "auto":
        return not tower.trains_blocks and tower.sums_up_in_cls and tower.has_block_to_spare
    return decoder.prefix_layer == "penultimate"


def start_from(model: VisionLanguageModel, run_dir: Path) -> int:
    """Give a new model the weights of a finished vision-language run; returns the number of tensors taken over.

    Parts that this second stage of training may add keep their start: adapters, recursion, and a language model that
    was frozen in the run and is trained now. `revision_of_language_model` checks that it is the same one.

    Raises:
        CheckpointError: the run has weights that the model lacks, or that it would not keep; or the model has others
            that the run lacks, which would stay at random.
    """
    try:
        weights = read_weights(run_dir / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{run_dir / WEIGHTS}: {error}; restore the run from a copy") from error
    own, kept = model.state_dict(), model.state_to_save()
    for name, tensor in weights.items():
        if name not in own or own[name].shape != tensor.shape:
            raise CheckpointError(f"decoder.init_from: {run_dir} has {name}, which this model has not; make them alike")
        if name not in kept:
            fault = f"{run_dir} has trained {name}, which is frozen here and would not be kept"
            raise CheckpointError(f"decoder.init_from: {fault}; train it here too")
    # These are pretrained, or change nothing at first.
    may_be_new = [_BASE] if is_identified(run_dir) else []
    may_be_new += [] if any(name.startswith(_RECURSION) for name in weights) else [_RECURSION]
    for name in sorted(kept.keys() - weights.keys()):
        if not (is_adapter(name) or name.startswith(tuple(may_be_new))):
            fault = f"this model has {name}, which {run_dir} has not and which would stay at random"
            raise CheckpointError(f"decoder.init_from: {fault}; make them alike")
    model.load_state_dict(weights, strict=False)
    return len(weights)
