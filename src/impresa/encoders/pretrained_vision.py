"""Pretrained image towers: CLIP, SigLIP, DINOv2, and timm's.

Letters of shapes: B batch, S image side in pixels, N patches, D width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from impresa.config.locations import TIMM
from impresa.encoders.output import Features, Layout
from impresa.encoders.pooling import Summary
from impresa.encoders.pretrained import Family, PretrainedBackbone, load_backbone
from impresa.errors import ConfigError
from impresa.hub import import_optional, reading

KEY = "vision_encoder.backbone"


class CLIPVision(PretrainedBackbone):
    """CLIP's ViT (Radford et al. 2021); its summary is CLS."""

    blocks_name = "encoder.layers"

    def __init__(self, model: Any) -> None:
        tower = getattr(model, "vision_model", model)
        super().__init__(tower, dim=tower.config.hidden_size, summary="cls")
        self.head = getattr(model, "visual_projection", None)

    @property
    def layout(self) -> Layout:
        return Layout(slice(1, None), 0)

    def forward(self, image: Tensor, *, summary_only: bool = False) -> Features:
        out = self.model(image, interpolate_pos_encoding=_is_other_size(image, self.model))
        tokens = None if summary_only else self.model.post_layernorm(out.last_hidden_state[:, self.layout.patches])
        return Features(out.pooler_output, tokens)


class SigLIPVision(PretrainedBackbone):
    """SigLIP's ViT (Zhai et al. 2023); an attention pooling of its own makes the summary, there is no CLS."""

    blocks_name = "encoder.layers"

    def __init__(self, model: Any) -> None:
        tower = getattr(model, "vision_model", model)
        super().__init__(tower, dim=tower.config.hidden_size, summary="own" if tower.use_head else None)
        if tower.use_head:
            self.pooler, tower.head, tower.use_head = tower.head, None, False
            self.head = nn.Identity()

    @property
    def layout(self) -> Layout:
        return Layout(slice(0, None))

    def forward(self, image: Tensor, *, summary_only: bool = False) -> Features:
        tokens = self.model(image, interpolate_pos_encoding=_is_other_size(image, self.model)).last_hidden_state
        summary = None if self.pooler is None else self.pooler(tokens)
        return Features(summary, None if summary_only else tokens)


class DINOv2Vision(PretrainedBackbone):
    """DINOv2's ViT (Oquab et al. 2023), with registers or without; its summary is CLS."""

    blocks_name = "encoder.layer"

    def __init__(self, model: Any) -> None:
        super().__init__(model, dim=model.config.hidden_size, summary="cls")
        self.num_registers = getattr(model.config, "num_register_tokens", 0)
        model.embeddings.mask_token = None  # used only in its own pretraining

    @property
    def layout(self) -> Layout:
        return Layout(slice(1 + self.num_registers, None), 0)

    def forward(self, image: Tensor, *, summary_only: bool = False) -> Features:
        tokens = self.model(image).last_hidden_state
        return Features(tokens[:, 0], None if summary_only else tokens[:, self.layout.patches])


class TimmVision(PretrainedBackbone):
    """Any image model of timm; its summary is CLS where it has one, and any other pooling of its own is left out."""

    def __init__(self, model: Any) -> None:
        summary: Summary | None = "cls" if getattr(model, "has_class_token", False) else None
        super().__init__(model, dim=model.num_features, summary=summary)
        self.num_prefix_tokens = getattr(model, "num_prefix_tokens", 0)
        if hasattr(model, "fc_norm"):
            model.fc_norm.requires_grad_(False)  # behind the pooling that is left out

    @property
    def blocks(self) -> nn.ModuleList | nn.Sequential | None:
        """Those of a ViT; the stages of hierarchical models, under the same name in some, are of different widths."""
        blocks = getattr(self.model, "blocks", None)
        if not isinstance(blocks, nn.ModuleList | nn.Sequential):
            return None
        shapes = {tuple(parameter.shape for parameter in block.parameters()) for block in blocks}
        return blocks if len(shapes) == 1 else None

    def forward(self, image: Tensor, *, summary_only: bool = False) -> Features:
        features = self.model.forward_features(image)  # (B, N, D), or (B, D, H, W), or (B, H, W, D)
        if features.ndim == 4:
            last = getattr(self.model, "output_fmt", "NCHW") == "NHWC"
            return Features(tokens=features.flatten(1, 2) if last else features.flatten(2).transpose(1, 2))
        summary = features[:, 0] if self.summary else None
        return Features(summary, None if summary_only else features[:, self.num_prefix_tokens :])

    def recompute_activations(self, key: str = "activation_checkpointing") -> None:
        try:
            self.model.set_grad_checkpointing()
        except (AssertionError, AttributeError) as error:  # timm's ways to say no
            name = type(self.model).__name__
            raise ConfigError(f"{key}: {name} cannot recompute its activations; turn it off") from error


FAMILIES: dict[str, Family] = {
    "clip": CLIPVision,
    "clip_vision_model": CLIPVision,
    "siglip": SigLIPVision,
    "siglip_vision_model": SigLIPVision,
    "dinov2": DINOv2Vision,
    "dinov2_with_registers": DINOv2Vision,
}


def load_vision_backbone(name: str, image_size: int, *, load_weights: bool = True) -> PretrainedBackbone:
    """The image tower of a pretrained model.

    Args:
        name: a Hugging Face id, a path, or `timm:NAME`.
        image_size: S. Position embeddings of CLIP, SigLIP and DINOv2 are interpolated when it is not the tower's own.
        load_weights: false builds the tower from its config alone.

    Raises:
        ConfigError: see `load_backbone`; timm cannot be imported or used; images of this size do not fit the tower.
        CheckpointError: see `load_backbone`.
    """
    if name.startswith(TIMM):
        return _load_timm(name, image_size, load_weights)
    known = "CLIP, SigLIP, DINOv2, or timm:NAME"
    backbone = load_backbone(name, FAMILIES.get, key=KEY, modality="images", known=known, load_weights=load_weights)
    patch_size = backbone.model.config.patch_size
    if image_size % patch_size:
        nearest = max(1, round(image_size / patch_size)) * patch_size
        fault = f"{image_size} is no multiple of the {patch_size}-pixel patches of {name}"
        raise ConfigError(f"dataset.image_size: {fault}; {nearest} is")
    return backbone


def _load_timm(name: str, image_size: int, load_weights: bool) -> PretrainedBackbone:
    timm = import_optional(KEY, "timm", "timm", user=name)
    with reading(KEY, name), torch.device("cpu"):  # not every model of timm can be outlined; its name says its size
        model = timm.create_model(name.removeprefix(TIMM), pretrained=load_weights)
        model.reset_classifier(0, "")
    own_size = model.pretrained_cfg["input_size"][-1]
    if image_size != own_size:
        fault = f"{image_size} is not the {own_size} pixels of {name}"
        raise ConfigError(f"dataset.image_size: {fault}; set it to {own_size}")
    return TimmVision(model)


def _is_other_size(image: Tensor, tower: Any) -> bool:
    return image.shape[-1] != tower.config.image_size
