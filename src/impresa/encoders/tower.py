"""What every encoder does with the features of its backbone: project, pool, embed."""

from __future__ import annotations

from typing import Self

import torch
from torch import nn

from impresa.config.experiment import EncoderConfig
from impresa.encoders.output import EncoderOutput, Features
from impresa.encoders.pooling import AttentionPooling, Summary, mean_pool, pooling_of
from impresa.encoders.projection import build_projection
from impresa.encoders.transformer import init_linear


class Tower(nn.Module):
    """backbone -> tokens -> projection -> pooling -> head -> embedding.

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
        self.backbone = backbone
        self.pools = pooling_of(config, summary)
        self.projection = build_projection(config.projection, dim)
        self.attention_pooling = AttentionPooling(dim, config.num_heads) if self.pools == "attention" else None
        self.head = nn.Linear(dim, config.embed_dim, bias=False)
        init_linear(self.head, std=dim**-0.5)
        self.is_frozen = config.checkpoint is not None if config.freeze is None else config.freeze
        if self.is_frozen:
            backbone.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.is_frozen:
            self.backbone.eval()
        return self

    def needs_summary_only(self, return_tokens: bool) -> bool:
        """Whether nobody reads the tokens, so that the backbone may leave them out."""
        return self.pools == "summary" and not return_tokens

    def embed(self, features: Features, *, return_tokens: bool) -> EncoderOutput:
        """Project and pool the features. Memory tokens take no part in the pooling and are handed on as they are."""
        tokens = None if self.needs_summary_only(return_tokens) else self.projection(features.tokens)
        pooled = self.head(self._pool(features, tokens))
        if not return_tokens:
            return EncoderOutput(pooled)
        return EncoderOutput(pooled, tokens, features.mask, features.memory)

    def _pool(self, features: Features, tokens: torch.Tensor | None) -> torch.Tensor:
        if tokens is None or self.pools == "summary":
            return self.projection(features.summary)
        if self.attention_pooling is not None:
            return self.attention_pooling(tokens, features.mask)
        return mean_pool(tokens, features.mask)
