"""What every encoder does with the features of its backbone: project or compress, pool, embed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Self

import torch
from torch import nn

from impresa.config.experiment import EncoderConfig, PrefixTokens
from impresa.encoders.output import EncoderOutput, Features
from impresa.encoders.perceiver import PerceiverResampler
from impresa.encoders.pooling import AttentionPooling, Summary, mean_pool, pooling_of
from impresa.encoders.pretrained import PretrainedBackbone
from impresa.encoders.projection import build_projection
from impresa.encoders.transformer import init_linear
from impresa.errors import ConfigError


class Tower(nn.Module):
    """backbone -> tokens -> projection or Perceiver -> pooling -> head -> embedding.

    A subclass makes the backbone and feeds it its modality. A frozen backbone stays in eval mode and gets no gradient;
    what stands behind it is trained, unless the whole tower comes from a run of ours (`config.checkpoint`).

    Args:
        config: the tower's settings.
        backbone: returns `Features` of width `dim`.
        dim: D, the width of the backbone's features.
        summary: the summary token that the backbone offers, if any.
    """

    def __init__(self, config: EncoderConfig, backbone: nn.Module, *, dim: int, summary: Summary | None) -> None:
        super().__init__()
        self.dim = dim
        self.summary = summary
        self.backbone = backbone
        self.pools = pooling_of(config, summary)
        self.perceiver = _build_perceiver(config, dim) if config.use_perceiver else None
        self.projection = nn.Identity() if config.use_perceiver else build_projection(config.projection, dim)
        self.attention_pooling = AttentionPooling(dim, config.num_heads) if self.pools == "attention" else None
        self.head: nn.Module = _build_head(dim, config.embed_dim)
        self.has_own_head = False
        self.is_frozen = config.checkpoint is not None if config.freeze is None else config.freeze
        self.comes_from_a_run = config.checkpoint is not None
        if isinstance(backbone, PretrainedBackbone):
            self._fit(backbone, config)
        if self.is_frozen:
            self._frozen_part().requires_grad_(False).eval()

    def _frozen_part(self) -> nn.Module:
        """All of a tower that comes from a run of ours; of another its backbone, with new parts behind it."""
        return self if self.comes_from_a_run else self.backbone

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
        """What comes from a pretrained model: the parameters of its backbone, and of its head if that is kept; all of a
        tower that comes from a run of ours."""
        if self.comes_from_a_run:
            yield from self.parameters()
            return
        if isinstance(self.backbone, PretrainedBackbone):
            yield from self.backbone.parameters()
        if self.has_own_head:
            yield from self.head.parameters()

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        if self.is_frozen:
            for module in self._frozen_part().modules():
                module.training = False
        return self

    @property
    def sums_up_in_cls(self) -> bool:
        """Whether the embedding is made of CLS alone, so that nothing trains what the last block does to the rest."""
        return self.pools == "summary" and self.summary == "cls"

    def keep(self, which: PrefixTokens, *, drop_last_block: bool) -> None:
        """Turn into a tower that is asked for tokens only (see `read`): what only its embedding needs goes.

        Args:
            which: the tokens that will be read.
            drop_last_block: read the tokens as they are before the backbone's last block.

        Raises:
            ConfigError: the tower has no such tokens, or a single block.
        """
        if which == "perceiver" and self.perceiver is None:
            raise ConfigError("decoder.prefix: perceiver, but the image tower has none; use tokens")
        if which == "memory" and getattr(self.backbone, "memory", None) is None:
            raise ConfigError("decoder.prefix: memory, but the image tower has no memory tokens; use tokens")
        if drop_last_block:
            self.backbone.drop_last_block()  # type: ignore[operator]
        if which != "perceiver":
            self.perceiver = None
        if which != "tokens":
            self.projection = nn.Identity()
        self.attention_pooling = None
        self.head = nn.Identity()
        if isinstance(self.backbone, PretrainedBackbone):
            self.backbone.drop_pooler()

    def tokens_of(self, features: Features, which: PrefixTokens) -> EncoderOutput:
        """The tokens that a language model reads, and their mask; there is no embedding."""
        assert features.tokens is not None
        nothing = features.tokens.new_zeros(len(features.tokens), 0)
        match which:
            case "memory":
                return EncoderOutput(nothing, features.memory)
            case "perceiver":
                assert self.perceiver is not None
                return EncoderOutput(nothing, self.perceiver(features.tokens, features.mask))
            case "tokens":
                return EncoderOutput(nothing, self.projection(features.tokens), features.mask)

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
