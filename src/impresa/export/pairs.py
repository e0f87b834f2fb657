"""Both towers of an alignment as one model of transformers: `CLIPModel` or `SiglipModel`."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from impresa.encoders.pooling import SummaryPooling
from impresa.encoders.tower import Tower
from impresa.export.backbones import Inexpressible, backbone_in_transformers
from impresa.tasks.alignment.model import AlignmentModel


def pair_in_transformers(model: AlignmentModel, image_size: int) -> Any:
    """A new `CLIPModel` or `SiglipModel` whose embeddings, scaled to length one, are those of the model.

    Raises:
        Inexpressible: transformers has no such pair.
    """
    if model.audio_encoder is not None:
        raise Inexpressible("the audio encoder is in no pair of image and text")
    towers = (model.vision_encoder, model.text_encoder)
    for tower in towers:
        check_path(tower)
    vision, text = (backbone_in_transformers(tower, image_size) for tower in towers)
    kinds = (vision.config.model_type, text.config.model_type)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        if kinds == ("clip_vision_model", "clip_text_model"):
            pair = _clip(model, vision, text)
        elif kinds == ("siglip_vision_model", "siglip_text_model"):
            pair = _siglip(model, vision, text)
        else:
            if kinds[0] == "vit":
                raise Inexpressible("CLIP has a norm before the blocks of the vision_encoder (pre_norm: true)")
            raise Inexpressible(f"{kinds[0]} and {kinds[1]} are no pair of one model")
        pair.logit_scale.copy_(model.loss.logit_scale)
    return pair.eval()


def check_path(tower: Tower) -> None:
    """Refuse what stands between a backbone and its embedding in no such model."""
    if tower.perceiver is not None:
        raise Inexpressible(f"the {tower.part}'s Perceiver is in no other library")
    if not isinstance(tower.pooling, SummaryPooling):
        raise Inexpressible(f"CLIP and SigLIP embed their own summary, and the {tower.part} pools its tokens")
    if not isinstance(tower.projection, nn.Identity):
        raise Inexpressible(f"CLIP and SigLIP have no projection before the {tower.part}'s head (projection: none)")


def _clip(model: AlignmentModel, vision: Any, text: Any) -> Any:
    from transformers import CLIPConfig, CLIPModel

    own: Any = model.text_encoder.head
    width = own.weight.shape[0]
    for config in (vision.config, text.config):
        config.projection_dim = width
    pair = CLIPModel(CLIPConfig(vision_config=vision.config, text_config=text.config, projection_dim=width))
    for tower, part, head, source in (
        (model.vision_encoder, pair.vision_model, pair.visual_projection, vision),
        (model.text_encoder, pair.text_model, pair.text_projection, text),
    ):
        part.load_state_dict(source.state_dict())
        head.load_state_dict(tower.head.state_dict())
    return pair


def _siglip(model: AlignmentModel, vision: Any, text: Any) -> Any:
    from transformers import SiglipConfig, SiglipModel

    if not isinstance(model.vision_encoder.head, nn.Identity):
        raise Inexpressible("SigLIP has no head behind its pooling of images; keep its own (projection: none)")
    pair = SiglipModel(SiglipConfig(vision_config=vision.config, text_config=text.config))
    pair.vision_model.load_state_dict(vision.state_dict())
    pair.text_model.load_state_dict(text.state_dict())
    bias = model.loss.logit_bias
    pair.logit_bias.fill_(0 if bias is None else bias.value)
    return pair
