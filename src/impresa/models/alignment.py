"""The alignment model: one encoder per modality and the contrastive loss between their embeddings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

from impresa.config.experiment import Modality
from impresa.data.batch import Batch
from impresa.encoders.audio import AudioEncoder
from impresa.encoders.text import TextEncoder
from impresa.encoders.vision import VisionEncoder
from impresa.errors import DataError
from impresa.losses.contrastive import ContrastiveLoss


@dataclass
class AlignmentOutput:
    """What a training step needs of a batch."""

    loss: torch.Tensor
    """Scalar with its graph."""
    logs: dict[str, torch.Tensor]
    """Detached scalars by name, `loss` among them."""
    embeddings: dict[Modality, torch.Tensor]
    """(B, E) for each modality of the batch, not normalised; rows of samples that lack it are zero."""
    present: dict[Modality, torch.Tensor] = field(default_factory=dict)
    """(B,) bool for each modality that some samples lack, true where the sample has it."""


class AlignmentModel(nn.Module):
    """Encoders that share one embedding space, and the loss that brings them there.

    Args:
        vision_encoder: encoder of images.
        text_encoder: encoder of captions.
        loss: the contrastive objective.
        audio_encoder: encoder of sounds, if there is one.
    """

    def __init__(
        self,
        vision_encoder: VisionEncoder,
        text_encoder: TextEncoder,
        loss: ContrastiveLoss,
        audio_encoder: AudioEncoder | None = None,
    ) -> None:
        super().__init__()
        self.vision_encoder = vision_encoder
        self.text_encoder = text_encoder
        self.audio_encoder = audio_encoder
        self.loss = loss

    def forward(self, batch: Batch) -> AlignmentOutput:
        """Loss and embeddings of a batch; a pair of modalities is compared over the samples that have both."""
        embeddings = self.embed(batch)
        output = self.loss(embeddings, present=batch.present, captions=_captions(batch))
        logs = {"loss": output.loss.detach(), **output.logs}
        return AlignmentOutput(output.loss, logs, embeddings, batch.present)

    def embed(self, batch: Batch) -> dict[Modality, torch.Tensor]:
        """Embeddings (B, E), not normalised, of every modality that the batch has; zero where a sample lacks it."""
        embeddings: dict[Modality, torch.Tensor] = {}
        if batch.image is not None:
            embeddings["image"] = _embed_rows(self.embed_image, batch.image_present, batch.image)
        if batch.input_ids is not None:
            embeddings["text"] = _embed_rows(self.embed_text, batch.text_present, batch.input_ids, batch.attention_mask)
        if batch.audio is not None and self.audio_encoder is not None:
            embeddings["audio"] = _embed_rows(self.embed_audio, batch.audio_present, batch.audio, batch.audio_mask)
        return embeddings

    def embed_image(self, image: torch.Tensor) -> torch.Tensor:
        """Images (B, 3, S, S), normalised as in training -> embeddings (B, E), not normalised."""
        return self.vision_encoder(image).pooled

    def embed_text(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Token ids (B, T), padded on the right, and their mask (B, T) -> embeddings (B, E), not normalised."""
        return self.text_encoder(input_ids, attention_mask).pooled

    def embed_audio(self, audio: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Features (B, F, M) and their mask (B, F), true on real frames -> embeddings (B, E), not normalised.

        Raises:
            DataError: the model has no audio encoder.
        """
        if self.audio_encoder is None:
            raise DataError("sound: the model has no audio encoder; train one with `audio_encoder` in the config")
        return self.audio_encoder(audio, mask).pooled

    def commit(self, step: int) -> None:
        """What follows an optimizer step: the memory takes up what it read, the logit scale is clamped.

        Args:
            step: optimizer steps done since the start of the training, from 1; every rank calls it once for each.
        """
        self.vision_encoder.commit(step)
        self.loss.commit(step)


def _embed_rows(
    embed: Callable[..., torch.Tensor], present: torch.Tensor | None, *inputs: torch.Tensor | None
) -> torch.Tensor:
    """Embeddings (B, E) of the rows that are present, zero elsewhere.

    The encoder sees no stand-ins, which would enter its memory or its batch norms, unless there is nothing else: every
    process must run every encoder.
    """
    if present is None:
        return embed(*inputs)
    rows = present.nonzero().squeeze(1)
    chosen = rows if len(rows) else rows.new_zeros(1)
    found = embed(*(tensor if tensor is None else tensor[chosen] for tensor in inputs))
    return found.new_zeros(len(present), found.shape[1]).index_copy(0, rows, found[: len(rows)])


def _captions(batch: Batch) -> list[str]:
    """The captions; a sample without one has a text that no other sample has, so that it counts as nobody's twin."""
    if batch.text_present is None:
        return batch.captions
    named = zip(batch.captions, batch.ids, strict=True)
    return [caption or f"(no caption) {id}" for caption, id in named]
