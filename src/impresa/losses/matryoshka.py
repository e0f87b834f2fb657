"""Contrastive losses on nested prefixes of the embeddings, all of them for less than the price of one.

Matryoshka representation learning (Kusupati et al. 2022, arXiv:2205.13147) trains e[:d] for several d at once, each
prefix normalised by itself. One loss after the other would multiply matrices of every width. But the dot products of a
prefix are those of the next shorter one plus those of the slice between them, and the cosines follow by scaling with
the norms: all prefixes together cost the multiplications of the widest. The backward pass adds up the same way, from
the widest slice down: a slice collects the gradients of all prefixes that contain it before it is multiplied.

Letters of shapes: B batch, E embedding, K prefixes, n rows of `a` (those of this process), m rows of `b` (those of all
processes that are gathered).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from impresa.layers.norms import at_least_float32
from impresa.losses.clip import EPS
from impresa.losses.gather import RowLayout, gather_rows, row_layout
from impresa.losses.objectives import InfoNCE, Objective, RightAnswers, Sigmoid, Targets, Tile, right_negatives
from impresa.losses.pairs import Negatives

CHEAP_WIDTH = 1 / 4
"""Prefixes up to this share of the widest are computed anew in the backward pass: at most a twelfth more work."""
SMALLEST_TILE, TILES_PER_SIDE = 256, 3
"""Without `row_chunk` the backward pass goes through the similarity matrix in 3 x 3 tiles, of no less than 256 rows."""


def matryoshka_clip_loss(
    a: Tensor,
    b: Tensor,
    logit_scale: Tensor,
    dims: Sequence[int],
    *,
    labels: Tensor | None = None,
    row_chunk: int | None = None,
    gather: bool = False,
    negatives: Negatives | None = None,
) -> Tensor:
    """Symmetric InfoNCE of every prefix: the same as `clip_loss(a[:, :d], b[:, :d], logit_scale)` for each d.

    The losses may be weighted and added freely; the backward pass costs the same. Computed in float32 at least, under
    autocast too. Differentiable once.

    Args:
        a, b: (B, E) embeddings, not normalised; row i of one belongs to row i of the other.
        logit_scale: positive scalar that the cosines are multiplied by.
        dims: K different prefix lengths, at most E, in any order.
        labels: (B, L) int64, on the CPU so that looking for equal ones waits for no GPU; rows that are equal in one of
            the columns are right answers to each other. All right answers of a row have equal shares of its target.
            None: each row has one right answer.
        row_chunk: hold this many rows by as many columns of the similarity matrix at a time and compute them anew in
            the backward pass: a third more multiplications, and no memory that grows with B * B. None: keep the
            similarities of the wide prefixes, and compute those of prefixes up to a quarter of the widest anew.
        gather: contrast with the rows of all processes (see `impresa.losses.gather`).
        negatives: more of what `b` is: `a` is told from them too, and they are right for no row. Under `labels`, whose
            last column is of `b` itself, a row does not see those that are equal to one of its right answers.

    Returns:
        (K,) losses in nats, in the order of `dims`.

    Raises:
        ValueError: `a` and `b` differ in shape, or `dims` are no different lengths within E.
    """
    rows = _spread(a, b, labels, negatives, gather=gather)
    objective = InfoNCE(len(dims), len(rows.a), rows.targets.layout.total, like=rows.a)
    return _prefix_losses(rows, logit_scale, torch.zeros_like(logit_scale), objective, dims=dims, row_chunk=row_chunk)


def matryoshka_siglip_loss(
    a: Tensor,
    b: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor,
    dims: Sequence[int],
    *,
    labels: Tensor | None = None,
    row_chunk: int | None = None,
    gather: bool = False,
    negatives: Negatives | None = None,
) -> Tensor:
    """Sigmoid loss of every prefix: the same as `siglip_loss(a[:, :d], b[:, :d], logit_scale, logit_bias)` for each d.

    `logit_bias` is a scalar that is added to the scaled cosines. All right answers are right pairs, each of full
    weight. All else is as in `matryoshka_clip_loss`.
    """
    rows = _spread(a, b, labels, negatives, gather=gather)
    objective = Sigmoid(len(dims), at_least_float32(logit_bias.detach()))
    return _prefix_losses(rows, logit_scale, logit_bias, objective, dims=dims, row_chunk=row_chunk)


class _Rows(NamedTuple):
    """The embeddings to compare, (n, E) and (m, E), the latter followed by all hard negatives, in float32 at least, and
    which of them belong together."""

    a: Tensor
    b: Tensor
    targets: Targets


def _spread(a: Tensor, b: Tensor, labels: Tensor | None, negatives: Negatives | None, *, gather: bool) -> _Rows:
    if a.ndim != 2 or a.shape != b.shape:
        raise ValueError(f"a, b: {tuple(a.shape)} and {tuple(b.shape)}; they must be (B, E) of one shape")
    layout = row_layout(a, gather=gather)
    labels = _gathered_numbers(labels, layout, a.device)
    right = None if labels is None else RightAnswers.among(labels, a.device)
    columns = gather_rows(at_least_float32(b), layout)
    if negatives is None:
        return _Rows(at_least_float32(a), columns, Targets(layout, right))
    own = row_layout(negatives.embeddings, gather=gather)
    wrong = gather_rows(at_least_float32(negatives.embeddings), own)
    keys = _gathered_numbers(negatives.keys, own, a.device)
    hidden = None if labels is None or keys is None else right_negatives(labels, keys, a.device)
    return _Rows(at_least_float32(a), torch.cat([columns, wrong]), Targets(layout, right, len(wrong), hidden))


def _gathered_numbers(numbers: Tensor | None, layout: RowLayout, device: torch.device) -> Tensor | None:
    """Numbers of rows on the CPU, for the rows of all processes."""
    if numbers is None or len(layout.counts) == 1:
        return numbers
    return gather_rows(numbers.to(device), layout).cpu()


@dataclass
class _Plan:
    """The arguments of the autograd function besides its tensors."""

    objective: Objective
    targets: Targets
    slices: list[slice]
    """The columns of the embeddings that each prefix adds to the next shorter one."""
    num_anew: int
    """Number of prefixes, the shortest, whose logits the backward pass computes anew; those of the others are kept."""
    groups: list[range]
    """Prefixes whose logits the backward pass has at once, from the longest on."""
    tile_size: int
    """Most rows and columns of a tile of the similarity matrix in the backward pass."""

    @property
    def factor(self) -> float:
        """From the objective's sums over this process's rows to its share of the mean over all rows."""
        return self.objective.factor * self.targets.layout.weight


def _prefix_losses(
    rows: _Rows, scale: Tensor, bias: Tensor, objective: Objective, *, dims: Sequence[int], row_chunk: int | None
) -> Tensor:
    ascending = sorted(set(dims))
    width = rows.a.shape[1]
    if not dims or len(ascending) < len(dims) or ascending[0] < 1 or ascending[-1] > width:
        raise ValueError(f"dims: {list(dims)} must be different lengths from 1 to {width}")
    if row_chunk is not None and row_chunk < 1:
        raise ValueError(f"row_chunk: {row_chunk} must be at least 1, or None")
    slices = [slice(start, stop) for start, stop in pairwise([0, *ascending])]
    plan = _Plan(objective, rows.targets, slices, *_tiling(rows, ascending, row_chunk))
    losses: Tensor = _PrefixLosses.apply(rows.a, rows.b, at_least_float32(torch.stack([scale, bias])), plan)
    return losses[[ascending.index(d) for d in dims]]


def _tiling(rows: _Rows, ascending: Sequence[int], row_chunk: int | None) -> tuple[int, list[range], int]:
    """`num_anew`, `groups` and `tile_size` of a plan."""
    whole, count = max(len(rows.a), len(rows.b)), len(ascending)
    size = row_chunk or max(SMALLEST_TILE, math.ceil(whole / TILES_PER_SIDE))
    if row_chunk is None and torch.is_grad_enabled():
        num_anew = sum(d <= ascending[-1] * CHEAP_WIDTH for d in ascending) if size < whole else 0
        split = num_anew
    else:
        # Half of the prefixes at a time need half the memory; the shorter half is multiplied a second time.
        num_anew, split = count, count // 2
    return num_anew, [range(split, count), range(split)], size


class _PrefixLosses(torch.autograd.Function):
    """(n, E), (m, E), (scale, bias) -> (K,) losses of the prefixes, from the shortest on.

    With the dot products p_k(i, j) of prefix k, which are sums over its slices, the logits are

        x_k(i, j) = scale * p_k(i, j) / (|a_i| |b_j|), the norms being those of the prefixes

    and with the objective's derivative g_k = dL_k / dx_k, weighted by what comes from above, the gradients are

        by p_k      g_k * scale / (|a_i| |b_j|); a slice collects it from its own and all longer prefixes
        by |a_i|    -(sum over j of g_k x_k) / |a_i|, and alike for |b_j| over i
        by scale    (sum over i and j of g_k x_k) / scale
        by bias     sum over i and j of g_k

    All matrix products write into tensors that exist: autocast leaves such products in the precision they have.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, scale_and_bias: Tensor, plan: _Plan) -> Tensor:
        scale = scale_and_bias[0] * plan.objective.unit
        similarities = _Similarities(a, b, scale, _inverse_norms(a, plan.slices), _inverse_norms(b, plan.slices))
        kept = a.new_empty(len(plan.slices) - plan.num_anew, len(a), len(b))
        for tile in plan.targets.tiles(a, 2 * plan.tile_size):  # there are no gradients yet: larger tiles have room
            dots, scratch, not_kept = a.new_empty(3, *tile.shape)
            for k in range(len(plan.slices)):
                x = kept[k - plan.num_anew, tile.rows, tile.columns] if k >= plan.num_anew else not_kept
                similarities.write(k, plan.slices[k], tile, dots, out=x)
                tile.hide(x)
                plan.objective.observe(k, tile, x, scratch)
        ctx.save_for_backward(kept, *similarities)
        ctx.plan = plan
        return plan.objective.sums(plan.targets.layout) * plan.factor

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor, None]:
        plan: _Plan = ctx.plan
        kept, *inputs = ctx.saved_tensors
        a, b, scale, inverse_a, inverse_b = similarities = _Similarities(*inputs)
        grad_a = torch.zeros_like(a) if ctx.needs_input_grad[0] else None
        grad_b = torch.zeros_like(b) if ctx.needs_input_grad[1] else None
        grad_bias = torch.zeros_like(scale)
        weights = upstream * plan.factor  # (K,)
        # Sums of g * x, over the columns for each row of a prefix (K, n) and over the rows for each column (K, m).
        sums_a, sums_b = torch.zeros_like(inverse_a), torch.zeros_like(inverse_b)
        # One allocation for all tiles: the gradient of a prefix, what a slice has collected, scratch, and the logits
        # of those prefixes of a group that were not kept.
        size = min(plan.tile_size, len(a)) * min(plan.tile_size, len(b))
        most_anew = max((len(group) for group in plan.groups if group.start < plan.num_anew), default=0)
        buffers = a.new_empty(3 + most_anew, size)
        for tile in plan.targets.tiles(a, plan.tile_size):
            rows, columns = tile.rows, tile.columns
            gradient, collected, scratch, *logits = buffers[:, : math.prod(tile.shape)].view(-1, *tile.shape)
            collected.zero_()
            for group in plan.groups:  # the longer prefixes first, for their slices collect the least
                if group.start < plan.num_anew:
                    # Dot products add up from the shortest prefix on, so those before the group are run through too.
                    for k in range(group.stop):
                        out = logits[k - group.start] if k in group else None
                        similarities.write(k, plan.slices[k], tile, scratch, out=out)
                        if out is not None:
                            tile.hide(out)
                for k in reversed(group):
                    x = logits[k - group.start] if k < plan.num_anew else kept[k - plan.num_anew, rows, columns]
                    plan.objective.gradient(k, tile, x, gradient, scratch)
                    torch.mul(x, gradient, out=scratch)
                    sums_a[k, rows] += scratch.sum(dim=1) * weights[k]
                    sums_b[k, columns] += scratch.sum(dim=0) * weights[k]
                    grad_bias += gradient.sum() * weights[k]
                    # From x to the dot products: g * scale / (|a| |b|), onto that of all longer prefixes.
                    gradient.mul_((weights[k] * scale * inverse_a[k, rows])[:, None])
                    collected.addcmul_(gradient, inverse_b[k, columns])
                    # No shorter prefix has the columns that prefix k adds, so they have collected all that they get.
                    added = plan.slices[k]
                    if grad_a is not None:
                        grad_a[rows, added].addmm_(collected, b[columns, added])
                    if grad_b is not None:
                        grad_b[columns, added].addmm_(collected.T, a[rows, added])
        _add_norm_gradient(grad_a, a, sums_a, inverse_a, plan.slices)
        _add_norm_gradient(grad_b, b, sums_b, inverse_b, plan.slices)
        # `scale` has the objective's unit in it, and every pair is in exactly one sum of `sums_a`.
        grad_scale = sums_a.sum() * (plan.objective.unit / scale)
        return grad_a, grad_b, torch.stack([grad_scale, grad_bias]), None


