"""`--data` of the verbs that read a run's data, or others by the run's columns."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from impresa.cli.overrides import check_data_overrides
from impresa.config.paths import EMBEDDED
from impresa.errors import ConfigError

if TYPE_CHECKING:
    from impresa.config.dataset import DatasetConfig
    from impresa.config.experiment import ExperimentConfig
    from impresa.data.sources import Reading, Source, Split


def add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", metavar="PATH", help="other data: a folder, parquet files, tar shards, or shapes")


def is_path(data: str | None) -> bool:
    """True for data that have no splits; the embedded ones and those of a run do."""
    return bool(data) and data != EMBEDDED


def check_other_data(data: str | None, overrides: Sequence[str], *, has_split: bool) -> None:
    """Refuse `--split` of data without splits, and overrides that change nothing in how other data are read.

    Raises:
        ConfigError: with a line for each.
    """
    if is_path(data) and has_split:
        raise ConfigError(f"--split: {data} is taken whole; leave --split out")
    if overrides and not data:
        raise ConfigError(
            f"{overrides[0]}: is for other data than the run's own; name them with --data, or leave it out"
        )
    check_data_overrides(overrides)


def reading_config(config: ExperimentConfig, data: str | None, overrides: Sequence[str]) -> ExperimentConfig:
    """The config of a run, as its own data or others are read by it."""
    from impresa.config.compose import with_overrides

    if data:  # the run's own images, under names that other data may have too
        config = replace(config, dataset=replace(config.dataset, image_root=None))
    return with_overrides(config, overrides) if overrides else config


def with_splits(dataset: DatasetConfig, data: str | None) -> DatasetConfig:
    """The data that have splits: the embedded ones if `data` names them, else those of the run."""
    return (
        replace(dataset, source="auto", train_path=EMBEDDED, val_path=None, test_path=None)
        if data == EMBEDDED
        else dataset
    )


def open_data(dataset: DatasetConfig, data: str | None, split: Split, reading: Reading) -> tuple[Source, str]:
    """A split of the data, or all of those that have none, and their name in the results."""
    from impresa.data.sources import open_path, open_source
    from impresa.tasks.samples import name_of_data

    if data and is_path(data):
        return open_path(dataset, data, reading), data
    dataset = with_splits(dataset, data)
    return open_source(dataset, split, reading), name_of_data(dataset, split)
