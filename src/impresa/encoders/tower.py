"""What every encoder does with the features of its backbone: project or compress, pool, embed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self

import torch
from torch import nn

from impresa.config.experiment import EncoderConfig
from impresa.encoders.output import EncoderOutput, Features
from impresa.encoders.perceiver import PerceiverResampler
from impresa.encoders.pooling import AttentionPooling, Summary, mean_pool, pooling_of
from impresa.encoders.pretrained import PretrainedBackbone
from impresa.encoders.projection import build_projection
from impresa.encoders.transformer import init_linear


class Tower(nn.Module):
    """backbone -> tokens -> projection or Perceiver -> pooling -> head -> embedding.

    A subclass makes the backbone and feeds it its modality. A frozen backbone stays in eval mode and gets no gradient;
    what stands behind it is trained.

    Args:
        config: the tower's settings.
        backbone: returns `Features` of width `dim`.
        dim: D, the width of the backbone's features.
        summary: the summary token that the backbone offers, if any.
    """

    def __init__(self, config: EncoderConfig, backbone: nn.Module, *, dim: int, summary: Summary | None) -> None:
        super().__init__()
        self.dim = dim
        self.backbone = backbone
        self.pools = pooling_of(config, summary)
        self.perceiver = _build_perceiver(config, dim) if config.use_perceiver else None
        self.projection = nn.Identity() if config.use_perceiver else build_projection(config.projection, dim)
        self.attention_pooling = AttentionPooling(dim, config.num_heads) if self.pools == "attention" else None
        self.head: nn.Module = _build_head(dim, config.embed_dim)
        self.has_own_head = False
        self.is_frozen = config.checkpoint is not None if config.freeze is None else config.freeze
        if isinstance(backbone, PretrainedBackbone):
            self._fit(backbone, config)
        if self.is_frozen:
            backbone.requires_grad_(False).eval()

    def _fit(self, backbone: PretrainedBackbone, config: EncoderConfig) -> None:
        """Keep of a pretrained tower what is read. Its head stays where nothing new stands before it: then the tower
        starts as the very model that it comes from. It is frozen together with the backbone."""
        own_head = backbone.take_head(config.embed_dim)
        self.has_own_head = own_head is not None and self.pools == "summary" and config.projection == "none"
        if own_head is not None and self.has_own_head:
            self.head = own_head.requires_grad_(not self.is_frozen)
        if self.pools != "summary":
            backbone.drop_pooler()
        if config.activation_checkpointing and not self.is_frozen:
            backbone.recompute_activations()

    def pretrained_parameters(self) -> Iterator[nn.Parameter]:
        """What comes from a pretrained model: the parameters of its backbone, and of its head if that is kept."""
        if isinstance(self.backbone, PretrainedBackbone):
            yield from self.backbone.parameters()
        if self.has_own_head:
            yield from self.head.parameters()

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.is_frozen:
            self.backbone.eval()
        return self

    def needs_summary_only(self, return_tokens: bool) -> bool:
        """Whether nobody reads the tokens, so that the backbone may leave them out."""
        return self.pools == "summary" and not return_tokens

    def embed(self, features: Features, *, return_tokens: bool) -> EncoderOutput:
        """Project or compress the features and pool them. Memory tokens take no part and are handed on as they are."""
        if self.needs_summary_only(return_tokens):
            return EncoderOutput(self.head(self.projection(features.summary)))
        tokens, mask = self.projection(features.tokens), features.mask
        if self.perceiver is not None:
            tokens, mask = self.perceiver(tokens, mask), None  # latents are always real
        pooled = self.head(self._pool(features.summary, tokens, mask))
        if not return_tokens:
            return EncoderOutput(pooled)
        return EncoderOutput(pooled, tokens, mask, features.memory)

    def _pool(self, summary: torch.Tensor | None, tokens: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        if self.pools == "summary":
            return self.projection(summary)
        if self.attention_pooling is not None:
            return self.attention_pooling(tokens, mask)
        return mean_pool(tokens, mask)


def _build_perceiver(config: EncoderConfig, dim: int) -> PerceiverResampler:
    return PerceiverResampler(
        dim=dim,
        num_latents=config.perceiver_num_latents,
        num_layers=config.perceiver_num_layers,
        num_heads=config.perceiver_num_heads,
    )


def _build_head(dim: int, embed_dim: int) -> nn.Linear:
    head = nn.Linear(dim, embed_dim, bias=False)
    init_linear(head, std=dim**-0.5)
    return head
