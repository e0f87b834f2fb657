"""Multi-head attention of queries to a context.

Letters of shapes: B batch, N tokens, Q queries, D width, H heads.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from impresa.errors import ConfigError
from impresa.layers.init import init_linear


def fitting_heads(dim: int, num_heads: int) -> int:
    """The largest number of heads up to `num_heads` that divides `dim`."""
    return max(heads for heads in range(1, num_heads + 1) if dim % heads == 0)


class Attention(nn.Module):
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
        keys, values = self.key_value(context).chunk(2, dim=-1)
        read = F.scaled_dot_product_attention(
            self._split_heads(self.query(queries)).expand(len(context), -1, -1, -1),
            self._split_heads(keys),
            self._split_heads(values),
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=is_causal,
        )
        return self.out(read.transpose(1, 2).flatten(2))

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, H, N, D / H)
