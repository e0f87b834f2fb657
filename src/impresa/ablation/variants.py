"""The configs that the switches of a study make of its base: which of them differ in effect, and which cannot."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations, product

from impresa.ablation.identity import content, data_fingerprint
from impresa.ablation.study_file import Design, Settings
from impresa.config.compose import load_experiment
from impresa.config.describe import Fault
from impresa.config.experiment import ExperimentConfig
from impresa.config.locations import absolute_paths, paths_of
from impresa.config.relevance import idle_keys
from impresa.config.runs import prepare
from impresa.config.tree import leaves, to_tree
from impresa.errors import ConfigError, ImpresaError


@dataclass(frozen=True)
class Flip:
    """A switch at one of its values."""

    key: str
    value: str
    overrides: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.key}={self.value}"


Flips = tuple[Flip, ...]


def name_of(flips: Flips) -> str:
    """The name of a variant, by what it changes."""
    return ", ".join(flip.name for flip in flips)


class Configs:
    """The configs that flips make of a base, each composed once.

    Args:
        base: a shipped config, or the path of a YAML file.
        overrides: of the base.
    """

    def __init__(self, base: str, overrides: Sequence[str]) -> None:
        self._base, self._overrides = base, tuple(overrides)
        self._composed: dict[Flips, ExperimentConfig | ImpresaError] = {}
        self._effects: dict[Flips, str | None] = {}
        self._fingerprints: dict[tuple[tuple[str, str], ...], str] = {}

    def config(self, flips: Flips = ()) -> ExperimentConfig:
        """The config, prepared. Raises an `ImpresaError` with a line for each fault."""
        if flips not in self._composed:
            changed = chain.from_iterable(flip.overrides for flip in flips)
            try:
                self._composed[flips] = prepare(load_experiment(self._base, [*self._overrides, *changed]))
            except ImpresaError as error:
                self._composed[flips] = error
        found = self._composed[flips]
        if isinstance(found, ImpresaError):
            raise found
        return found

    def fingerprint(self, config: ExperimentConfig) -> str:
        """`data_fingerprint`, taken once of the same paths."""
        paths = tuple(absolute_paths(config).items())
        if paths not in self._fingerprints:
            self._fingerprints[paths] = data_fingerprint(config)
        return self._fingerprints[paths]

    def effect(self, flips: Flips) -> str | None:
        """All that results depend on, as text: equal ones make the same model. None for a config with faults."""
        if flips not in self._effects:
            try:
                config = self.config(flips)
            except ImpresaError:
                self._effects[flips] = None
            else:
                idle = idle_keys(config)
                values = {key: value for key, value in content(config).items() if key not in idle}
                self._effects[flips] = json.dumps([values, self.fingerprint(config)], sort_keys=True)
        return self._effects[flips]

    def is_base(self, flip: Flip) -> bool:
        """True for a value that the base has already."""
        try:
            return self.config((flip,)) == self.config()
        except ImpresaError:
            return False  # it may be sound beside others

    def moves(self, flip: Flip, flips: Flips) -> bool:
        """True if a flip changes something beside the others of `flips`."""
        return self.effect(flips) != self.effect(tuple(other for other in flips if other != flip))

    def why_idle(self, flip: Flip, flips: Flips) -> str:
        """Why it changes nothing there."""
        without = self.config(tuple(other for other in flips if other != flip))
        before, now = (dict(leaves(to_tree(config))) for config in (without, self.config(flips)))
        idle = idle_keys(without)
        key = next((key for key in sorted(now | before) if now.get(key) != before.get(key)), flip.key)
        other = "leads to equal files" if key in paths_of(without) else "is none of the keys that results depend on"
        return Fault(key, idle.get(key, other)).line().replace(":", "", 1)


def choose(configs: Configs, switches: Mapping[str, Settings], design: Design) -> tuple[list[Flips], list[str]]:
    """The variants beside the base, each by its flips, and notices of those that are the same as another.

    Raises:
        ConfigError: the base or a variant has faults, or a value cannot change anything; one line for each.
    """
    configs.config()
    moving, faults = _moving(configs, switches)
    _raise([*faults, *(_overlaps(moving) if design == "grid" else ())])
    candidates = list(_candidates(moving, switches, design))
    for flips in candidates:
        try:
            configs.config(flips)
        except ImpresaError as error:
            faults += (f"{name_of(flips)}: {line}" for line in error.lines)
    _raise(faults)
    for flip in chain.from_iterable(moving.values()):
        tried = [flips for flips in candidates if flip in flips]
        if not any(configs.moves(flip, flips) for flips in tried):
            why = configs.why_idle(flip, tried[0])
            faults.append(f"{flip.name}: changes nothing, for {why}; leave it out, or change the base")
    _raise(faults)
    return _distinct(configs, candidates)


def _moving(configs: Configs, switches: Mapping[str, Settings]) -> tuple[dict[str, list[Flip]], list[str]]:
    """By switch the flips to values that the base does not have, and a line for each switch without any."""
    moving: dict[str, list[Flip]] = {}
    faults: list[str] = []
    for key, settings in switches.items():
        flips = [Flip(key, value, overrides) for value, overrides in settings.items()]
        moving[key] = [flip for flip in flips if not configs.is_base(flip)]
        if not moving[key]:
            values = " and ".join(settings)
            faults.append(f"{key}: {values} is what the base has, so there is nothing to compare; give another value")
    return moving, faults


def _overlaps(moving: Mapping[str, Sequence[Flip]]) -> Iterator[str]:
    """A line for each two switches that set the same key, of which a grid would keep the last."""
    keys = {
        switch: {text.lstrip("+").partition("=")[0] for flip in flips for text in flip.overrides}
        for switch, flips in moving.items()
    }
    for (one, its), (other, others) in combinations(keys.items(), 2):
        both = [key for key in sorted(its) for second in others if f"{key}.".startswith(f"{second}.")]
        both += [key for key in sorted(others) for second in its if f"{key}.".startswith(f"{second}.")]
        if both:
            yield f"{other}: sets {both[0]} as {one} does, and a grid has all combinations; make one switch of the two"


def _candidates(moving: dict[str, list[Flip]], switches: Mapping[str, Settings], design: Design) -> Iterator[Flips]:
    """The combinations that a design asks for, but for the base itself."""
    if design == "one-at-a-time":
        yield from ((flip,) for flip in chain.from_iterable(moving.values()))
        return
    levels: list[list[Flip | None]] = [
        [*([None] if len(flips) < len(switches[key]) else []), *flips] for key, flips in moving.items()
    ]
    for chosen in product(*levels):
        if flips := tuple(flip for flip in chosen if flip is not None):
            yield flips


def _distinct(configs: Configs, candidates: Sequence[Flips]) -> tuple[list[Flips], list[str]]:
    """The candidates without those that make the same model as the base or an earlier one, and a notice of each."""
    first: dict[str | None, Flips] = {configs.effect(()): ()}
    notices: list[str] = []
    for flips in candidates:
        same = first.setdefault(configs.effect(flips), flips)
        if same != flips:
            notices.append(f"{name_of(flips)}: trains the same model as {name_of(same) or 'the base'}; it is left out")
    return [flips for flips in first.values() if flips], notices


def _raise(faults: Sequence[str]) -> None:
    if faults:
        raise ConfigError(*faults)
