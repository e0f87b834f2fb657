"""The image encoder."""

from __future__ import annotations

from impresa.config.experiment import EncoderConfig, is_from_scratch
from impresa.encoders.pretrained import PretrainedBackbone
from impresa.encoders.pretrained_vision import load_vision_backbone
from impresa.encoders.tower import Tower
from impresa.encoders.vit import VisionTransformer


class VisionEncoder(Tower):
    """Images (B, 3, S, S) to embeddings (B, E) by our ViT or a pretrained tower; the tokens are the patches, not CLS.

    Args:
        config: the tower's settings; `embed_dim` is E, and D is `dim` or the pretrained tower's width.
        image_size: S, side of the square images in pixels.
        load_weights: false builds a pretrained tower without its weights, for those that a run has stored.
    """

    backbone: VisionTransformer | PretrainedBackbone

    def __init__(self, config: EncoderConfig, image_size: int, *, load_weights: bool = True) -> None:
        if is_from_scratch("image", config):
            super().__init__(config, VisionTransformer(config, image_size), dim=config.dim, summary="cls")
        else:
            backbone = load_vision_backbone(config.backbone, image_size, load_weights=load_weights)
            super().__init__(config, backbone, dim=backbone.dim, summary=backbone.summary)

    def commit(self, step: int) -> None:
        """Update the memory's state after optimizer step number `step` (from 1); see `MemoryTokens.commit`."""
        memory = self.backbone.memory if isinstance(self.backbone, VisionTransformer) else None
        if memory is not None and not self.is_frozen:
            memory.commit(step)
