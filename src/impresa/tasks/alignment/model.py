"""The alignment model: one encoder per modality and the contrastive loss between their embeddings."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from itertools import chain

import torch

from impresa.config.encoder import Modality
from impresa.encoders.audio import AudioEncoder
from impresa.encoders.output import EncoderOutput
from impresa.encoders.text import TextEncoder
from impresa.encoders.tower import Use
from impresa.encoders.vision import VisionEncoder
from impresa.errors import DataError
from impresa.fusion import FusedEmbedding
from impresa.losses.contrastive import ContrastiveLoss
from impresa.losses.pairs import FUSED, Embedded, Negatives
from impresa.tasks.alignment.batch import Batch
from impresa.tasks.alignment.chunks import in_chunks
from impresa.tasks.base import ModelOutput, TrainableModel
from impresa.tasks.encoders import encode_images, encode_rows

LARGE_PRIME = (1 << 61) - 1
"""Mixes two keys into one, modulo 2^64."""


@dataclass
class AlignmentOutput(ModelOutput):
    """Loss and embeddings of a batch."""

    embeddings: dict[Embedded, torch.Tensor]
    """(B, E) for each modality of the batch, not normalised; rows of samples that lack it are zero."""
    present: dict[Embedded, torch.Tensor] = field(default_factory=dict)
    """(B,) bool for each modality that some samples lack, true where the sample has it."""


class AlignmentModel(TrainableModel):
    """Encoders that share one embedding space, and the loss that brings them there.

    Args:
        vision_encoder: encoder of images.
        text_encoder: encoder of captions.
        loss: the contrastive objective.
        audio_encoder: encoder of sounds, if there is one.
        fusion: makes one embedding of image and sound, which is aligned too.
        chunk_size: rows that an encoder has at a time in `forward` and `embed`, their activations being computed anew
            in the backward pass; None for all of them.
    """

    def __init__(
        self,
        vision_encoder: VisionEncoder,
        text_encoder: TextEncoder,
        loss: ContrastiveLoss,
        audio_encoder: AudioEncoder | None = None,
        fusion: FusedEmbedding | None = None,
        *,
        chunk_size: int | None = None,
    ) -> None:
        super().__init__()
        self.vision_encoder = vision_encoder
        self.text_encoder = text_encoder
        self.audio_encoder = audio_encoder
        self.fusion = fusion
        self.loss = loss
        self.chunk_size = chunk_size

    @property
    def use_of_vision(self) -> Use:
        return "embedding" if self.fusion is None else "embedding and tokens"

    def forward(self, batch: Batch) -> AlignmentOutput:
        """Loss and embeddings of a batch; a pair of modalities is compared over the samples that have both."""
        (embeddings, wrong), present = self._embed(batch), present_in(batch)
        negatives = None if wrong is None else Negatives(wrong, torch.tensor(batch.negative_keys, dtype=torch.int64))
        output = self.loss(embeddings, present=present, keys=_keys(batch), negatives=negatives)
        logs = {"loss": output.loss.detach(), **output.logs}
        return AlignmentOutput(output.loss, logs, embeddings, present)

    def embed(self, batch: Batch) -> dict[Embedded, torch.Tensor]:
        """Embeddings (B, E), not normalised, of all that the batch has; zero where a sample lacks it."""
        return self._embed(batch)[0]

    def _embed(self, batch: Batch) -> tuple[dict[Embedded, torch.Tensor], torch.Tensor | None]:
        """`embed`, and the embeddings (Q, E) of the batch's negatives."""
        negatives = None
        outputs: dict[Modality, EncoderOutput] = {}
        fuses = self.fusion is not None  # it reads tokens
        vision = partial(self._encode_images, return_tokens=fuses)
        frozen = self.frozen_vision
        finish = None if frozen is None else in_chunks(frozen.finish, self.chunk_size)
        if (seen := encode_images(vision, finish, batch, batch.image_present)) is not None:
            outputs["image"] = seen
        if batch.input_ids is not None:
            outputs["text"], negatives = self._encode_texts(batch)
        if batch.audio is not None and self.audio_encoder is not None:
            audio = in_chunks(partial(self.audio_encoder, return_tokens=fuses), self.chunk_size)
            outputs["audio"] = encode_rows(audio, batch.audio_present, batch.audio, batch.audio_mask)
        embeddings: dict[Embedded, torch.Tensor] = {name: output.pooled for name, output in outputs.items()}
        if self.fusion is not None and {"image", "audio"} <= outputs.keys():
            embeddings[FUSED] = self._fuse(outputs, batch)
        return embeddings, negatives

    def _encode_images(self, image: torch.Tensor, *, return_tokens: bool) -> EncoderOutput:
        if self.chunk_size is not None:
            self.vision_encoder.start_memory(image)
        return in_chunks(partial(self.vision_encoder, return_tokens=return_tokens), self.chunk_size)(image)

    def _fuse(self, outputs: dict[Modality, EncoderOutput], batch: Batch) -> torch.Tensor:
        """The fused embeddings (B, E)."""
        names: tuple[Modality, ...] = ("image", "audio")

        def fuse(*parts: torch.Tensor | None) -> EncoderOutput:
            encoded, present = {}, {}
            for name, tokens, mask, is_there in zip(names, parts[::3], parts[1::3], parts[2::3], strict=True):
                assert tokens is not None
                encoded[name] = EncoderOutput(tokens[:, 0], tokens, mask)
                if is_there is not None:
                    present[name] = is_there
            assert self.fusion is not None
            return EncoderOutput(self.fusion(encoded, present))

        parts = [(outputs[name].tokens, outputs[name].mask, batch.present.get(name)) for name in names]
        return in_chunks(fuse, self.chunk_size)(*chain.from_iterable(parts)).pooled

    def _encode_texts(self, batch: Batch) -> tuple[EncoderOutput, torch.Tensor | None]:
        """The captions, and the embeddings (Q, E) of the negatives, in one pass."""
        ids, mask, present = batch.input_ids, batch.attention_mask, batch.text_present
        encode = in_chunks(self.text_encoder, self.chunk_size)
        if batch.negative_ids is None:
            return encode_rows(encode, present, ids, mask), None
        assert ids is not None
        num, negatives = len(ids), batch.negative_ids
        if present is not None:
            present = torch.cat([present, present.new_ones(len(negatives))])
        if mask is not None and batch.negative_mask is not None:
            mask = torch.cat([mask, batch.negative_mask])
        every = encode_rows(encode, present, torch.cat([ids, negatives]), mask)
        return EncoderOutput(every.pooled[:num]), every.pooled[num:]

    def embed_image(self, image: torch.Tensor) -> torch.Tensor:
        """Images (B, 3, S, S), normalised as in training -> embeddings (B, E), not normalised."""
        return self.vision_encoder(image).pooled

    def embed_text(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Token ids (B, T), padded on the right, and their mask (B, T) -> embeddings (B, E), not normalised."""
        return self.text_encoder(input_ids, attention_mask).pooled

    def embed_audio(self, audio: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Features (B, F, M) and their mask (B, F), true on real frames -> embeddings (B, E), not normalised."""
        if self.audio_encoder is None:
            raise DataError("sound: the model has no audio encoder; train one with `audio_encoder` in the config")
        return self.audio_encoder(audio, mask).pooled

    def embed_image_audio(
        self, image: torch.Tensor, audio: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Images and sounds, same as in `embed_image` and `embed_audio` -> fused embeddings (B, E), not normalised."""
        if self.fusion is None or self.audio_encoder is None:
            raise DataError("image and sound: the model has no fusion; train one with image+audio-text in losses.pairs")
        image_output = self.vision_encoder(image, return_tokens=True)
        return self.fusion({"image": image_output, "audio": self.audio_encoder(audio, mask, return_tokens=True)})

    def commit(self, step: int) -> None:
        """Update the memory's state and clamp the logit scale; see `TrainableModel.commit`."""
        self.vision_encoder.commit(step)
        self.loss.commit(step)


def present_in(batch: Batch) -> dict[Embedded, torch.Tensor]:
    """The batch's masks, and that of the fusion: a sample with an image or a sound has a fused embedding."""
    masks: dict[Embedded, torch.Tensor] = dict(batch.present.items())
    if batch.image_present is not None and batch.audio_present is not None:
        masks[FUSED] = batch.image_present | batch.audio_present
    return masks


def _keys(batch: Batch) -> dict[Embedded, torch.Tensor]:
    """The batch's keys, and that of the fusion: equal where both image and sound are."""
    keys: dict[Embedded, torch.Tensor] = dict(batch.keys.items())
    if keys:
        keys[FUSED] = batch.keys["image"] * LARGE_PRIME + batch.keys["audio"]
    return keys
