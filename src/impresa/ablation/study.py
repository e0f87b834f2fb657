"""A study: a base config, the switches that are flipped in it, the seeds, and the metrics that are compared."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from impresa.ablation.metrics import default_metric, fault_of_metric
from impresa.ablation.study_file import Design, GivenStudy, Settings, read_study, settings_of
from impresa.ablation.variants import Configs, choose, name_of
from impresa.config.compose import load_experiment, split_sweeps
from impresa.config.describe import did_you_mean, listed
from impresa.config.experiment import ExperimentConfig
from impresa.config.memory_vlm import GUIDE_KEYS
from impresa.errors import ConfigError

__all__ = ["BASE", "NULL", "Design", "Study", "Switch", "Variant", "compared", "make_study", "variants_of"]

logger = logging.getLogger(__name__)

BASE = "base"
"""Name of the variant that all others are compared with."""
NULL = "null"
"""Name of the control: the base's config with other seeds, which must show no difference."""
DEFAULT_SEEDS = 5
MAX_RUNS = 1000
"""Of a study: a year of runs of nine hours."""
_NULL_OFFSET = 1_000_000
"""Of the control's seeds; far, so that it stays where it is when a study gets more seeds."""
_LAST_SEED = 2**32 - 1
SEED_KEYS = ("seed", GUIDE_KEYS["seed"])


@dataclass(frozen=True)
class Switch:
    """A key, a config group, or a name, and the values that it is given."""

    key: str
    values: tuple[str, ...]
    """Each as it stands after `key=` in an override; under a name, what the variants are called."""
    settings: tuple[tuple[str, ...], ...] = ()
    """Under a name, the overrides that each variant stands for; empty where that is `key=value`."""

    def options(self) -> Settings:
        """The overrides of each value."""
        settings = self.settings or [(f"{self.key}={value}",) for value in self.values]
        return dict(zip(self.values, settings, strict=True))


@dataclass(frozen=True)
class Variant:
    """One config of a study."""

    name: str
    """`base`, `null`, or its changes joined by ", ", as `vision_encoder.depth=3`."""
    overrides: tuple[str, ...] = ()
    """Its changes of the base, in Hydra's grammar."""
    seed_offset: int = 0
    """Added to each seed of the study: 0 for all but the null control."""


@dataclass(frozen=True)
class Study:
    """The question of an ablation: base, switches, seeds and judge, decided before the first run."""

    base: str
    """A shipped config, or the path of a YAML file."""
    overrides: tuple[str, ...]
    """Overrides of the base that are no switches."""
    switches: tuple[Switch, ...]
    seeds: tuple[int, ...]
    metrics: tuple[str, ...]
    """Names of `impresa.evaluation.figures`; the first one is the judge."""
    design: Design = "one-at-a-time"
    null: bool = False
    """Add the null control."""
    title: str = ""
    """The question that the study asks, for the head of its report."""


@dataclass(frozen=True)
class Compared:
    """A variant, its config as it will be run but for the seed, and the fingerprint of its data."""

    variant: Variant
    config: ExperimentConfig
    data: str


def make_study(
    name: str,
    overrides: Sequence[str],
    *,
    seeds: int | Sequence[int] | None,
    metrics: Sequence[str] | None,
    design: Design | None,
    null: bool,
) -> Study:
    """The study of a config with sweeps, or of a file; what is given here goes before what the file says.

    Args:
        name: a shipped config or study, or the path of a YAML file of either.
        overrides: `key=value` changes the base, a sweep in Hydra's grammar is a switch.
        seeds: their number, counted from the base's own, or which ones; None for the file's, or five.
        metrics: the judge, and others that are shown; None for the file's, or the one of the kind of experiment.
        design: None for the file's, or `one-at-a-time`.
        null: add the null control, as the file may too.

    Raises:
        ConfigError: something is wrong that can be told before the variants are composed; one line per fault.
    """
    given = read_study(name)
    plain, switches = _with_sweeps(given, overrides)
    seed_switches = [key for key, options in switches.items() if any(map(_sets_seed, options.values()))]
    if seed_switches:
        fix = "all variants are trained on the same seeds, given by --seeds 5 or --seeds 0,1,2"
        raise ConfigError(*(f"{key}: sets the seed, which is no switch; {fix}" for key in seed_switches))
    null = null or given.file.null
    if not switches and not null:
        raise ConfigError(f"{name}: nothing is compared; give a switch its values, as in losses.type=clip,siglip")
    of_base = (*given.overrides, *plain)
    config = load_experiment(given.base, of_base)
    wanted = next(number for number in (seeds, given.file.seeds, DEFAULT_SEEDS) if number is not None)
    study = Study(
        base=given.base,
        overrides=of_base,
        switches=tuple(_switch(key, options) for key, options in switches.items()),
        seeds=_seeds(wanted, config.seed, of_base),
        metrics=tuple(dict.fromkeys(metrics or given.metrics)) or (default_metric(config),),
        design=design or given.file.design or "one-at-a-time",
        null=null,
        title=given.file.title,
    )
    _check_size(study)
    return study


def variants_of(study: Study) -> tuple[Variant, ...]:
    """All that is compared, the base first, the null control last; each trains another model.

    Raises:
        ConfigError: as `compared`.
    """
    return tuple(found.variant for found in compared(study))


