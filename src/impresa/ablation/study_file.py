"""A study as a YAML file: `base` and `switches`, and what else is decided beforehand."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from impresa.config.compose import is_study, override_of, split_sweeps
from impresa.config.describe import Fault, raise_faults, show
from impresa.config.paths import expanded, find_config
from impresa.config.tree import leaves
from impresa.config.types import Count, Flag, Name, Names, Section, Seed, Text, listed_names
from impresa.config.validate import section_from_tree
from impresa.config.yaml_text import read_mapping
from impresa.errors import ConfigError

Design = Literal["one-at-a-time", "grid"]
Settings = dict[str, tuple[str, ...]]
"""The values of a switch: how each is called, and the overrides that it stands for."""
_NAME = re.compile(r"\w[\w .+/-]*")
_SIGNS = "letters, digits, spaces and . + / -"


@dataclass(frozen=True, kw_only=True)
class StudyFile(Section):
    """The keys of the file."""

    title: Text = ""
    """The question that the study asks, for the head of its report."""
    base: Name | None = None
    """The config that all others are compared with: a shipped one, or a YAML file, here or beside the study."""
    overrides: dict[str, Any] | tuple[Name, ...] = ()
    """Changes of the base itself: keys with values, or `key=value`."""
    switches: dict[str, Any] = field(default_factory=dict)
    """By key, or by group, the values that are tried: a list, or a sweep as on the command line. By any other name, the
    variants that set several keys: each has a name and the keys that it sets."""
    seeds: Count | tuple[Seed, ...] | None = None
    """How many seeds, counted from the base's, or which ones. null: five."""
    metric: Names | None = None
    """The metric that judges, and further ones that are shown. null: R@1, or the exact match of a decoder's answers."""
    design: Design | None = None
    """`one-at-a-time` (null is that too) tries each value alone against the base, `grid` all combinations."""
    null: Flag = False
    """Add the control: the base with other seeds, which must show no difference."""


@dataclass(frozen=True)
class GivenStudy:
    """A study as its file gives it, or a config alone, all in overrides."""

    base: str
    overrides: tuple[str, ...]
    switches: dict[str, Settings]
    file: StudyFile

    @property
    def metrics(self) -> tuple[str, ...]:
        return () if self.file.metric is None else tuple(listed_names(self.file.metric))


def read_study(name: str) -> GivenStudy:
    """The study of this name or path; a config is one without switches.

    Raises:
        ConfigError: there is no such file, or it has faults; one line for each.
    """
    path = find_config(name, studies=True)
    # YAML takes the plain key `null` for no key.
    tree = {"null" if key is None else key: value for key, value in read_mapping(path).items()}
    if not is_study(tree):
        return GivenStudy(name, (), {}, StudyFile())
    file = section_from_tree(StudyFile, tree)
    if file.base is None:
        raise ConfigError(f"{path}: base: is missing; name the config that the others are compared with")
    beside = path.parent / expanded(file.base)
    base = str(beside) if beside.suffix and beside.is_file() else file.base
    faults: list[Fault] = []
    switches = {key: _settings(base, key, value, faults) for key, value in file.switches.items()}
    raise_faults(faults)
    return GivenStudy(base, tuple(_overrides(file.overrides)), switches, file)


def settings_of(key: str, values: Sequence[Any]) -> Settings:
    """The values of a switch that is a key or a group."""
    overrides = [override_of(key, value) for value in values]
    return {override.partition("=")[2]: (override,) for override in overrides}


def _settings(base: str, key: str, given: Any, faults: list[Fault]) -> Settings:
    """The values of a switch as the file gives them; faults are appended to `faults`."""
    where = f"switches.{key}"
    if not _NAME.fullmatch(key):
        faults.append(Fault("switches", f"{show(key)} cannot name a switch; use a key, or {_SIGNS}"))
        return {}
    if isinstance(given, Mapping):
        faults += _faults_of_options(where, given)
        return {name: tuple(_overrides(keys)) for name, keys in given.items() if isinstance(keys, Mapping)}
    if isinstance(given, str):
        single, swept = split_sweeps(base, [f"{key}={given}"])
        return {given: tuple(single)} if single else settings_of(key, swept[key])
    values = given if isinstance(given, list) else [given]
    if not values:
        faults.append(Fault(where, "has no values; list those that are tried"))
    if sets := [value for value in values if isinstance(value, Mapping)]:
        fix = f"give each set of keys a name, as in {key}: {{short: {show(sets[0])}}}"
        faults.append(Fault(where, f"{show(sets[0])} has no name; {fix}"))
    return {} if sets else settings_of(key, values)


def _faults_of_options(where: str, given: Mapping[str, Any]) -> Iterator[Fault]:
    if not given:
        yield Fault(where, "has no variants; give each a name and the keys that it sets")
    for name, keys in given.items():
        if not isinstance(keys, Mapping):
            fix = f"a list of values stands under the whole key ({where}.{name}: [...]), a variant is a name with keys"
            yield Fault(f"{where}.{name}", f"got {show(keys)}; {fix}")
        elif not _NAME.fullmatch(name):
            yield Fault(where, f"{show(name)} cannot name a variant; use {_SIGNS}")


def _overrides(given: Mapping[str, Any] | Sequence[str]) -> Iterator[str]:
    """Overrides out of keys with values, nested or dotted."""
    if not isinstance(given, Mapping):
        yield from given
        return
    for key, value in leaves(given):
        if value != {}:
            yield override_of(key, value)
