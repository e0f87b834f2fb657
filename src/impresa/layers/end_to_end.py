"""Sequences of a batch laid end to end: what works token by token then computes no padding, and attention sees each
sequence alone.

Letters of shapes: B sequences, T tokens of the longest with its padding, S tokens of all without, H heads, d width of
a head.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from impresa.layers.eager import eager
from impresa.layers.norms import at_least_float32

_HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class EndToEnd:
    """The places of the S tokens of B sequences, the longest sequence first."""

    lengths: tuple[int, ...]
    """Tokens of each sequence, in the order in which they lie."""
    row: Tensor
    """(S,) int64, the sequence of each token, from 0 to B - 1 as in the padded batch."""
    column: Tensor
    """(S,) int64, its place in the padded sequence."""
    start: Tensor
    """(B,) int64, where each sequence begins; sequences as in the padded batch."""
    size: int
    """T."""

    @classmethod
    @eager
    def of(cls, mask: Tensor) -> Self:
        """The layout of the tokens where `mask` (B, T) bool is true."""
        lengths, order = mask.sum(dim=1).sort(descending=True, stable=True)
        place, column = mask[order].nonzero(as_tuple=True)
        start = torch.empty_like(lengths)
        start[order] = lengths.cumsum(dim=0) - lengths
        return cls(tuple(lengths.tolist()), order[place], column, start, mask.shape[1])

    def laid(self, x: Tensor) -> Tensor:
        """(B, T, ...) -> (S, ...)."""
        return x[self.row, self.column]

    def padded(self, x: Tensor) -> Tensor:
        """(S, ...) -> (B, T, ...), zero where there is no token."""
        return x.new_zeros(len(self.lengths), self.size, *x.shape[1:]).index_put((self.row, self.column), x)

    def sums(self, x: Tensor) -> Tensor:
        """(S, D) -> (B, D), summed over the tokens of each sequence."""
        kept = at_least_float32(x)
        return kept.new_zeros(len(self.lengths), x.shape[1]).index_add(0, self.row, kept).to(x.dtype)

    @eager
    def attention(self, queries: Tensor, keys: Tensor, values: Tensor, *, is_causal: bool, dropout: float) -> Tensor:
        """Attention of each sequence to itself, (S, H, d) of each -> (S, H, d)."""
        if not queries.is_cuda:
            return self._by_length(queries, keys, values, is_causal, dropout)
        if queries.dtype in _HALF and not dropout:
            return self._by_kernel(queries, keys, values, is_causal)
        return self._over_padding(queries, keys, values, is_causal, dropout)

    def _by_length(self, queries: Tensor, keys: Tensor, values: Tensor, is_causal: bool, dropout: float) -> Tensor:
        """Sequences of one length at a time, as they lie: nothing is copied, and nothing is masked."""
        groups = [(length, len(list(same))) for length, same in groupby(self.lengths) if length]
        sizes = [length * number for length, number in groups]
        parts = zip(groups, *(x.split(sizes) for x in (queries, keys, values)), strict=True)
        reads = []
        for (length, _), *group in parts:
            q, k, v = (x.unflatten(0, (-1, length)).transpose(1, 2) for x in group)  # (number, H, length, d)
            read = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=is_causal)
            reads.append(read.transpose(1, 2).flatten(0, 1))
        return torch.cat(reads)

    def _by_kernel(self, queries: Tensor, keys: Tensor, values: Tensor, is_causal: bool) -> Tensor:
        from torch.nn.attention.varlen import varlen_attn

        ends = F.pad(torch.tensor(self.lengths).cumsum(dim=0), (1, 0)).to(queries.device, torch.int32)
        longest, window = self.lengths[0], (-1, 0) if is_causal else (-1, -1)
        heads = queries, keys.contiguous(), values.contiguous()
        return varlen_attn(*heads, ends, ends, longest, longest, window_size=window)  # type: ignore[return-value]

    def _over_padding(self, queries: Tensor, keys: Tensor, values: Tensor, is_causal: bool, dropout: float) -> Tensor:
        """All sequences at once: many small kernels would keep a GPU waiting."""
        q, k, v = (self.padded(x).transpose(1, 2) for x in (queries, keys, values))
        filled = self.padded(torch.ones_like(self.row, dtype=torch.bool))
        visible = None if is_causal else filled[:, None, None, :]  # padding is on the right
        read = F.scaled_dot_product_attention(q, k, v, attn_mask=visible, dropout_p=dropout, is_causal=is_causal)
        return self.laid(read.transpose(1, 2))
