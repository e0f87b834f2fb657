"""The small causal network that is recursed: pre-norm blocks of attention with rotary positions and a gated MLP.

Its norms have no gain: a linear layer follows each of them and would absorb it. No linear layer has a bias.

Letters of shapes: B batch, S new positions, C all positions (those in the cache and the new ones), D width, H heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from impresa.decoders.context import CausalContext, Past
from impresa.errors import ConfigError
from impresa.layers.attention import WeighingModule, attention_weights
from impresa.layers.init import init_linear
from impresa.layers.mlp import GatedMLP
from impresa.layers.norms import at_least_float32, rms_normalise
from impresa.layers.rows import same_sequence

_ROTARY_BASE = 10_000.0


@dataclass(frozen=True)
class AttentionInputs:
    """A `CausalContext` prepared for attention, once for all passes of the network."""

    rotation: Tensor
    """(B, S, 1, D / 2H) complex64, the rotation of each pair of features at each position."""
    visible: Tensor | None
    """(B, 1, S, C) bool, true where a position may look; None: position i sees positions 0 to i."""
    cache: Past | None

    @classmethod
    def of(cls, context: CausalContext, head_dim: int) -> AttentionInputs:
        return cls(_rotation(context.position_ids, head_dim), _visible(context), context.cache)


class CausalNetwork(nn.Module):
    """f: blocks and the norm after them, so that the output always has a root mean square of one.

    Args:
        dim: D.
        num_layers: blocks.
        num_heads: H; D must be an even multiple of it.
        mlp_ratio: hidden width of the MLPs as a multiple of D.
        dropout: on what attention and MLP add to their input.
    """

    def __init__(self, *, dim: int, num_layers: int, num_heads: int, mlp_ratio: float, dropout: float = 0.0) -> None:
        super().__init__()
        if dim % (2 * num_heads):
            fault = f"{num_heads} heads do not divide the width {dim} into even parts, which rotary positions need"
            raise ConfigError(f"decoder.num_heads: {fault}; choose another number")
        dim_hidden = round(dim * mlp_ratio)
        if not dim_hidden:
            raise ConfigError(f"decoder.mlp_ratio: it leaves the MLP no hidden width at width {dim}; make it larger")
        self.blocks = nn.ModuleList(
            CausalBlock(dim, num_heads, dim_hidden, dropout, damping=(2 * num_layers) ** -0.5)
            for _ in range(num_layers)
        )

    def forward(self, x: Tensor, inputs: AttentionInputs, first_slot: int = 0) -> Tensor:
        """(B, S, D) -> (B, S, D); keys and values go to one slot of the cache for each block, from `first_slot`."""
        for index, block in enumerate(self.blocks):
            x = block(x, inputs, first_slot + index)
        return rms_normalise(x)


class CausalBlock(nn.Module):
    """Attention, then the MLP, each on the normalised input and added to it; `damping` scales what is added."""

    def __init__(self, dim: int, num_heads: int, dim_hidden: int, dropout: float, *, damping: float) -> None:
        super().__init__()
        self.attention = CausalAttention(dim, num_heads, damping=damping)
        self.mlp = GatedMLP(dim, dim_hidden, damping=damping)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, inputs: AttentionInputs, slot: int) -> Tensor:
        x = x + self.dropout(self.attention(rms_normalise(x), inputs, slot))
        return x + self.dropout(self.mlp(rms_normalise(x)))


class CausalAttention(WeighingModule):
    """Multi-head self-attention to the positions up to one's own."""

    def __init__(self, dim: int, num_heads: int, *, damping: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query_key = nn.Linear(dim, 2 * dim, bias=False)
        self.value = nn.Linear(dim, dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        init_linear(self.query_key, std=dim**-0.5)
        init_linear(self.value, std=dim**-0.5)
        init_linear(self.out, std=damping * dim**-0.5)

    def forward(self, x: Tensor, inputs: AttentionInputs, slot: int) -> Tensor:
        queries, keys = self._queries_and_keys(x, inputs)
        values = self.value(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        if inputs.cache is not None:
            keys, values = inputs.cache.update(keys, values, slot)  # (B, H, C, D / H) each
        is_causal = inputs.visible is None
        read = F.scaled_dot_product_attention(queries, keys, values, attn_mask=inputs.visible, is_causal=is_causal)
        return self.out(read.transpose(1, 2).flatten(2))

    def weights(self, x: Tensor, inputs: AttentionInputs, slot: int) -> Tensor:
        assert inputs.cache is None  # it would take up the keys once more
        queries, keys = self._queries_and_keys(x, inputs)
        return attention_weights(queries, keys, inputs.visible, is_causal=inputs.visible is None)

    def _queries_and_keys(self, x: Tensor, inputs: AttentionInputs) -> tuple[Tensor, Tensor]:
        """(B, H, S, D / H) each, turned in one go."""
        turned = _rotate(self.query_key(x).unflatten(-1, (2 * self.num_heads, -1)), inputs.rotation)
        queries, keys = turned.transpose(1, 2).chunk(2, dim=1)
        return queries, keys


def _rotation(position_ids: Tensor, head_dim: int) -> Tensor:
    """Rotary positions (Su et al. 2021, arXiv:2104.09864): (B, S) int64 -> (B, S, 1, head_dim / 2), of modulus one."""
    exponents = torch.arange(0, head_dim, 2, device=position_ids.device, dtype=torch.float32) / head_dim
    angles = position_ids[:, :, None, None] * _ROTARY_BASE**-exponents
    return torch.polar(torch.ones_like(angles), angles)


def _rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turn neighbouring features of x (B, S, heads, head_dim) as pairs: one complex product, the fastest way."""
    pairs = torch.view_as_complex(at_least_float32(x).unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotation).flatten(-2).to(x.dtype)


def _visible(context: CausalContext) -> Tensor | None:
    mask, S = context.mask, context.position_ids.shape[1]
    C = mask.shape[1]
    if context.is_packed:
        return same_sequence(context.position_ids).tril()
    if C == S and not bool((mask[:, 1:] & ~mask[:, :-1]).any()):
        return None  # padding on the right only, if any: no real position has it before itself
    keys = torch.arange(C, device=mask.device)
    queries = keys[C - S :, None]
    # A padded position sees itself: a softmax over nothing would be NaN.
    return ((keys <= queries) & mask[:, None, None, :]) | (keys == queries)
