"""The experiment of a command; the profile `own` looks at the data first, and says on standard error what it chose."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from impresa.config.experiment import ExperimentConfig
from impresa.foreign_text import printable

if TYPE_CHECKING:
    from impresa.own.choices import Chosen


def load_or_choose(name: str | None, overrides: Sequence[str]) -> ExperimentConfig:
    """The experiment `name` with `overrides` applied, checked.

    Raises:
        ConfigError: a setting is wrong, or `own` is given no data.
        DataError: `own` cannot read the data.
    """
    from impresa.config.compose import load_experiment
    from impresa.training.processes import is_main_process

    if not is_own(name):
        return load_experiment(name, overrides)
    from impresa.own.choices import choose

    chosen = choose(overrides)
    if is_main_process():
        _print(chosen)
    return chosen.config


def say_how_long(name: str | None, config: ExperimentConfig) -> None:
    """For `own`, and one process: how long the run will take, by some of its steps."""
    from impresa.training.processes import this_process

    if not is_own(name) or this_process().world_size > 1:
        return
    from impresa.run_dir.cost import duration
    from impresa.training.pace import pace_elsewhere

    pace, start = pace_elsewhere(config, os.environ)
    whole = duration(max(start + pace.training_seconds, 1))
    print(f"time: about {whole}, by {pace.num_steps} of its steps; fewer trainer.epochs take less", file=sys.stderr)


def is_own(name: str | None) -> bool:
    """True for the name or the path of the profile that looks at the data."""
    from impresa.config.paths import find_config, shipped_folder

    return name is not None and find_config(name) == shipped_folder() / "own.yaml"


def _print(chosen: Chosen) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(stderr=True)
    table = Table("setting", "chosen", "why", title=_data(chosen), title_justify="left", title_style="")
    for choice in chosen.choices:
        table.add_row(*(Text(printable(str(cell))) for cell in (choice.key, choice.value, choice.reason)))
    console.print(table)
    for line in chosen.warnings:
        console.print(Text(f"warning: {printable(line)}", style="yellow"), soft_wrap=True)


def _data(chosen: Chosen) -> str:
    found = chosen.survey
    different = f"{found.num_different_captions:,} different of {found.num_captions:,} captions"
    return f"{found.num_images:,} images, {different}; shorter sides of {found.side_px:,} px"
