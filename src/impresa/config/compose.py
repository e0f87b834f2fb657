"""From a config's name and overrides to a checked experiment. The only module that knows Hydra and OmegaConf.

Hydra's defaults lists, config groups and override grammar are used, and nothing else of it: no plugins, no global
state, no working directory, no logging, no run folder. Its public `compose` reads files by itself, where the guide's
short paths must be expanded file by file and untrusted YAML checked first; another reader would have to be a plugin.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, cast

from hydra._internal.config_repository import CachingConfigRepository, ConfigRepository, IConfigRepository
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.defaults_list import DefaultsList, create_defaults_list
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override, Quote, QuotedString, Sweep
from hydra.errors import HydraException, MissingConfigException
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from impresa.config.describe import Fault, did_you_mean, listed, raise_faults, show
from impresa.config.experiment import ExperimentConfig
from impresa.config.locations import located
from impresa.config.memory_vlm import SCHEMAS, expand_short_overrides, expand_short_paths
from impresa.config.paths import find_config, shipped_folder, shipped_names
from impresa.config.tree import holds, leaves, locate, lookup, nested, to_tree, without
from impresa.config.validate import experiment_from_tree, is_guide, left_over
from impresa.config.yaml_text import has_interpolation, one_line, read_mapping, read_scalar
from impresa.errors import ConfigError
from impresa.run_dir.layout import ENVIRONMENT, MANIFEST, PATHS, PREPROCESSING, WEIGHTS

logger = logging.getLogger(__name__)

_MAIN = "__main__"
_MARKS = (ENVIRONMENT, MANIFEST, PATHS, PREPROCESSING, WEIGHTS)
"""Files of which a run has one at least from its start on."""
_OF_STUDIES = frozenset(("base", "switches"))
"""Keys of a study, which no config has."""
_KEY = re.compile(r"[A-Za-z_][\w-]*(\.[\w-]+)*")
_WORD = re.compile(r"(?!(?:null|true|false|nan|inf)\Z)[a-z_][\w./-]*", re.IGNORECASE)
"""Text that needs no quotes inside a list."""
MAX_VALUES = 1000
"""Of a sweep: a range can be endless."""


def load_experiment(name: str | Path | None = None, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """The experiment `name` with `overrides` applied, checked.

    Args:
        name: a shipped config, or the path of a YAML file in either dialect; None is `default`.
        overrides: `key=value` strings in Hydra's grammar, or `group=option`.

    Raises:
        ConfigError: a file, an override or a value is wrong; one line per fault.
    """
    tree, faults = _load(name, overrides)
    return experiment_from_tree(_without_left_over(tree, overrides), faults)


def _without_left_over(tree: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The tree without the keys of a file that only the backbone used which an override has replaced; a line names
    them. What overrides set themselves stays, and is refused if it fits no more."""
    typed = {text.lstrip("+").partition("=")[0] for text in overrides}
    parts = {key.partition(".")[0] for key in typed if key.endswith("_encoder.backbone")}
    if not parts or is_guide(tree):
        return tree
    dropped = {
        key for key in left_over(tree, parts) if not any(other == key or other.startswith(f"{key}.") for other in typed)
    }
    if dropped:
        logger.info(f"{listed(sorted(dropped), 'and')}: left out, they were for the backbone that is replaced")
    return without(tree, dropped)


def with_overrides(config: ExperimentConfig, overrides: Sequence[str]) -> ExperimentConfig:
    """An experiment with `key=value` overrides applied, checked; without groups, which only files choose.

    Raises:
        ConfigError: an override or a value is wrong; one line per fault.
    """
    parser, faults = OverridesParser.create(), list[Fault]()
    tree = OmegaConf.create(_escaped(to_tree(config)))
    read = (_read_override(parser, text, faults) for text in overrides)
    _set_values(tree, [(key, value) for key, value in filter(None, read)], faults)
    return experiment_from_tree(_resolve(tree, faults), faults)


def split_sweeps(name: str | Path, overrides: Sequence[str]) -> tuple[list[str], dict[str, tuple[Any, ...]]]:
    """The overrides that give one value, and the values of each key that is given several, the last time it is.

    Args:
        name: the config that they are for, which knows the options of a group.
        overrides: as for `load_experiment`, and sweeps in Hydra's grammar: `a=1,2`, `choice`, `range`, and `glob` for a
            group. Faults of those that are no sweeps are left for it.

    Raises:
        ConfigError: values cannot be listed, or there are none, or too many; one line per fault.
    """
    parser, faults = OverridesParser.create(), list[Fault]()
    single: list[str] = []
    swept: dict[str, tuple[Any, ...]] = {}
    for text in overrides:
        key, equals, value_text = text.lstrip("+").partition("=")
        sweep = None if _spelling_fault(text, key, equals) else _parsed(parser, value_text)
        if sweep is None or not sweep.is_sweep_override():
            single.append(text)
        elif values := _swept_values(name, key, value_text, sweep, faults):
            swept[key] = values
    raise_faults(faults)
    return single, swept


