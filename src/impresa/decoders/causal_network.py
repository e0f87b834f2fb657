"""The small causal network that is recursed: pre-norm blocks of attention with rotary positions and a gated MLP.

Norms are root mean square norms (Zhang and Sennrich 2019, arXiv:1910.07467) without a gain: a linear layer follows each
of them and would absorb it. Positions are rotary (Su et al. 2021, arXiv:2104.09864), the MLP is SwiGLU (Shazeer 2020,
arXiv:2002.05202), and no linear layer has a bias.

Letters of shapes: B batch, S new positions, C all positions (those in the cache and the new ones), D width, H heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional as F

from impresa.encoders.transformer import init_linear
from impresa.errors import ConfigError

if TYPE_CHECKING:
    from transformers import Cache

_ROTARY_BASE = 10_000.0
_EPS = 1e-6


class SharedPast:
    """Keys and values of prefixes, read once, for several texts behind each of them; gradients flow through.

    The first call of a network fills it; after `share` a second one reads it.
    """

    def __init__(self) -> None:
        self._slots: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._rows: torch.Tensor | None = None

    def share(self, rows: torch.Tensor) -> None:
        """From now on text b stands behind prefix `rows[b]`; `rows` is (B,) int64."""
        self._rows = rows

    def update(self, keys: torch.Tensor, values: torch.Tensor, slot: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values (B, H, S, D / H) of new positions -> (B, H, C, D / H), those of the prefix before them."""
        if self._rows is None:
            self._slots[slot] = keys, values
            return keys, values
        past_keys, past_values = self._slots[slot]
        return torch.cat((past_keys[self._rows], keys), dim=2), torch.cat((past_values[self._rows], values), dim=2)


@dataclass(frozen=True)
class CausalContext:
    """What the positions of a call may see.

    Raises:
        ConfigError: the cache cannot grow beyond the layers that it was made for.
    """

    mask: torch.Tensor
    """(B, C) bool, true where a position is real; the last S are the new ones."""
    position_ids: torch.Tensor
    """(B, S) int64, places of the new positions in the text."""
    cache: Cache | SharedPast | None = None
    """Keys and values of the C - S positions before: transformers' plain `DynamicCache()` in generation. None: there
    are none."""
    first_slot: int = 0
    """Slots of the cache that other layers fill, before ours."""

    def __post_init__(self) -> None:
        if self.cache is None or isinstance(self.cache, SharedPast):
            return
        if self.cache.layer_class_to_replicate is None:
            fault = f"{type(self.cache).__name__} was made for a fixed number of layers, and the recursion needs more"
            raise ConfigError(f"past_key_values: {fault}; pass an empty DynamicCache()")


@dataclass(frozen=True)
class Sight:
    """A `CausalContext` made ready for attention, once for all passes of the network."""

    rotation: torch.Tensor
    """(B, S, 1, D / 2H) complex64 of modulus one, the turn of each pair of features at each position."""
    visible: torch.Tensor | None
    """(B, 1, S, C) bool, true where a position may look; None: position i sees positions 0 to i."""
    cache: Cache | SharedPast | None

    @classmethod
    def of(cls, context: CausalContext, head_dim: int) -> Sight:
        return cls(_rotation(context.position_ids, head_dim), _visible(context), context.cache)


def rms_normalise(x: torch.Tensor) -> torch.Tensor:
    """(..., D) -> (..., D) with a root mean square of one, computed in float32; zeros stay zeros."""
    # On a CPU, PyTorch's own rms_norm takes twice as long.
    mean_square = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=_at_least_float32(x)).square() / x.shape[-1]
    return x * torch.rsqrt(mean_square + _EPS).to(x.dtype)


class CausalNetwork(nn.Module):
    """f: blocks and the norm after them, so that whatever comes in, what goes out has a root mean square of one.

    Args:
        dim: D.
        num_layers: blocks.
        num_heads: H; D must be an even multiple of it.
        mlp_ratio: hidden width of the MLPs as a multiple of D.
        dropout: on what attention and MLP add to their input.

    Raises:
        ConfigError: `num_heads` or `mlp_ratio` does not fit `dim`.
    """

    def __init__(self, *, dim: int, num_layers: int, num_heads: int, mlp_ratio: float, dropout: float = 0.0) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            CausalBlock(dim, num_heads, round(dim * mlp_ratio), dropout, damping=(2 * num_layers) ** -0.5)
            for _ in range(num_layers)
        )

    def forward(self, x: torch.Tensor, sight: Sight, first_slot: int = 0) -> torch.Tensor:
        """(B, S, D) -> (B, S, D); keys and values go to one slot of the cache for each block, from `first_slot`."""
        for index, block in enumerate(self.blocks):
            x = block(x, sight, first_slot + index)
        return rms_normalise(x)