class _Similarities(NamedTuple):
    """The tensors from which the scaled cosines of all prefixes follow."""

    a: Tensor
    """(n, E)"""
    b: Tensor
    """(m, E)"""
    scale: Tensor
    inverse_a: Tensor
    """(K, n) one over the norm of each prefix."""
    inverse_b: Tensor
    """(K, m)"""

    def write(self, k: int, added: slice, tile: Tile, dots: Tensor, out: Tensor | None) -> None:
        """Write those of prefix k in a tile to `out`, if given; prefixes come in turn, from the shortest on.

        `dots` collects the dot products from prefix to prefix, of the columns that each has `added`; norms come last.
        """
        torch.addmm(dots, self.a[tile.rows, added], self.b[tile.columns, added].T, beta=min(k, 1), out=dots)
        if out is not None:
            torch.mul(dots, (self.scale * self.inverse_a[k, tile.rows])[:, None], out=out)
            out *= self.inverse_b[k, tile.columns]


def _inverse_norms(x: Tensor, slices: Sequence[slice]) -> Tensor:
    """(n, E) -> (K, n): one over the norm of each prefix, at most one over `EPS`."""
    squares = torch.stack([torch.linalg.vector_norm(x[:, added], dim=1).square() for added in slices])
    return squares.cumsum(dim=0).sqrt_().clamp_(min=EPS).reciprocal_()


def _add_norm_gradient(
    gradient: Tensor | None, x: Tensor, sums: Tensor, inverse_norms: Tensor, slices: Sequence[slice]
) -> None:
    """Add the gradient through the norms: no loss changes with the length of a prefix.

    The derivative of |x| by x is x / |x|, so each prefix takes sums / |x|^2 times itself away, unless its norm is below
    `EPS` and thus a constant.
    """
    if gradient is None:
        return
    of_prefix = sums * inverse_norms.square() * (inverse_norms < 1 / EPS)
    of_slice = of_prefix.flip(0).cumsum(dim=0).flip(0)  # a slice is part of its own and all longer prefixes
    for added, factor in zip(slices, of_slice, strict=True):
        gradient[:, added].addcmul_(x[:, added], factor[:, None], value=-1)