def _swept_values(name: str | Path, key: str, text: str, sweep: Override, faults: list[Fault]) -> tuple[Any, ...]:
    """The values that a sweep stands for; none, with a fault, where they cannot be told."""
    content: Any = sweep._value
    if sweep.is_interval_sweep():
        faults.append(Fault(key, f"{text} stands for endlessly many values; write range or choice"))
        return ()
    if isinstance(content, Glob):
        files = [_Files(find_config(str(name)).parent), _Files(shipped_folder())]
        options = sorted({path.stem for source in files for path in (source.folder / key).glob("*.yaml")})
        if not (values := content.filter(options)):
            why = f"matches none of {listed(options, 'and')}" if options else "is for groups, and this is none"
            faults.append(Fault(key, f"{text} {why}; list the values"))
        return tuple(values)
    content.shuffle = False  # it would only be another order of the same runs
    try:
        found = list(islice(sweep.sweep_iterator(), MAX_VALUES + 1))
    except (HydraException, ArithmeticError, ValueError) as error:
        faults.append(Fault(key, f"{text} cannot be listed ({one_line(error)}); list the values"))
        return ()
    if not found or len(found) > MAX_VALUES:
        number = f"more than {MAX_VALUES}" if found else "no"
        faults.append(Fault(key, f"{text} stands for {number} values; list a few"))
        return ()
    return tuple(map(Override._convert_value, found))


def override_of(key: str, value: Any) -> str:
    """`key=value` for a value that was read from YAML or out of a sweep, which reads back as the same."""
    parser = OverridesParser.create()
    if isinstance(value, str) and _parse_value(parser, key, value) == value:
        parsed = _parsed(parser, value)
        if parsed is None or not parsed.is_sweep_override():
            return f"{key}={value}"
    return f"{key}={_in_grammar(value)}"


