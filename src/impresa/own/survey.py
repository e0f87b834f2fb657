"""What there is of somebody's own data, from a look that decodes a few images."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from statistics import median
from typing import cast

from impresa.config.dataset import DatasetConfig
from impresa.config.experiment import ExperimentConfig
from impresa.data.lengths import MOST_TEXTS
from impresa.data.sources import BadSample, open_path, reading_of
from impresa.data.sources.rows import RowSource
from impresa.data.sources.subset import Subset
from impresa.errors import DataError

_MOST_IMAGES = 32
"""Images that are decoded, evenly from all of them."""


@dataclass(frozen=True)
class Survey:
    """Number and size of the samples."""

    num_samples: int
    num_images: int
    """Different ones, as the division into training and validation tells them apart."""
    num_captions: int
    """Among the first few thousand samples."""
    num_different_captions: int
    side_px: int
    """Median of the shorter sides of some images."""
    num_val_images: int | None
    """Of validation data with a path of their own; None without."""


def survey(config: ExperimentConfig) -> Survey:
    """Look at the training data of an experiment, and at how many validation data there are.

    Raises:
        DataError: the data cannot be read, or none of the images that are looked at can be used.
    """
    dataset = config.dataset
    source = _opened(config, dataset.train_path)
    captions = list(islice(source.captions(), MOST_TEXTS))
    return Survey(
        num_samples=len(source),
        num_images=len(set(source.image_keys())),
        num_captions=len(captions),
        num_different_captions=len(set(captions)),
        side_px=_side(dataset, source),
        num_val_images=None if dataset.val_path is None else len(set(_opened(config, dataset.val_path).image_keys())),
    )


def _opened(config: ExperimentConfig, path: str) -> RowSource | Subset:
    return cast("RowSource | Subset", open_path(config.dataset, path, reading_of(config)))


def _side(dataset: DatasetConfig, source: RowSource | Subset) -> int:
    sides, faults = list[int](), list[BadSample]()
    for index in sorted({i * len(source) // _MOST_IMAGES for i in range(_MOST_IMAGES)}):
        try:
            if (image := source[index].image) is not None:
                sides.append(min(image.size))
        except BadSample as fault:
            faults.append(fault)
    if sides:
        return round(median(sides))
    why = f" ({faults[0]})" if faults else ""
    path = dataset.train_path
    raise DataError(f"{path}: no image that was looked at can be used{why}; `impresa data check {path}` lists them all")
