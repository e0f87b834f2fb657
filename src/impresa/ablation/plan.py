"""The runs that a study needs, each with its checked config and the folder that its identity names."""

from __future__ import annotations

from dataclasses import dataclass

from impresa.ablation.study import Variant
from impresa.config.experiment import ExperimentConfig


@dataclass(frozen=True)
class PlannedRun:
    """One variant with one seed."""

    variant: Variant
    seed: int
    """Of the study."""
    config: ExperimentConfig
    """As `impresa.config.prepare` returns it, with the run's own seed."""
    words: tuple[str, ...]
    """What follows `impresa train`: the config's name and all overrides, the seed's last; not the output directory."""
    folder: str
    """`runs/HASH`, relative to the study's."""