def compared(study: Study) -> list[Compared]:
    """The variants with their configs, all checked before anything runs. What is left out is said by a warning.

    Raises:
        ConfigError: a variant has faults, or cannot have the metric that judges it, or a value changes nothing; a line
            for each, with the variant's name.
    """
    configs = Configs(study.base, study.overrides)
    chosen, notices = choose(configs, {switch.key: switch.options() for switch in study.switches}, study.design)
    for notice in notices:
        logger.warning(notice)
    variants = [Variant(BASE)]
    for flips in chosen:
        variants.append(Variant(name_of(flips), tuple(text for flip in flips for text in flip.overrides)))
    found = [
        Compared(variant, config := configs.config(flips), configs.fingerprint(config))
        for variant, flips in zip(variants, [(), *chosen], strict=True)
    ]
    _check_metrics(study, found)
    if study.null:
        found.append(Compared(Variant(NULL, seed_offset=_null_offset(study.seeds)), found[0].config, found[0].data))
    return found


def _with_sweeps(given: GivenStudy, overrides: Sequence[str]) -> tuple[list[str], dict[str, Settings]]:
    """The overrides of the base, and the switches of the file and the command line.

    A name whose variants the file defines is a group: the command line chooses among them.
    """
    single, swept = split_sweeps(given.base, overrides)
    named = {key: options for key, options in given.switches.items() if _is_named(key, options)}
    plain: list[str] = []
    for text in single:
        key, _, value = text.lstrip("+").partition("=")
        plain += _chosen(key, named[key], [value])[value] if key in named else (text,)
    added = {
        key: _chosen(key, named[key], list(map(str, values))) if key in named else settings_of(key, values)
        for key, values in swept.items()
    }
    return plain, given.switches | added


def _switch(key: str, options: Settings) -> Switch:
    return Switch(key, tuple(options), tuple(options.values()) if _is_named(key, options) else ())


def _is_named(key: str, options: Settings) -> bool:
    return any(overrides != (f"{key}={value}",) for value, overrides in options.items())


def _chosen(key: str, options: Settings, names: Sequence[str]) -> Settings:
    for name in names:
        if name not in options:
            hint = did_you_mean(name, options)
            raise ConfigError(f"{key}: has no variant {name}; {hint}there are {listed(options, 'and')}")
    return {name: options[name] for name in names}


def _sets_seed(overrides: Sequence[str]) -> bool:
    return any(text.lstrip("+").partition("=")[0] in SEED_KEYS for text in overrides)


def _seeds(wanted: int | Sequence[int], first: int, overrides: Sequence[str]) -> tuple[int, ...]:
    """The seeds of a study: so many from the first on, or those that are listed."""
    if isinstance(wanted, int):
        if not 1 <= wanted <= MAX_RUNS:
            raise ConfigError(f"seeds: got {wanted}; it must be 1 to {MAX_RUNS}, or a list of seeds")
        return tuple(range(first, first + wanted))
    if _sets_seed(overrides):
        raise ConfigError(f"{SEED_KEYS[0]}: is given beside the list of seeds, which takes its place; leave it out")
    return tuple(wanted)


def _check_size(study: Study) -> None:
    seeds = study.seeds
    if not seeds or len(set(seeds)) < len(seeds) or min(seeds) < 0 or max(seeds) > _LAST_SEED:
        raise ConfigError(f"seeds: got {listed(seeds, 'and'):.60}; give different whole numbers from 0 to {_LAST_SEED}")
    numbers = [len(switch.values) for switch in study.switches]
    variants = math.prod(numbers) if study.design == "grid" else sum(numbers)
    runs = (1 + variants + study.null) * len(seeds)
    if max(runs, sum(numbers)) > MAX_RUNS:
        fault = f"{1 + variants + study.null} variants with {len(seeds)} seeds are {runs} runs"
        raise ConfigError(f"study: {fault}, more than {MAX_RUNS}; give fewer values or seeds")


def _check_metrics(study: Study, found: Sequence[Compared]) -> None:
    """Refuse a judge that a variant will not have, and a further metric that no variant has."""
    judge, *others = study.metrics
    faults: list[str] = []
    for each in found:
        if fault := fault_of_metric(judge, each.config):
            faults.append(f"metric: {fault}" if each.variant.name == BASE else f"{each.variant.name}: metric {fault}")
            if each.variant.name == BASE:
                break
    for name in others:
        lacking = [fault_of_metric(name, each.config) for each in found]
        faults += [f"metric: {lacking[0]}"] if all(lacking) else []
    if faults:
        raise ConfigError(*faults)


def _null_offset(seeds: Sequence[int]) -> int:
    """An offset that leads to other seeds than those of the study."""
    for offset in _offsets():
        moved = {seed + offset for seed in seeds}
        if moved.isdisjoint(seeds) and min(moved) >= 0 and max(moved) <= _LAST_SEED:
            return offset
    raise ConfigError("seeds: leave the null control no others; give seeds that lie closer together")


def _offsets() -> Iterator[int]:
    for factor in range(1, 2 * MAX_RUNS):
        yield from (factor * _NULL_OFFSET, -factor * _NULL_OFFSET)
