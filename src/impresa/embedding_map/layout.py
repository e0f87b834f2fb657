"""From E dimensions to two, and the nearest neighbours in all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from impresa.embedding_map.request import Method
from impresa.errors import DataError

NUM_NEIGHBOURS = 10
_SCORES_AT_A_TIME = 1 << 23
"""Cosines that are held at once."""
_FEWEST_FOR_TSNE = 10
TSNE_STEPS, _EARLY_STEPS, _STEPS_AT_A_TIME = 750, 250, 50
"""Steps in all, those of them that pull neighbours together first, and between two reports."""


@dataclass(frozen=True)
class Layout:
    """Where N points are drawn."""

    xy: Tensor
    """(N, 2) float64."""
    explained: tuple[float, float] | None
    """Share of the variance along each axis, from 0 to 1; None where the axes are no directions of the space."""


@dataclass(frozen=True)
class Neighbours:
    """The K nearest other points of each of N, nearest first; K is `NUM_NEIGHBOURS`, or N - 1 if that is less."""

    ids: Tensor
    """(N, K) int64, indices of points."""
    distances: Tensor
    """(N, K) float32, 1 - cosine: from 0 to 2."""


def lay_out(vectors: Tensor, method: Method, advance: Callable[[int], None] = lambda steps: None) -> Layout:
    """Two coordinates of each point, the same whenever it is computed.

    Args:
        vectors: (N, E) float64.
        method: `pca` is an exact projection on the two directions of largest variance; `tsne` keeps neighbourhoods.
        advance: called with the number of steps that t-SNE has made since it was called last, `TSNE_STEPS` in all.

    Raises:
        DataError: too few points for `tsne`.
    """
    found = principal_components(vectors)
    if method == "pca":
        return found
    if len(vectors) < _FEWEST_FOR_TSNE:
        raise DataError(f"--method: tsne needs {_FEWEST_FOR_TSNE} points, and there are {len(vectors)}; use pca")
    import openTSNE

    # The start decides what t-SNE makes of the whole: that of the principal components is no matter of chance.
    start = found.xy / found.xy.std(dim=0).max().clamp(min=1e-12) * 1e-4
    tsne = openTSNE.TSNE(
        perplexity=min(30, (len(vectors) - 1) / 3),
        initialization=start.numpy(),
        early_exaggeration_iter=_EARLY_STEPS,
        n_iter=TSNE_STEPS - _EARLY_STEPS,
        random_state=0,
        n_jobs=1,
        callbacks=[lambda *_: advance(_STEPS_AT_A_TIME)],
        callbacks_every_iters=_STEPS_AT_A_TIME,
    )
    return Layout(torch.from_numpy(np.array(tsne.fit(vectors.numpy()))), None)


def principal_components(vectors: Tensor) -> Layout:
    """The projection on the two directions of largest variance, by the eigenvectors of the covariance.

    The sign of a direction is free: here its entry of largest size is positive, as in scikit-learn.

    Args:
        vectors: (N, E) float64.
    """
    centred = vectors - vectors.mean(dim=0)
    variances, directions = torch.linalg.eigh(centred.T @ centred)
    top = directions.flip(1)[:, :2]
    top = top * top.gather(0, top.abs().argmax(dim=0, keepdim=True)).sign()
    total = variances.clamp(min=0).sum().item()
    shares = [max(found, 0.0) / total if total > 1e-18 * len(vectors) else 0.0 for found in variances.flip(0).tolist()]
    xy = torch.zeros(len(vectors), 2, dtype=vectors.dtype)
    xy[:, : top.shape[1]] = centred @ top
    return Layout(xy, (shares[0], shares[1] if len(shares) > 1 else 0.0))


def centre_groups(vectors: Tensor, groups: Iterable[Sequence[int]]) -> Tensor:
    """(N, E) with the mean of each group of rows at the origin."""
    moved = vectors.clone()
    for rows in filter(None, groups):
        moved[list(rows)] -= vectors[list(rows)].mean(dim=0)
    return moved


def find_neighbours(
    vectors: Tensor, track: Callable[[Sequence[int]], Iterable[int]] = lambda starts: starts
) -> Neighbours:
    """The nearest other points by cosine, with no more than a few million cosines held at a time.

    Args:
        vectors: (N, E) rows of length one.
        track: wraps the iteration over blocks of points, for a progress bar.
    """
    num = len(vectors)
    k, size = min(NUM_NEIGHBOURS, num - 1), max(1, _SCORES_AT_A_TIME // num)
    rows = vectors.float()
    ids, distances = torch.zeros(num, k, dtype=torch.int64), torch.zeros(num, k)
    for start in track(range(0, num, size)):
        cosines = rows[start : start + size] @ rows.T
        block = torch.arange(len(cosines))
        cosines[block, start + block] = -torch.inf
        found = cosines.topk(k)
        ids[start : start + size] = found.indices
        distances[start : start + size] = (1 - found.values).clamp(0, 2)
    return Neighbours(ids, distances)