class CausalBlock(nn.Module):
    """Attention, then the MLP, each on the normalised input and added to it; `damping` scales what is added."""

    def __init__(self, dim: int, num_heads: int, dim_hidden: int, dropout: float, *, damping: float) -> None:
        super().__init__()
        self.attention = CausalAttention(dim, num_heads, damping=damping)
        self.mlp = GatedMLP(dim, dim_hidden, damping=damping)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor, sight: Sight, slot: int) -> torch.Tensor:
        x = x + self.dropout(self.attention(rms_normalise(x), sight, slot))
        return x + self.dropout(self.mlp(rms_normalise(x)))


class CausalAttention(nn.Module):
    """Multi-head self-attention to the positions up to one's own."""

    def __init__(self, dim: int, num_heads: int, *, damping: float) -> None:
        super().__init__()
        if dim % (2 * num_heads):
            fault = f"{num_heads} heads do not divide the width {dim} into even parts, which rotary positions need"
            raise ConfigError(f"decoder.num_heads: {fault}; choose another number")
        self.num_heads = num_heads
        self.query_key = nn.Linear(dim, 2 * dim, bias=False)
        self.value = nn.Linear(dim, dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        init_linear(self.query_key, std=dim**-0.5)
        init_linear(self.value, std=dim**-0.5)
        init_linear(self.out, std=damping * dim**-0.5)

    def forward(self, x: torch.Tensor, sight: Sight, slot: int) -> torch.Tensor:
        # Queries and keys are turned in one go.
        turned = _rotate(self.query_key(x).unflatten(-1, (2 * self.num_heads, -1)), sight.rotation)
        queries, keys = turned.transpose(1, 2).chunk(2, dim=1)  # (B, H, S, D / H) each
        values = self.value(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        if sight.cache is not None:
            keys, values = sight.cache.update(keys, values, slot)  # (B, H, C, D / H) each
        is_causal = sight.visible is None
        read = F.scaled_dot_product_attention(queries, keys, values, attn_mask=sight.visible, is_causal=is_causal)
        return self.out(read.transpose(1, 2).flatten(2))


class GatedMLP(nn.Module):
    """down(silu(gate(x)) * up(x)), position by position."""

    def __init__(self, dim: int, dim_hidden: int, *, damping: float) -> None:
        super().__init__()
        if not dim_hidden:
            raise ConfigError(f"decoder.mlp_ratio: it leaves the MLP no hidden width at width {dim}; make it larger")
        self.gate = nn.Linear(dim, dim_hidden, bias=False)
        self.up = nn.Linear(dim, dim_hidden, bias=False)
        self.down = nn.Linear(dim_hidden, dim, bias=False)
        init_linear(self.gate, std=dim**-0.5)
        init_linear(self.up, std=dim**-0.5)
        init_linear(self.down, std=damping * dim_hidden**-0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


def _rotation(position_ids: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Positions (B, S) -> (B, S, 1, head_dim / 2) complex64."""
    exponents = torch.arange(0, head_dim, 2, device=position_ids.device, dtype=torch.float32) / head_dim
    angles = position_ids[:, :, None, None] * _ROTARY_BASE**-exponents
    return torch.polar(torch.ones_like(angles), angles)


def _rotate(x: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
    """Turn neighbouring features of x (B, S, heads, head_dim) as pairs: one complex product, the fastest way."""
    pairs = torch.view_as_complex(x.to(_at_least_float32(x)).unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotation).flatten(-2).to(x.dtype)


def _visible(context: CausalContext) -> torch.Tensor | None:
    mask, S = context.mask, context.position_ids.shape[1]
    C = mask.shape[1]
    if C == S and not bool((mask[:, 1:] & ~mask[:, :-1]).any()):
        return None  # padding on the right only, if any: no real position has it before itself
    keys = torch.arange(C, device=mask.device)
    queries = keys[C - S :, None]
    # A padded position sees itself, lest the softmax over nothing make NaNs.
    return ((keys <= queries) & mask[:, None, None, :]) | (keys == queries)


def _at_least_float32(x: torch.Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
