"""From the tokens of an input to one vector.

Letters of shapes: B batch, N tokens, D width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

from torch import Tensor, nn

from impresa.config.encoder import EncoderConfig
from impresa.encoders.output import Features
from impresa.errors import ConfigError
from impresa.layers.attention import Attention, fitting_heads
from impresa.layers.init import drawn

Summary = Literal["cls", "eot", "own"]
"""A backbone's own summary of its input: CLS, the end token of a causal text, or the result of its own pooling."""


def mean_pool(tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean (B, D) of the real tokens of (B, N, D); `mask` (B, N) is true where a token is real, None for everywhere."""
    if mask is None:
        return tokens.mean(dim=1)
    weight = mask.unsqueeze(-1).to(tokens.dtype)
    return (tokens * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)


class Pooling(nn.Module, ABC):
    """Features that have passed the projection or the Perceiver -> (B, D)."""

    reads_summary = False
    """True if it reads the summary and not the tokens, which the backbone may then leave out."""

    @abstractmethod
    def forward(self, features: Features) -> Tensor:
        """`features.tokens` (B, N, D) and `features.mask` (B, N), or `features.summary` (B, D), to (B, D)."""


class SummaryPooling(Pooling):
    """The backbone's own summary."""

    reads_summary = True

    def forward(self, features: Features) -> Tensor:
        assert features.summary is not None
        return features.summary


class MeanPooling(Pooling):
    """The mean of the real tokens."""

    def forward(self, features: Features) -> Tensor:
        assert features.tokens is not None
        return mean_pool(features.tokens, features.mask)


class AttentionPooling(Pooling):
    """One learned query reads the tokens by multi-head attention (Lee et al. 2019, arXiv:1810.00825), with `num_heads`
    heads, or when they do not divide `dim` (D) the largest smaller number that does."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.query = nn.Parameter(drawn(1, 1, dim, std=dim**-0.5))
        self.attention = Attention(dim, fitting_heads(dim, num_heads))

    def forward(self, features: Features) -> Tensor:
        assert features.tokens is not None
        visible = None if features.mask is None else features.mask[:, None, None, :].bool()
        return self.attention(self.query, features.tokens, mask=visible).squeeze(1)


OF_TOKENS: dict[str, type[Pooling]] = {"mean": MeanPooling}
"""Values of `pooling` that read the tokens, so that every tower can use them; the others name a summary."""


def build_pooling(config: EncoderConfig, dim: int, summary: Summary | None) -> Pooling:
    """The pooling of a tower: the mean of the Perceiver's latents if it has one, else by `use_attention_pooling`, else
    by `pooling`.

    Args:
        config: the tower's settings.
        dim: D.
        summary: the summary that the backbone has, if any; `auto` takes it, or else the mean.

    Raises:
        ConfigError: `pooling` names a summary that the backbone does not have.
    """
    if config.use_perceiver:
        return MeanPooling()
    if config.use_attention_pooling:
        return AttentionPooling(dim, config.num_heads)
    if config.pooling in OF_TOKENS:
        return OF_TOKENS[config.pooling]()
    if config.pooling in ("auto", summary):
        return SummaryPooling() if summary else MeanPooling()
    choices = (summary if summary in ("cls", "eot") else "auto", *OF_TOKENS)
    raise ConfigError(f"pooling: {config.pooling} is no token of this tower; choose {' or '.join(choices)}")
