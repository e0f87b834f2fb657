"""Convolutions over images: a stem for the ViT, and a small backbone of their own.

Both halve the image until a cell is `patch_size` pixels wide, and normalise each image by itself (GroupNorm, Wu & He
2018, arXiv:1803.08494): no embedding depends on its batch.

Letters of shapes: B batch, S image side in pixels, C channels, R cells along a side, N cells in all, D width.
"""

from __future__ import annotations

from itertools import pairwise
from math import gcd

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from impresa.config.encoder import EncoderConfig
from impresa.encoders.output import Features
from impresa.errors import ConfigError, DataError
from impresa.layers.init import drawn

_LEAST_CHANNELS = 16
_GROUP_CHANNELS, _MOST_GROUPS = 8, 32


def num_cells(image_size: int, cell: int) -> int:
    """Cells of `cell` pixels in a square image. Raises `ConfigError` if they do not fill it."""
    if image_size % cell:
        raise ConfigError(f"patch_size: {cell} does not divide image_size {image_size}; change either")
    return (image_size // cell) ** 2


def check_size(image: Tensor, image_size: int) -> None:
    """Raises `DataError` for images other than (B, 3, S, S)."""
    size = (3, image_size, image_size)
    if image.shape[1:] != size:
        raise DataError(f"image: shape {tuple(image.shape[1:])} does not fit the tower; resize to {size}")


def cells_in_order(grid: Tensor) -> Tensor:
    """(B, C, R, R) -> (B, N, C), in reading order."""
    return grid.flatten(2).transpose(1, 2)


class Convolution(nn.Conv2d):
    """A convolution of 3 x 3 pixels without bias, of which `gain` is the standard deviation of what comes out at the
    start, for independent inputs of standard deviation one."""

    def __init__(self, dim_in: int, dim_out: int, *, stride: int = 1, gain: float = 2**0.5) -> None:
        super().__init__(dim_in, dim_out, kernel_size=3, stride=stride, padding=1, bias=False)
        self.weight = nn.Parameter(drawn(*self.weight.shape, std=gain * (9 * dim_in) ** -0.5))


def group_norm(dim: int) -> nn.GroupNorm:
    """GroupNorm with groups of eight channels or more."""
    return nn.GroupNorm(gcd(dim, min(_MOST_GROUPS, max(dim // _GROUP_CHANNELS, 1))), dim)


def widths_of(config: EncoderConfig) -> list[int]:
    """Channels after each halving: they double up to `dim`, from 16 at least.

    Raises:
        ConfigError: `patch_size` cannot be reached by halving.
    """
    num_halvings = config.patch_size.bit_length() - 1
    if num_halvings < 1 or config.patch_size != 1 << num_halvings:
        raise ConfigError(f"patch_size: {config.patch_size} is no power of two from 2 on, as convolutions need")
    return [min(config.dim, max(config.dim >> left, _LEAST_CHANNELS)) for left in reversed(range(num_halvings))]


class ConvStem(nn.Sequential):
    """Images (B, 3, S, S) to patch embeddings (B, N, D): halvings, each a convolution with norm and ReLU, and a map of
    each cell by itself (Xiao et al. 2021, arXiv:2106.14881, with another norm)."""

    def __init__(self, config: EncoderConfig) -> None:
        halvings = [
            nn.Sequential(Convolution(before, after, stride=2), group_norm(after), nn.ReLU())
            for before, after in pairwise([3, *widths_of(config)])
        ]
        super().__init__(*halvings, nn.Conv2d(config.dim, config.dim, kernel_size=1, bias=config.patch_bias))

    def forward(self, image: Tensor) -> Tensor:
        return cells_in_order(super().forward(image))


class ResidualBlock(nn.Module):
    """Two convolutions, each behind norm and ReLU, added to their input (He et al. 2016, arXiv:1603.05027), dropout
    between them (Zagoruyko & Komodakis 2016, arXiv:1605.07146). What is added shrinks with the number of blocks."""

    def __init__(self, dim: int, config: EncoderConfig) -> None:
        super().__init__()
        self.first = nn.Sequential(group_norm(dim), nn.ReLU(), Convolution(dim, dim))
        self.second = nn.Sequential(
            group_norm(dim), nn.ReLU(), nn.Dropout(config.drop_rate), Convolution(dim, dim, gain=config.depth**-0.5)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.first(x))


class Stage(nn.Module):
    """A halving, (B, C, R, R) to (B, C', R/2, R/2), and the blocks at that size."""

    def __init__(self, dim_in: int, dim: int, num_blocks: int, config: EncoderConfig) -> None:
        super().__init__()
        self.halving = nn.Sequential(Convolution(dim_in, dim, stride=2), group_norm(dim))
        self.blocks = nn.ModuleList(ResidualBlock(dim, config) for _ in range(num_blocks))
        self.recomputes = config.activation_checkpointing

    def forward(self, x: Tensor, positions: Tensor | float = 0.0) -> Tensor:
        """`positions` (C', R/2, R/2) are added before the blocks."""
        x = self.halving(x) + positions
        for block in self.blocks:
            recomputes = self.recomputes and torch.is_grad_enabled()
            x = checkpoint(block, x, use_reentrant=False) if recomputes else block(x)
        return x


class ConvNet(nn.Module):
    """Images to the cells of a last feature map, in reading order; there is no CLS. The blocks of the last stage see
    learned positions: captions say left and right, and a mean over cells would forget them.

    A stage for each halving; the `depth` residual blocks are shared evenly among the stages but the first, whose map is
    the largest, and the last ones have one more where they do not come out even.

    Args:
        config: the tower's settings; `patch_size`, a power of two, is the side of a cell in pixels.
        image_size: S, a multiple of `config.patch_size`.
    """

    layout = None
    """No attention, so there are no places to name."""

    def __init__(self, config: EncoderConfig, image_size: int) -> None:
        super().__init__()
        self.dim, self.summary = config.dim, None
        self.image_size, self.num_patches = image_size, num_cells(image_size, config.patch_size)
        widths = [3, *widths_of(config)]
        num_deep = max(len(widths) - 2, 1)
        nums = [0] * (len(widths) - 1 - num_deep) + [(config.depth + i) // num_deep for i in range(num_deep)]
        self.stages = nn.Sequential(
            *(Stage(before, after, num, config) for (before, after), num in zip(pairwise(widths), nums, strict=True))
        )
        side = image_size // config.patch_size
        self.positions = nn.Parameter(drawn(config.dim, side, side, std=config.dim**-0.5))
        self.norm = nn.LayerNorm(config.dim)

    def forward(self, image: Tensor, *, summary_only: bool = False) -> Features:
        """Encode normalised images (B, 3, S, S). There is no summary, so `summary_only` is never true."""
        check_size(image, self.image_size)
        *earlier, last = self.stages
        x = image
        for stage in earlier:
            x = stage(x)
        return Features(tokens=self.norm(cells_in_order(last(x, self.positions))))

    @property
    def blocks(self) -> nn.ModuleList:
        """The blocks of the last stage."""
        last = self.stages[-1]
        assert isinstance(last, Stage)
        return last.blocks
