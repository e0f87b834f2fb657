"""Tokens of several modalities become one sequence: the prefix of a language model, or one embedding of them all.

The tokens of a modality that a sample lacks are masked, whatever they hold.

Letters of shapes: B batch, N tokens of a modality, D its width, P prefix, H hidden width, E embedding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from impresa.config.encoder import Modality
from impresa.config.experiment import FusionConfig
from impresa.encoders.output import EncoderOutput
from impresa.encoders.pooling import mean_pool
from impresa.layers.attention import fitting_heads
from impresa.layers.init import drawn, init_linear
from impresa.layers.mlp import MLP
from impresa.layers.perceiver import PerceiverStack

Encoded = Mapping[Modality, EncoderOutput]
Present = Mapping[Modality, Tensor]


@dataclass
class Prefix:
    """The tokens that a fusion makes of the modalities."""

    tokens: Tensor
    """(B, P, H), zero where the mask is false."""
    mask: Tensor
    """(B, P) bool, true where a token is real."""


class Fusion(nn.Module, ABC):
    """The base of the strategies: each modality is projected to the width H and gets its modality embedding.

    Args:
        config: the strategy's settings.
        dims: D of each modality that may occur.
        dim: H.
    """

    def __init__(self, config: FusionConfig, dims: Mapping[Modality, int], dim: int) -> None:
        super().__init__()
        self.config = config
        self.dim = dim
        self.modalities = tuple(dims)
        self.dropout = nn.Dropout(config.dropout)
        self.projections = nn.ModuleDict()
        self.marks = nn.ParameterDict()  # the modality embeddings, under the name that runs have stored
        for modality, width in dims.items():
            self.projections[modality] = _projector(config, width, dim)
            self.marks[modality] = drawn(dim, std=0.02)

    def forward(self, encoded: Encoded, present: Present | None = None) -> Prefix:
        """Fuse the tokens.

        Args:
            encoded: outputs with tokens (B, N, D) of one or more of the modalities.
            present: (B,) bool for each modality that some samples lack, true where the sample has it.
        """
        present = present or {}
        names = [name for name in self.modalities if name in encoded]
        tokens, mask = self.fuse([self._project(name, encoded[name], present.get(name)) for name in names])
        return Prefix(self.dropout(tokens).masked_fill(~mask.unsqueeze(-1), 0.0), mask)

    @abstractmethod
    def fuse(self, modalities: list[Prefix]) -> tuple[Tensor, Tensor]:
        """The modalities' tokens (B, N, H) and masks (B, N) to (B, P, H) and (B, P)."""

    def _project(self, name: str, encoded: EncoderOutput, present: Tensor | None) -> Prefix:
        assert encoded.tokens is not None
        shape = encoded.tokens.shape[:2]
        mask = encoded.tokens.new_ones(shape, dtype=torch.bool) if encoded.mask is None else encoded.mask
        if present is not None:
            mask = mask & present.unsqueeze(1)
        tokens = encoded.tokens.masked_fill(~mask.unsqueeze(-1), 0.0)
        return Prefix(self.projections[name](tokens) + self.marks[name], mask)


class ConcatFusion(Fusion):
    """All tokens, one modality after the other: P is the sum of their numbers."""

    def fuse(self, modalities: list[Prefix]) -> tuple[Tensor, Tensor]:
        return _joined(modalities)


class CrossAttentionFusion(Fusion):
    """Learned queries read the tokens of all modalities together, `layers` times: P is `num_queries`."""

    def __init__(self, config: FusionConfig, dims: Mapping[Modality, int], dim: int) -> None:
        super().__init__(config, dims, dim)
        self.reader = Reader(config, config.layers, dim)

    def fuse(self, modalities: list[Prefix]) -> tuple[Tensor, Tensor]:
        tokens, mask = _joined(modalities)
        return self.reader(tokens, mask), _any_real(mask, self.config.num_queries)


class GatedFusion(Fusion):
    """Learned queries read each modality by itself; the gated results are added up: P is `num_queries`.

    The gates of a token are positive, depend on the results, and add up to one over the modalities that are present.
    """

    def __init__(self, config: FusionConfig, dims: Mapping[Modality, int], dim: int) -> None:
        super().__init__(config, dims, dim)
        self.reader = Reader(config, 1, dim)
        self.gate = init_linear(nn.Linear(dim, 1), std=dim**-0.5)

    def fuse(self, modalities: list[Prefix]) -> tuple[Tensor, Tensor]:
        found = torch.stack([self.reader(m.tokens, m.mask) for m in modalities], dim=1)  # (B, modalities, P, H)
        is_there = torch.stack([m.mask.any(dim=1) for m in modalities], dim=1)  # (B, modalities)
        scores = self.gate(found)
        scores = scores.masked_fill(~is_there[:, :, None, None], torch.finfo(scores.dtype).min)
        return (scores.softmax(dim=1) * found).sum(dim=1), _any_real(is_there, self.config.num_queries)


class Reader(PerceiverStack):
    """Learned queries that read tokens (B, N, H) with their mask (B, N) `num_layers` times and give (B, P, H), with as
    many of `config.num_heads` as divide H."""

    def __init__(self, config: FusionConfig, num_layers: int, dim: int) -> None:
        queries = drawn(config.num_queries, dim, std=0.02)  # drawn before the layers: seeds keep their meaning
        super().__init__(dim=dim, num_layers=num_layers, num_heads=fitting_heads(dim, config.num_heads))
        self.queries = nn.Parameter(queries)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        return self.read(self.queries, tokens, mask)


class FusedEmbedding(nn.Module):
    """One embedding (E) of several modalities: a fusion, the mean of its real tokens, and a linear head."""

    def __init__(self, fusion: Fusion, embed_dim: int) -> None:
        super().__init__()
        self.fusion = fusion
        self.head = init_linear(nn.Linear(fusion.dim, embed_dim, bias=False), std=fusion.dim**-0.5)

    def forward(self, encoded: Encoded, present: Present | None = None) -> Tensor:
        """(B, E), not normalised; zero for a sample that has no modality. Arguments: see `Fusion.forward`."""
        prefix = self.fusion(encoded, present)
        return self.head(mean_pool(prefix.tokens, prefix.mask))


STRATEGIES: dict[str, type[Fusion]] = {
    "concat": ConcatFusion,
    "cross_attention": CrossAttentionFusion,
    "gated": GatedFusion,
}


def build_fusion(config: FusionConfig, dims: Mapping[Modality, int], dim: int) -> Fusion:
    """The fusion of `config.strategy`; arguments: see `Fusion`."""
    return STRATEGIES[config.strategy](config, dims, dim)


def _projector(config: FusionConfig, width: int, dim: int) -> nn.Module:
    """(..., D) -> (..., H), each token by itself."""
    if config.projector == "mlp":
        return MLP(width, dim, dim)
    return init_linear(nn.Linear(width, dim), std=width**-0.5)


def _joined(modalities: list[Prefix]) -> tuple[Tensor, Tensor]:
    return torch.cat([m.tokens for m in modalities], dim=1), torch.cat([m.mask for m in modalities], dim=1)


def _any_real(mask: Tensor, num_tokens: int) -> Tensor:
    """(B, N) to (B, P), true in the rows with any real token."""
    return mask.any(dim=1, keepdim=True).expand(-1, num_tokens)
