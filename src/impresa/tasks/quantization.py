"""Embeddings in fewer bits, the same as sentence-transformers makes them, for indices that store and search such."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from impresa.config.types import EmbeddingPrecision
from impresa.errors import DataError
from impresa.tasks.arguments import Vectors, vectors_of

_SCALAR: tuple[EmbeddingPrecision, ...] = ("int8", "uint8")
_LEVELS = 255


def ranges_of(embeddings: Tensor) -> Tensor:
    """(2, E): the smallest and the largest number of each dimension of embeddings (N, E), N at least 1."""
    return torch.stack(embeddings.aminmax(dim=0))


def checked_ranges(ranges: Vectors | None, width: int, precision: EmbeddingPrecision) -> Tensor | None:
    """The `ranges` that a user gives, (2, width) float32.

    Raises:
        DataError: they are none of such a width, or the precision does not use them.
    """
    if ranges is None:
        return None
    if precision not in _SCALAR:
        raise DataError(f"ranges: are for precision int8 and uint8, not for {precision}; leave them out")
    rows = vectors_of("ranges", ranges).cpu()
    if rows.shape != (2, width) or (rows[0] > rows[1]).any():
        fix = f"give (2, {width}), the smallest and the largest number of each dimension"
        raise DataError(f"ranges: shape {tuple(rows.shape)} or their order does not fit; {fix}")
    return rows


def quantized(embeddings: Tensor, precision: EmbeddingPrecision, ranges: Tensor | None = None) -> Tensor:
    """Embeddings (N, E) float32 on the CPU in another precision.

    `int8`, `uint8`: (N, E), one of 256 even steps between the ends of each dimension's range. `binary`, `ubinary`:
    (N, E / 8 rounded up), the sign of eight dimensions in each int8 or uint8.

    Args:
        embeddings: the numbers.
        precision: of the result.
        ranges: (2, E) for `int8` and `uint8`; None takes those of the embeddings themselves.

    Raises:
        DataError: there are no ranges and a single embedding, or numbers are not finite.
    """
    if precision == "float32":
        return embeddings
    _check_finite(embeddings)
    if precision not in _SCALAR:
        bits = torch.from_numpy(np.packbits(embeddings.numpy() > 0, axis=-1))
        return bits if precision == "ubinary" else (bits ^ 128).view(torch.int8)
    if not len(embeddings):
        return embeddings.to(getattr(torch, precision))
    if ranges is None and len(embeddings) == 1:
        fix = "give `ranges`, those of the embeddings that it is compared with"
        raise DataError(f"precision: the range of {precision} cannot be told from one embedding; {fix}")
    low, high = ranges_of(embeddings) if ranges is None else ranges
    step = (high - low) / _LEVELS
    level = ((embeddings - low) / torch.where(step == 0, 1.0, step)).floor().clamp(0, _LEVELS)
    return level.to(torch.uint8) if precision == "uint8" else (level - 128).to(torch.int8)


def quantized_alone(embeddings: Tensor, precision: Literal["int8", "uint8"]) -> Tensor:
    """Embeddings (N, E) float32 on the CPU in eight bits, each by itself: its largest number becomes 127 or -127, which
    leaves cosines as they are but for rounding. `uint8` has 128 more.

    It needs no ranges, and what is embedded beside it makes no difference, as for the answers of a server.

    Raises:
        DataError: numbers are not finite.
    """
    _check_finite(embeddings)
    largest = embeddings.abs().amax(dim=-1, keepdim=True)
    level = (embeddings * (127 / torch.where(largest == 0, 1.0, largest))).round()
    return (level + 128).to(torch.uint8) if precision == "uint8" else level.to(torch.int8)


def _check_finite(embeddings: Tensor) -> None:
    if not embeddings.isfinite().all():
        raise DataError("precision: the embeddings hold numbers that are not finite; check the model with impresa eval")
