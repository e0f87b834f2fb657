"""The runs that a study needs, each with its checked config and the folder that its identity names."""

from __future__ import annotations

from dataclasses import dataclass, replace

from impresa.ablation.identity import code_version, identity
from impresa.ablation.study import SEED_KEYS, Study, Variant, compared
from impresa.config.compose import load_tree
from impresa.config.experiment import ExperimentConfig
from impresa.config.paths import expanded
from impresa.config.validate import is_guide

RUNS = "runs"
"""Folder of the runs in that of the study."""


@dataclass(frozen=True)
class PlannedRun:
    """One variant with one seed."""

    variant: Variant
    seed: int
    """Of the study."""
    config: ExperimentConfig
    """As `impresa.config.prepare` returns it, with the run's own seed."""
    words: tuple[str, ...]
    """Words after `impresa train`: the config's name and overrides, the seed's last; no output directory."""
    folder: str
    """`runs/HASH`, relative to the study's."""


def plan(study: Study) -> list[PlannedRun]:
    """All runs of a study, seed by seed and the base first, so that what is there early is whole comparisons.

    Raises:
        ConfigError: as `impresa.ablation.study.compared`; nothing has run then.
    """
    found = compared(study)
    seed_key = SEED_KEYS[is_guide(load_tree(study.base, study.overrides))]
    code = code_version()
    runs = []
    for seed in study.seeds:
        for each in found:
            own_seed = seed + each.variant.seed_offset
            config = replace(each.config, seed=own_seed)
            runs.append(
                PlannedRun(
                    variant=each.variant,
                    seed=seed,
                    config=config,
                    words=(_word(study.base), *study.overrides, *each.variant.overrides, f"{seed_key}={own_seed}"),
                    folder=f"{RUNS}/{identity(config, code, each.data)}",
                )
            )
    return runs


def _word(base: str) -> str:
    """The base as an argument; a path that would be read as an option or an override is written in full."""
    return str(expanded(base).absolute()) if base.startswith(("-", "~")) or "=" in base else base
