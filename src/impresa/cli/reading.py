"""The config that data are read with by a run that was trained on others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from impresa.config.experiment import ExperimentConfig


def reading_config(config: ExperimentConfig, overrides: Sequence[str], *, other_data: bool) -> ExperimentConfig:
    """A run's config with overrides of `dataset`.

    Args:
        config: the run's own.
        overrides: of the command line, checked by `check_data_overrides`.
        other_data: the data are not the run's: its own images do not hide others under the same names.
    """
    from impresa.config.compose import with_overrides

    if other_data:
        config = replace(config, dataset=replace(config.dataset, image_root=None))
    return with_overrides(config, overrides) if overrides else config
