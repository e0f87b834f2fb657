"""From a config's name and overrides to a checked experiment. The only module that knows Hydra and OmegaConf.

Hydra's defaults lists, config groups and override grammar are used, and nothing else of it: no plugins, no global
state, no working directory, no logging, no run folder. Its public `compose` reads files by itself, where the guide's
short paths must be expanded file by file and untrusted YAML checked first; another reader would have to be a plugin.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import yaml
from hydra._internal.config_repository import CachingConfigRepository, ConfigRepository, IConfigRepository
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.defaults_list import DefaultsList, create_defaults_list
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Sweep
from hydra.errors import HydraException, MissingConfigException
from hydra.plugins.config_source import ConfigResult
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from impresa.config.describe import Fault, describe, did_you_mean, listed, raise_faults, show
from impresa.config.experiment import ExperimentConfig
from impresa.config.locations import located
from impresa.config.memory_vlm import SCHEMAS, expand_short_overrides, expand_short_paths
from impresa.config.paths import find_config, shipped_folder, shipped_names
from impresa.config.tree import leaves, locate, lookup, nested, to_tree, without
from impresa.config.validate import experiment_from_tree
from impresa.errors import ConfigError

_MAIN = "__main__"
_KEY = re.compile(r"[A-Za-z_][\w-]*(\.[\w-]+)*")
MAX_BYTES = 256 * 1024
_MAX_VALUES = 20_000
_MAX_DEPTH = 40
_PLAIN_TAGS = {f"tag:yaml.org,2002:{kind}" for kind in ("str", "int", "float", "bool", "null", "map", "seq", "merge")}


def load_experiment(name: str | Path | None = None, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """The experiment `name` with `overrides` applied, checked.

    Args:
        name: a shipped config, or the path of a YAML file in either dialect; None is `default`.
        overrides: `key=value` strings in Hydra's grammar, or `group=option`.

    Raises:
        ConfigError: a file, an override or a value is wrong; one line per fault.
    """
    tree, faults = _load(name, overrides)
    return experiment_from_tree(tree, faults)


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
        raise ConfigError(f"{file}: cannot be composed ({_one_line(error)}); fix it there") from None


def read_config(path: Path) -> ExperimentConfig:
    """The experiment in a run's `config.yaml`.

    Raises:
        ConfigError: the file is missing, broken or does not fit.
    """
    faults: list[Fault] = []
    tree = _resolve(OmegaConf.create(expand_short_paths(_read_tree(path))), faults)
    return experiment_from_tree(tree, faults)


def to_yaml(config: Any) -> str:
    """A config dataclass or a tree as YAML that reads back as the same config."""
    return OmegaConf.to_yaml(OmegaConf.create(_escaped(to_tree(config))))


def _read_tree(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; paths of a run's config lead to where they led when it was trained."""
    return located(_plain(read_yaml(path)), path)


def read_yaml(path: Path) -> DictConfig:
    """The mapping in a YAML file, `${...}` not yet resolved; an empty file is an empty mapping.

    The text is checked before OmegaConf's loader sees it, because that loader builds some Python objects from tags and
    expands aliases. Plain PyYAML is not used for values: it reads `5e-4` as a string.

    Raises:
        ConfigError: the file cannot be read or is no plain mapping.
    """
    text = _read_text(path)
    try:
        _check_yaml(text, path)
        return cast(DictConfig, OmegaConf.load(io.StringIO(text)))
    except yaml.MarkedYAMLError as error:
        raise ConfigError(_broken_line(error, path)) from None
    except (yaml.YAMLError, OmegaConfBaseException, OSError, ValueError) as error:
        raise ConfigError(f"{path}: is no YAML that can be used ({_one_line(error)}); fix it there") from None


def _read_text(path: Path) -> str:
    if path.is_dir():
        raise ConfigError(f"{path}: is a directory; name a YAML file")
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"{path}: is larger than {MAX_BYTES // 1024} KiB; a config is a short text")
        return path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 (byte {error.start}); save it as UTF-8") from None


def _check_yaml(text: str, path: Path) -> None:
    """Refuse tags that build objects, aliases that grow or recur, deep nesting and a second document."""
    open_nodes: list[tuple[str | None, int]] = []  # of each open collection: its anchor, and the values before it
    sizes: dict[str | None, int] = {}  # values below each anchor, aliases expanded
    total = 0
    event: Any
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        tag, fault = getattr(event, "tag", None), ""
        if isinstance(event, yaml.NodeEvent) and not open_nodes and not isinstance(event, yaml.MappingStartEvent):
            fault = "is no mapping of keys; write key: value"
        elif tag is not None and tag not in _PLAIN_TAGS:
            fault = f"the tag {tag!r} is not for a config; write a plain value"
        elif isinstance(event, yaml.DocumentStartEvent) and total:
            fault = "a second document begins; a config is one document"
        match event:
            case yaml.AliasEvent(anchor=name):
                total += sizes.get(name, 1)
                if any(name == open_name for open_name, _ in open_nodes):
                    fault = f"*{name} stands inside itself; write the value out"
            case yaml.ScalarEvent(anchor=name):
                total += 1
                sizes[name] = 1
            case yaml.CollectionStartEvent(anchor=name):
                open_nodes.append((name, total))
                total += 1
            case yaml.CollectionEndEvent():
                name, before = open_nodes.pop()
                sizes[name] = total - before
        if len(open_nodes) > _MAX_DEPTH:
            fault = f"is nested more than {_MAX_DEPTH} deep; a config is flatter than that"
        elif total > _MAX_VALUES:
            fault = f"holds more than {_MAX_VALUES} values, aliases expanded; a config is a short text"
        if fault:
            raise ConfigError(f"{path}:{event.start_mark.line + 1}:{event.start_mark.column + 1}: {fault}")


def _broken_line(error: yaml.MarkedYAMLError, path: Path) -> str:
    mark = error.problem_mark or error.context_mark
    where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
    problem = _one_line(error.problem or "cannot be parsed")
    if "duplicate key" in problem:
        return f"{where}: key {problem.rpartition(' ')[2]} is given twice; keep one"
    kind = _one_line(f"broken YAML {error.context or ''}")
    return f"{where}: {kind}: {problem}; fix it there"


def _one_line(text: object) -> str:
    return " ".join(str(text).split())


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
        tree = _read_tree(file)
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
    try:
        value = parser.parse_override(f"key={text}").value()
    except HydraException:
        return text
    fields = (locate(schema, key.split(".")) for schema in SCHEMAS.values())
    is_text = any(path == key and describe(annotation).startswith("text") for path, annotation in fields)
    return text if is_text and value is not None and not isinstance(value, str) else value


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
    return _plain(OmegaConf.create(without(tree, set(unresolved))), resolve=True)


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
