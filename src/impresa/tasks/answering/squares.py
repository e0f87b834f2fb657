"""Several squares of pixels for a sample: its images, or the tiles of an image. Their tokens become one sequence.

Letters of shapes: B samples, I squares, N tokens of a square, L the most squares of a sample here, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from impresa.encoders.output import EncoderOutput
from impresa.layers.init import drawn


class Place(NamedTuple):
    """The place of a square in a batch."""

    sample: int
    """Index in the batch."""
    image: int = 0
    """Number of the image among those of its sample."""
    row: int = 0
    """Of a tile, from 1; 0 for the whole image."""
    column: int = 0


class SquareMarks(nn.Module):
    """Joins the tokens of each sample's squares in order, and adds to them what says where they come from.

    That is a learned embedding of the image's number, as Flamingo has one for each frame of a video (Alayrac et al.
    2022), and those of the tile's row and column. A fusion by queries would keep no order otherwise.

    Args:
        max_images: images of a sample at most.
        max_tiles: tiles of an image at most; 1 for none.
        dim: D.
    """

    def __init__(self, max_images: int, max_tiles: int, dim: int) -> None:
        super().__init__()
        self.max_squares = max_images * (1 + max_tiles if max_tiles > 1 else 1)
        """L at most."""
        self.images = nn.Parameter(drawn(max_images, dim, std=0.02)) if max_images > 1 else None
        # Number 0 is that of the whole image.
        self.rows = nn.Parameter(drawn(1 + max_tiles, dim, std=0.02)) if max_tiles > 1 else None
        self.columns = nn.Parameter(drawn(1 + max_tiles, dim, std=0.02)) if max_tiles > 1 else None

    def forward(self, encoded: EncoderOutput, places: Sequence[Place], num_samples: int) -> EncoderOutput:
        """Tokens (I, N, D) of squares at their places, in order, to (B, L * N, D) with a mask; zeros where a sample has
        fewer."""
        tokens = encoded.tokens
        assert tokens is not None
        sample, image, row, column = torch.tensor(places, device=tokens.device).unbind(1)
        for marks, number in ((self.images, image), (self.rows, row), (self.columns, column)):
            if marks is not None:
                tokens = tokens + marks[number].unsqueeze(1)
        found = [0] * num_samples
        slots: list[int] = []
        for place in places:
            slots.append(found[place.sample])
            found[place.sample] += 1
        index = (sample, torch.tensor(slots, device=tokens.device))
        shape = (num_samples, max(found), tokens.shape[1])
        joined = tokens.new_zeros(*shape, tokens.shape[2]).index_put(index, tokens)
        real = tokens.new_ones(tokens.shape[:2], dtype=torch.bool) if encoded.mask is None else encoded.mask
        mask = real.new_zeros(shape).index_put(index, real)
        return EncoderOutput(joined.new_zeros(num_samples, 0), joined.flatten(1, 2), mask.flatten(1, 2))
