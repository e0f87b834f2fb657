"""The image encoder."""

from __future__ import annotations

import torch

from impresa.config.experiment import EncoderConfig
from impresa.encoders.output import EncoderOutput
from impresa.encoders.tower import Tower
from impresa.encoders.vit import VisionTransformer


class VisionEncoder(Tower):
    """Images to embeddings, by our ViT.

    Args:
        config: the tower's settings; `embed_dim` is E, `dim` is D.
        image_size: S, side of the square images in pixels.
    """

    backbone: VisionTransformer

    def __init__(self, config: EncoderConfig, image_size: int) -> None:
        super().__init__(config, VisionTransformer(config, image_size), dim=config.dim, summary="cls")

    def forward(self, image: torch.Tensor, return_tokens: bool = False) -> EncoderOutput:
        """Encode images (B, 3, S, S).

        Returns:
            `pooled` (B, E); with `return_tokens` also `tokens` (B, N, D), the projected patches without CLS, and
            `memory` (B, M, D) when the ViT has memory tokens.
        """
        features = self.backbone(image, summary_only=self.needs_summary_only(return_tokens))
        return self.embed(features, return_tokens=return_tokens)

    def commit(self, step: int) -> None:
        """Update the memory's state after optimizer step number `step` (from 1); see `MemoryTokens.commit`."""
        if self.backbone.memory is not None and not self.is_frozen:
            self.backbone.memory.commit(step)