def _in_grammar(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_in_grammar, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{_in_grammar(key)}:{_in_grammar(item)}' for key, item in value.items())}}}"
    if isinstance(value, str):
        return value if _WORD.fullmatch(value) else QuotedString(value, Quote.single).with_quotes()
    return "null" if value is None else str(value).lower()


def load_tree(name: str | Path | None = None, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The composed tree in the dialect that it is written in, `${...}` resolved, before validation."""
    tree, faults = _load(name, overrides)
    raise_faults(faults)
    return tree


def _load(name: str | Path | None, overrides: Sequence[str]) -> tuple[dict[str, Any], list[Fault]]:
    """The composed tree without faulty keys, and the faults of overrides and interpolations."""
    file = find_config("default" if name is None else str(name))
    faults: list[Fault] = []
    try:
        return _resolve(_compose(file, overrides, faults), faults), faults
    except (HydraException, OmegaConfBaseException, ValueError, RecursionError) as error:
        raise ConfigError(f"{file}: cannot be composed ({one_line(error)}); fix it there") from None


def read_config(path: Path) -> ExperimentConfig:
    """The experiment in a run's `config.yaml`, which is written out in full.

    Raises:
        ConfigError: the file is missing, broken or does not fit, or asks for a value of this machine by `${...}`.
    """
    faults: list[Fault] = []
    tree = _resolve(OmegaConf.create(expand_short_paths(located(_read_written_out(path), path))), faults)
    return experiment_from_tree(tree, faults)


def to_yaml(config: Any) -> str:
    """A config dataclass or a tree as YAML that reads back as the same config."""
    return OmegaConf.to_yaml(OmegaConf.create(_escaped(to_tree(config))))


def is_study(tree: Mapping[Any, Any]) -> bool:
    """True for the mapping in a YAML file that says which configs are compared, and is none itself."""
    return not _OF_STUDIES.isdisjoint(tree)


def _read(file: Path) -> dict[str, Any]:
    """The mapping in a YAML file; that of a run, which a stranger may have made, must be written out."""
    if not any((file.parent / mark).exists() for mark in _MARKS):
        if is_study(tree := read_mapping(file)):
            raise ConfigError(f"{file}: is a study of several configs, and none itself; run it with `impresa ablate`")
        return tree
    return located(_read_written_out(file), file)


def _read_written_out(file: Path) -> dict[str, Any]:
    """The mapping in a run's YAML file: what a stranger wrote reads neither the environment nor other files."""
    tree = read_mapping(file)
    if "defaults" in tree:
        raise ConfigError(f"{file}: defaults: a run's config builds on no other file; write the values out")
    for key, value in leaves(tree):
        if has_interpolation([key, value]):
            fault = f"{show(value)} is filled in from elsewhere, which a run's config never is"
            raise ConfigError(f"{file}: {key}: {fault}; write the value out")
    return tree


class _Files(FileConfigSource):
    """Hydra's view of a folder of YAML files, read by our own reader."""

    def __init__(self, folder: Path, main: Path | None = None) -> None:
        super().__init__(provider="impresa", path=f"{self.scheme()}://{folder}")
        self.folder = folder
        self.main = main

    def is_group(self, config_path: str) -> bool:
        return any((self.folder / config_path).glob("*.yaml"))

    def is_config(self, config_path: str) -> bool:
        return self._file(config_path) is not None

    def load_config(self, config_path: str) -> ConfigResult:
        file = cast(Path, self._file(config_path))  # Hydra asks `is_config` first.
        tree = _read(file)
        header = self._get_header_dict(file.read_text(encoding="utf-8-sig")[:512])
        package = [] if header["package"] == "_global_" else config_path.split("/")[:-1]
        tree = _expanded_in(".".join(package), tree)
        if isinstance(tree.get("defaults"), list) and "_self_" not in tree["defaults"]:
            tree["defaults"].append("_self_")  # A file's own keys override those that it builds on.
        if "hydra" in tree:
            raise ConfigError(f"{file}: hydra: configures Hydra itself, which only composes files here; leave it out")
        return ConfigResult(provider=self.provider, path=str(file), config=OmegaConf.create(tree), header=header)

    def _file(self, config_path: str) -> Path | None:
        """The file of a config; the main one is found as `_MAIN` only, so that it can inherit from one of its name."""
        if config_path == _MAIN:
            return self.main
        file = self.folder / (config_path if config_path.endswith(".yaml") else f"{config_path}.yaml")
        return file if file.is_file() and file != self.main else None


def _expanded_in(package: str, tree: dict[str, Any]) -> dict[str, Any]:
    """`tree` with the guide's short paths expanded, when it will be put under the dotted `package`."""
    expanded = expand_short_paths(nested(package, tree) if package else tree)
    return cast(dict[str, Any], lookup(expanded, package)) if package else expanded


def _compose(file: Path, overrides: Sequence[str], faults: list[Fault]) -> DictConfig:
    """Files, groups and overrides merged; faults of overrides are appended to `faults`."""
    files = ConfigRepository(ConfigSearchPathImpl())
    files.sources = [_Files(file.parent, main=file), _Files(shipped_folder())]
    repository = CachingConfigRepository(files)
    config = OmegaConf.create()
    try:
        groups, values = _parse_overrides(file, overrides, repository, faults)
        for item in _defaults(repository, groups).defaults:
            part = cast(ConfigResult, repository.load_config(cast(str, item.config_path))).config
            config.merge_with(OmegaConf.create(nested(item.package, part)) if item.package else part)
    except MissingConfigException as error:
        wanted, options = str(error.missing_cfg_file), list(map(str, error.options or shipped_names()))
        fix = f"{did_you_mean(wanted, options)}there are {listed(options, 'and')}"
        raise ConfigError(f"{file}: its defaults name {wanted}, which does not exist; {fix}") from None
    _set_values(config, values, faults)
    return config


def _set_values(config: DictConfig, values: Sequence[tuple[str, Any]], faults: list[Fault]) -> None:
    for key, value in values:
        try:
            OmegaConf.update(config, key, value, merge=True, force_add=True)
        except (OmegaConfBaseException, ValueError, TypeError, IndexError) as error:
            faults.append(Fault(key, f"cannot be set to {show(value)} ({_reason(error)}); write a plain value"))


def _defaults(repository: IConfigRepository, groups: list[Override]) -> DefaultsList:
    return create_defaults_list(
        repo=repository, config_name=_MAIN, overrides_list=groups, prepend_hydra=False, skip_missing=False
    )


def _parse_overrides(
    file: Path, overrides: Sequence[str], repository: IConfigRepository, faults: list[Fault]
) -> tuple[list[Override], list[tuple[str, Any]]]:
    """Overrides of groups, for Hydra, and of values, as (key, value)."""
    chosen = _defaults(repository, []).overrides.known_choices
    parser = OverridesParser.create()
    groups: list[Override] = []
    values: list[tuple[str, Any]] = []
    for text in overrides:
        if (read := _read_override(parser, text, faults)) is None:
            continue
        key, value = read
        if not (repository.group_exists(key) and isinstance(value, str)):
            values.append((key, value))
        elif value not in (options := repository.get_group_options(key)):
            faults.append(Fault(key, f"unknown option {value}; it must be {listed(options)}"))
        elif key not in chosen:
            faults.append(Fault(key, f"{file.stem} does not choose a {key}, so it cannot be replaced; leave it out"))
        else:
            groups.append(parser.parse_override(f"{key}={value}"))
    return groups, expand_short_overrides(values, faults)


def _read_override(parser: OverridesParser, text: str, faults: list[Fault]) -> tuple[str, Any] | None:
    """Key and value of an override; None, with a fault, for one that cannot be meant."""
    key, equals, value_text = text.lstrip("+").partition("=")
    if fault := _spelling_fault(text, key, equals):
        faults.append(fault)
        return None
    value = _parse_value(parser, key, value_text)
    if isinstance(value, Sweep):
        faults.append(Fault(key, f"{value_text} stands for several runs; give one value, a comma in quotes"))
        return None
    return key, value


def _spelling_fault(text: str, key: str, equals: str) -> Fault | None:
    if text.startswith("~"):
        return Fault(text, "keys cannot be deleted; set it to null or to its default")
    if not equals:
        return Fault(text, "is no override; write key=value")
    if not _KEY.fullmatch(key):
        return Fault(key or text, "is no key; write it as in optimization.lr=1e-4")
    if key.split(".", maxsplit=1)[0] == "hydra":
        return Fault(key, "configures Hydra itself, which only composes files here; leave it out")
    return None


def _parse_value(parser: OverridesParser, key: str, text: str) -> Any:
    """The value in Hydra's grammar; what that grammar cannot read is text as it is, and so is what must be text."""
    parsed = _parsed(parser, text)
    if parsed is None:
        return text
    value = parsed.value()
    if isinstance(value, list | dict) and _may_be(tuple, key):
        return value
    return text if _may_be(str, key) and value is not None and not isinstance(value, str) else value


def _parsed(parser: OverridesParser, value_text: str) -> Override | None:
    """An override with this value; None where the grammar cannot read it."""
    try:
        return parser.parse_override(f"key={value_text}")
    except (HydraException, ValueError):  # Python reads no number of more than 4300 digits
        return None


def _may_be(kind: type, key: str) -> bool:
    """True if the value of a key may be text (`str`), items of a list included, or a list (`tuple`), in a dialect."""
    fields = (locate(schema, key.split(".")) for schema in SCHEMAS.values())
    return any(path == key and holds(annotation, kind) for path, annotation in fields)


def _plain(config: DictConfig, *, resolve: bool = False) -> dict[str, Any]:
    return cast(dict[str, Any], OmegaConf.to_container(config, resolve=resolve))


def _resolve(config: DictConfig, faults: list[Fault]) -> dict[str, Any]:
    """The plain tree with every `${...}` resolved; keys that cannot be resolved are left out, with a fault."""
    tree, unresolved = _plain(config), {}
    for path, value in leaves(tree):
        if value == "???":
            unresolved[path] = "has no value yet (???); give it one"
        elif "${" in str(value) and (reason := _why_unresolvable(config, path)):
            unresolved[path] = f"{value} cannot be resolved ({reason}); name an existing key, or write the value"
    faults += [Fault(path, text) for path, text in unresolved.items()]
    raw = without(tree, set(unresolved))
    return cast(dict[str, Any], _filled_in(raw, _plain(OmegaConf.create(raw), resolve=True)))


def _filled_in(raw: Any, resolved: Any, key: str = "") -> Any:
    """`resolved` with the text that `${...}` in `raw` has become read as a value, unless its key is one of text: what
    comes from the environment is always text.
    """
    if isinstance(resolved, dict):
        below = raw if isinstance(raw, dict) else dict.fromkeys(resolved, raw)
        return {name: _filled_in(below[name], value, f"{key}.{name}".lstrip(".")) for name, value in resolved.items()}
    if isinstance(resolved, list):
        items = raw if isinstance(raw, list) else [raw] * len(resolved)
        return [_filled_in(item, value, key) for item, value in zip(items, resolved, strict=True)]
    is_filled = isinstance(resolved, str) and has_interpolation(raw) and not _may_be(str, key)
    return read_scalar(resolved) if is_filled else resolved


def _why_unresolvable(config: DictConfig, path: str) -> str | None:
    try:
        value = OmegaConf.select(config, path)
        if OmegaConf.is_config(value):
            OmegaConf.to_container(value, resolve=True)
    except (OmegaConfBaseException, RecursionError, ValueError) as error:
        return _reason(error)
    return None


def _reason(error: Exception) -> str:
    """The first line of what OmegaConf says; the rest repeats the key."""
    if isinstance(error, RecursionError):
        return "it leads back to itself"
    return str(error).split("\n", maxsplit=1)[0].strip()


def _escaped(tree: Any) -> Any:
    """Text that holds a literal `${` written so that it is read back as text."""
    if isinstance(tree, dict):
        return {key: _escaped(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_escaped(value) for value in tree]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", tree) if isinstance(tree, str) else tree
