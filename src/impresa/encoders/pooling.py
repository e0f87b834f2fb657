"""From the tokens of an input to one vector.

Letters of shapes: B batch, N tokens, D width.
"""

from __future__ import annotations

import logging
from typing import Literal

import torch
from torch import nn

from impresa.config.experiment import EncoderConfig
from impresa.encoders.transformer import Attention, fitting_heads
from impresa.errors import ConfigError

logger = logging.getLogger(__name__)

Summary = Literal["cls", "eot", "own"]
"""What a backbone sums up its input in: CLS, the end token of a causal text, or what its own pooling gives."""


def pooling_of(config: EncoderConfig, summary: Summary | None) -> Literal["summary", "mean", "attention", "latents"]:
    """How a tower pools: the mean of the Perceiver's latents if it has one, else by `use_attention_pooling`, else by
    `pooling`.

    Args:
        config: the tower's settings.
        summary: the summary token that its backbone has, if any; `auto` takes it, or else the mean.

    Raises:
        ConfigError: `pooling` asks for a token that the backbone does not have.
    """
    if config.use_perceiver:
        if config.use_attention_pooling:
            logger.info("use_attention_pooling: ignored under the Perceiver, whose latents are averaged")
        return "latents"
    if config.use_attention_pooling:
        return "attention"
    if config.pooling in ("auto", summary):
        return "summary" if summary else "mean"
    if config.pooling == "mean":
        return "mean"
    choice = summary if summary in ("cls", "eot") else "auto"
    raise ConfigError(f"pooling: {config.pooling} is no token of this tower; choose {choice} or mean")


def mean_pool(tokens: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Mean (B, D) of the real tokens of (B, N, D); `mask` (B, N) is true where a token is real, None for everywhere."""
    if mask is None:
        return tokens.mean(dim=1)
    weight = mask.unsqueeze(-1).to(tokens.dtype)
    return (tokens * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)


class AttentionPooling(nn.Module):
    """One learned query reads the tokens by multi-head attention (Lee et al. 2019, arXiv:1810.00825).

    Args:
        dim: D.
        num_heads: heads; when they do not divide D, the largest smaller number that does.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.query = nn.Parameter(dim**-0.5 * torch.randn(1, 1, dim))
        self.attention = Attention(dim, fitting_heads(dim, num_heads))

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """(B, N, D) -> (B, D); `mask` (B, N) bool is true where a token is real, None for everywhere."""
        visible = None if mask is None else mask[:, None, None, :].bool()
        return self.attention(self.query, tokens, mask=visible).squeeze(1)
