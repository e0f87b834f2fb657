"""Multi-head attention of queries to a context.

Letters of shapes: B batch, N tokens, Q queries, D width, H heads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from impresa.errors import ConfigError
from impresa.layers.end_to_end import EndToEnd
from impresa.layers.init import init_linear


def fitting_heads(dim: int, num_heads: int) -> int:
    """The largest number of heads up to `num_heads` that divides `dim`."""
    return max(heads for heads in range(1, num_heads + 1) if dim % heads == 0)


class WeighingModule(nn.Module, ABC):
    """An attention whose weights can be asked for; `forward` never makes them. See `impresa.layers.recording`."""

    @abstractmethod
    def weights(self, *inputs: Any, **options: Any) -> Tensor:
        """The weights (B, H, Q, N) float32 of a call of `forward` with the same arguments, without dropout."""


def attention_weights(queries: Tensor, keys: Tensor, mask: Tensor | None, *, is_causal: bool = False) -> Tensor:
    """The softmax inside `scaled_dot_product_attention`: (B, H, Q, d) and (B, H, N, d) to (B, H, Q, N) float32."""
    scores = queries.float() @ keys.float().mT * queries.shape[-1] ** -0.5
    if is_causal:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    return (scores if mask is None else scores.masked_fill(~mask, -torch.inf)).softmax(dim=-1)


class Attention(WeighingModule):
    """Multi-head attention of queries to a context (Vaswani et al. 2017, arXiv:1706.03762).

    Args:
        dim: D, the width of queries, context and output.
        num_heads: H, a divisor of D.
        dropout: probability of dropping an attention weight in training.
        bias: give the linear maps a bias.

    Raises:
        ConfigError: H does not divide D.
    """

    def __init__(self, dim: int, num_heads: int, *, dropout: float = 0.0, bias: bool = True) -> None:
        super().__init__()
        if dim % num_heads:
            raise ConfigError(f"num_heads: {num_heads} does not divide the width {dim}; choose a divisor")
        self.num_heads = num_heads
        self.dropout = dropout
        self.query = nn.Linear(dim, dim, bias=bias)
        self.key_value = nn.Linear(dim, 2 * dim, bias=bias)
        self.out = nn.Linear(dim, dim, bias=bias)
        for linear in (self.query, self.key_value, self.out):
            init_linear(linear, std=dim**-0.5)

    def forward(
        self, queries: Tensor, context: Tensor, *, mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """Read the context into (B, Q, D).

        Args:
            queries: (B, Q, D), or (1, Q, D) for the same queries in the whole batch.
            context: (B, N, D).
            mask: bool, broadcastable to (B, H, Q, N), true where a query may look.
            is_causal: query i sees tokens 0 to i; excludes `mask`.
        """
        if queries.shape[1] == 1 and not is_causal:
            return self._read_once(queries, context, mask)
        read = F.scaled_dot_product_attention(
            *self._split(queries, context),
            attn_mask=mask,
            dropout_p=self._drop_rate,
            is_causal=is_causal,
        )
        return self.out(read.transpose(1, 2).flatten(2))

    def read_end_to_end(self, x: Tensor, layout: EndToEnd, *, is_causal: bool) -> Tensor:
        """Let each sequence read itself: (S, D), as `layout` says, -> (S, D)."""
        queries, keys, values = (
            part.unflatten(-1, (self.num_heads, -1)) for part in (self.query(x), *self.key_value(x).chunk(2, dim=-1))
        )
        return self.out(
            layout.attention(queries, keys, values, is_causal=is_causal, dropout=self._drop_rate).flatten(1)
        )

    def _read_once(self, query: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        """`forward` of one query: the maps of keys and values are applied to it and to what it reads, not to tokens.

        q (K x + k) = (q K) x + q k, and the mean of V x + v is V (mean of x) + v, the weights adding up to one.
        """
        d = query.shape[-1] // self.num_heads
        own = self.query(query).view(-1, self.num_heads, d) * d**-0.5  # (B, H, d)
        keys, values = self.key_value.weight.view(2, self.num_heads, d, -1)  # (H, d, D) each
        bias = self.key_value.bias
        scores = torch.einsum("bhd,hdc->bhc", own, keys) @ context.mT  # (B, H, N)
        if bias is not None:
            scores = scores + (own * bias[: len(bias) // 2].view(self.num_heads, d)).sum(dim=-1, keepdim=True)
        if mask is None:
            weights = scores.softmax(dim=-1)
        else:  # finite, and zero at the end: who may look nowhere reads zero
            hidden = ~torch.atleast_2d(mask)[..., 0, :]
            weights = scores.masked_fill(hidden, torch.finfo(scores.dtype).min).softmax(dim=-1).masked_fill(hidden, 0)
        weights = F.dropout(weights, self._drop_rate)
        read = torch.einsum("bhc,hdc->bhd", weights @ context, values)
        if bias is not None:
            read = read + weights.sum(dim=-1, keepdim=True) * bias[len(bias) // 2 :].view(self.num_heads, d)
        return self.out(read.flatten(1).unsqueeze(1))

    @property
    def _drop_rate(self) -> float:
        return self.dropout if self.training else 0.0

    def weights(
        self, queries: Tensor, context: Tensor, *, mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        own, keys, _ = self._split(queries, context)
        return attention_weights(own, keys, mask, is_causal=is_causal)

    def _split(self, queries: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, H, Q, D / H), keys and values (B, H, N, D / H)."""
        keys, values = self.key_value(context).chunk(2, dim=-1)
        own = self._split_heads(self.query(queries)).expand(context.shape[0], -1, -1, -1)
        return own, self._split_heads(keys), self._split_heads(values)

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, H, N, D / H)
