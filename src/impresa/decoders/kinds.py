"""The decoders by name. Importing this module needs no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from impresa.config.decoder import DecoderConfig
from impresa.config.optimization import Precision

if TYPE_CHECKING:
    from impresa.decoders.base import Decoder


def build_decoder(
    config: DecoderConfig,
    vocab_size: int,
    *,
    precision: Precision,
    load_weights: bool = True,
    revision: str | None = None,
) -> Decoder:
    """The decoder `config.type`. Only its module is imported, for a pretrained one needs transformers.

    Args:
        config: `decoder` of the experiment.
        vocab_size: tokens of the run's tokenizer; a pretrained language model has its own.
        precision: `optimization.precision`.
        load_weights: false leaves out the weights that the run itself stores.
        revision: commit of a language model from the hub; None is the newest.
    """
    match config.type:
        case "qwen" | "causal_lm":
            from impresa.decoders.pretrained import PretrainedDecoder

            needs_weights = load_weights or PretrainedDecoder.is_stored_by_name(config)
            return PretrainedDecoder(config, load_weights=needs_weights, precision=precision, revision=revision)
        case "trm":
            from impresa.decoders.trm import TRMDecoder

            return TRMDecoder(config, vocab_size)


def why_not_exportable(config: DecoderConfig) -> str | None:
    """The reason why no other library can use a trained decoder, and how to use it instead; None where one can."""
    if not config.is_pretrained:
        return f"no other library knows its decoder, a {config.type}; use it by impresa.load"
    if config.use_trm_recursion:
        return "no plain language model holds its latent recursion; use it by impresa.load"
    if not config.use_lora and (config.freeze or config.is_quantized):
        return f"its language model was frozen, so that there is nothing to export; it is {config.model} itself"
    return None
