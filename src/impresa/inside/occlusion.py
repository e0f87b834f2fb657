"""Which parts of a picture a score hangs on, by covering them one after the other."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor

MOST_ROWS = 16
"""Rows of squares at most: 256 passes of the tower."""
_AT_ONCE = 32


@torch.no_grad()
def occlusion(score: Callable[[Tensor], Tensor], image: Tensor, num_rows: int) -> Tensor:
    """The fall of a score when squares of an image are covered with its mean colour (Zeiler & Fergus 2014,
    arXiv:1311.2901): no gradient, and the same for every kind of model.

    Args:
        score: images (B, 3, S, S) to a score each, (B,).
        image: (3, S, S), as the model takes it.
        num_rows: R, rows and columns of squares.

    Returns:
        (R, R) on the CPU: the score of the image minus that with the square covered; 0, up to rounding, for a square
        that has the mean colour already.
    """
    size = image.shape[-1]
    edges = [round(i * size / num_rows) for i in range(num_rows + 1)]
    mean = image.mean(dim=(1, 2), keepdim=True)
    covered: list[Tensor] = []
    for row, column in product(range(num_rows), repeat=2):
        picture = image.clone()
        picture[:, edges[row] : edges[row + 1], edges[column] : edges[column + 1]] = mean
        covered.append(picture)
    batches = [torch.stack([image, *covered[i : i + _AT_ONCE]]) for i in range(0, len(covered), _AT_ONCE)]
    # The image stands in every batch, so that what covering does not change is compared within one batch.
    falls = [found[:1] - found[1:] for found in map(score, batches)]
    return torch.cat(falls).float().cpu().reshape(num_rows, num_rows)
