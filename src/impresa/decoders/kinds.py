"""The decoders by name: the only place that knows which there are."""

from __future__ import annotations

from impresa.config.experiment import DecoderConfig
from impresa.decoders.base import Decoder


def decoder_class(config: DecoderConfig) -> type[Decoder]:
    """The class of `decoder.type`, of which alone the module is imported: Qwen's needs transformers and more."""
    match config.type:
        case "qwen":
            from impresa.decoders.qwen import QwenDecoder

            return QwenDecoder
        case "trm":
            from impresa.decoders.trm import TRMDecoder

            return TRMDecoder
