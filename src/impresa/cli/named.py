"""A run or a config, as verbs take either."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from impresa.config.paths import expanded, shipped_names

if TYPE_CHECKING:
    from impresa.config.experiment import ExperimentConfig


def is_config(name: Path) -> bool:
    """True for the name of a config in place of a run: there is no such folder, and it is shipped or a YAML file."""
    return not expanded(str(name)).is_dir() and (str(name) in shipped_names() or name.suffix in (".yaml", ".yml"))


def config_of(name: Path, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """The experiment of a run, or of a config with overrides."""
    if not is_config(name):
        from impresa.run_dir.load import read_run_config

        return read_run_config(name)
    from impresa.config.compose import load_experiment
    from impresa.config.runs import with_projections

    return with_projections(load_experiment(str(name), overrides))
