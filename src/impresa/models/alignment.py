"""The alignment model: one encoder per modality and the contrastive loss between their embeddings."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from impresa.config.experiment import Modality
from impresa.data.batch import Batch
from impresa.encoders.text import TextEncoder
from impresa.encoders.vision import VisionEncoder
from impresa.losses.contrastive import ContrastiveLoss


@dataclass
class AlignmentOutput:
    """What a training step needs of a batch."""

    loss: torch.Tensor
    """Scalar with its graph."""
    logs: dict[str, torch.Tensor]
    """Detached scalars by name, `loss` among them."""
    embeddings: dict[Modality, torch.Tensor]
    """(B, E) for each modality of the batch, not normalised."""


class AlignmentModel(nn.Module):
    """Encoders that share one embedding space, and the loss that brings them there.

    Args:
        vision_encoder: encoder of images.
        text_encoder: encoder of captions.
        loss: the contrastive objective.
    """

    def __init__(self, vision_encoder: VisionEncoder, text_encoder: TextEncoder, loss: ContrastiveLoss) -> None:
        super().__init__()
        self.vision_encoder = vision_encoder
        self.text_encoder = text_encoder
        self.loss = loss

    def forward(self, batch: Batch) -> AlignmentOutput:
        """Loss and embeddings of a batch."""
        embeddings = self.embed(batch)
        output = self.loss(embeddings, captions=batch.captions)
        return AlignmentOutput(output.loss, {"loss": output.loss.detach(), **output.logs}, embeddings)

    def embed(self, batch: Batch) -> dict[Modality, torch.Tensor]:
        """Embeddings (B, E), not normalised, of every modality that the batch has."""
        embeddings: dict[Modality, torch.Tensor] = {}
        if batch.image is not None:
            embeddings["image"] = self.embed_image(batch.image)
        if batch.input_ids is not None:
            embeddings["text"] = self.embed_text(batch.input_ids, batch.attention_mask)
        return embeddings

    def embed_image(self, image: torch.Tensor) -> torch.Tensor:
        """Images (B, 3, S, S), normalised as in training -> embeddings (B, E), not normalised."""
        return self.vision_encoder(image).pooled

    def embed_text(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Token ids (B, T), padded on the right, and their mask (B, T) -> embeddings (B, E), not normalised."""
        return self.text_encoder(input_ids, attention_mask).pooled

    def commit(self, step: int) -> None:
        """What follows an optimizer step: the memory takes up what it read, the logit scale is clamped.

        Args:
            step: optimizer steps done since the start of the training, from 1; every rank calls it once for each.
        """
        self.vision_encoder.commit(step)
        self.loss.commit(step)
