"""The decoders by name. Importing this module needs no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from impresa.config.experiment import DecoderConfig

if TYPE_CHECKING:
    from impresa.decoders.base import Decoder


def decoder_class(config: DecoderConfig) -> type[Decoder]:
    """The class of `decoder.type`; only its module is imported, for Qwen's needs transformers and more."""
    match config.type:
        case "qwen":
            from impresa.decoders.qwen import QwenDecoder

            return QwenDecoder
        case "trm":
            from impresa.decoders.trm import TRMDecoder

            return TRMDecoder


def why_not_exportable(config: DecoderConfig) -> str | None:
    """The reason why no other library can use a trained decoder, and how to use it instead; None where one can."""
    if config.type != "qwen":
        return f"no other library knows its decoder, a {config.type}; use it by impresa.load"
    if not config.use_lora:
        return "was trained without decoder.use_lora and has no adapter to export"
    if config.use_trm_recursion:
        return "no plain Qwen model holds its latent recursion; use it by impresa.load"
    return None
