"""Pretrained text towers: CLIP, SigLIP, and any encoder of transformers (BERT, sentence-transformers' models, ...).

Letters of shapes: B batch, T tokens, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from impresa.encoders.output import Features
from impresa.encoders.packing import PackableText, tokens_up_to
from impresa.encoders.pretrained import ENCODERS_OF_PAIRS, Family, PretrainedBackbone, load_backbone
from impresa.errors import DataError

_NO_ENCODERS = ("bart", "mbart", "mvp", "perceiver", "tapas")
"""Models for masked words that have more than an encoder, or read more than text."""
KEY = "text_encoder.backbone"


class CLIPText(PackableText):
    """CLIP's causal transformer (Radford et al. 2021); its summary is the first end token."""

    blocks_name = "encoder.layers"
    is_causal = True

    def __init__(self, model: Any) -> None:
        tower = getattr(model, "text_model", model)
        super().__init__(tower, dim=tower.config.hidden_size, summary="eot")
        self.head = getattr(model, "text_projection", None)

    def forward(self, input_ids: Tensor, mask: Tensor | None = None, *, summary_only: bool = False) -> Features:
        if self.packs:
            end_id = self.model.eos_token_id  # of old files it is wrong, and the end token has the highest number
            end = input_ids.argmax(dim=1) if end_id == 2 else (input_ids == end_id).int().argmax(dim=1)
            read = tokens_up_to(end, mask, input_ids.shape[1], summary_only=summary_only)
            tokens = self.packed(input_ids, read)
            summary = tokens[torch.arange(len(tokens), device=tokens.device), end]
            return Features(summary, None if summary_only else tokens, mask)
        # No mask: attention is causal and the padding on the right, so that no token that is read sees any.
        out = self.model(input_ids)
        return Features(out.pooler_output, None if summary_only else out.last_hidden_state, mask)


class SigLIPText(PretrainedBackbone):
    """SigLIP's transformer (Zhai et al. 2023); its summary is the last position.

    It was trained on texts padded to its full length, whose padding every token sees: the tokenizer must pad likewise.
    """

    blocks_name = "encoder.layers"

    def __init__(self, model: Any) -> None:
        tower = getattr(model, "text_model", model)
        super().__init__(tower, dim=tower.config.hidden_size, summary="own")
        self.head, tower.head = tower.head, nn.Identity()

    def forward(self, input_ids: Tensor, mask: Tensor | None = None, *, summary_only: bool = False) -> Features:
        length = self.model.config.max_position_embeddings
        if input_ids.shape[1] != length:
            fault = f"{input_ids.shape[1]} tokens, but SigLIP reads texts padded to {length}"
            raise DataError(f"input_ids: {fault}; use its own tokenizer")
        out = self.model(input_ids)
        return Features(out.pooler_output, None if summary_only else out.last_hidden_state, mask)


class EncoderText(PackableText):
    """A bidirectional encoder; a text is the mean of its tokens, as sentence-transformers trains most of them, or the
    first token for models that were trained to sum up a text in it (`pooling: cls`)."""

    def __init__(self, model: Any) -> None:
        super().__init__(model, dim=model.config.hidden_size, summary=None)
        self.has_cls = model.config.model_type not in ENCODERS_OF_PAIRS
        model.pooler = None  # of BERT, for next-sentence prediction; unused it would have no gradient

    @property
    def blocks(self) -> Any:
        """The stack that is as long as the config says, whatever its name: each of these models has another."""
        depth = self.model.config.num_hidden_layers
        stacks = (module for module in self.model.modules() if isinstance(module, nn.ModuleList))
        return next((stack for stack in stacks if len(stack) == depth), None)

    def forward(self, input_ids: Tensor, mask: Tensor | None = None, *, summary_only: bool = False) -> Features:
        if self.packs and mask is not None:
            tokens = self.packed(input_ids, mask.bool())
        else:
            numbers = None if mask is None else mask.long()  # older towers subtract the mask from one
            tokens = self.model(input_ids, attention_mask=numbers).last_hidden_state
        return Features(tokens[:, 0], None if summary_only else tokens, mask)


FAMILIES: dict[str, Family] = {
    "clip": CLIPText,
    "clip_text_model": CLIPText,
    "siglip": SigLIPText,
    "siglip_text_model": SigLIPText,
}


def load_text_backbone(name: str, *, load_weights: bool = True) -> PretrainedBackbone:
    """The text tower of a pretrained model by Hugging Face id or path; arguments and errors: see `load_backbone`."""
    known = "CLIP, SigLIP, or an encoder such as BERT or a sentence-transformers model"
    return load_backbone(name, _family_of, key=KEY, modality="text", known=known, load_weights=load_weights)


def _family_of(model_type: str) -> Family | None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as MASKED

    is_encoder = model_type in ENCODERS_OF_PAIRS or (model_type in MASKED and model_type not in _NO_ENCODERS)
    return FAMILIES.get(model_type, EncoderText if is_encoder else None)
