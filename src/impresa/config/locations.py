"""Where the files lie that a config names: models that are folders, and what a run used from another folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Any

from pydantic import StringConstraints

from impresa.config.encoder import is_from_scratch
from impresa.config.experiment import ExperimentConfig, towers
from impresa.config.hub_names import is_on_hub
from impresa.config.paths import DATA_PATHS, EMBEDDED, expanded, is_pattern, looked_in
from impresa.config.shard_names import is_address
from impresa.config.tree import lookup, merge, nested
from impresa.errors import ConfigError
from impresa.json_files import read_json
from impresa.run_dir.layout import CONFIG, PATHS

TIMM = "timm:"
"""Prefix of the name of one of timm's models."""
_FILE_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".onnx", ".h5", ".json", ".zip", ".tar.gz")
"""Names of models on the hub have dots too, such as that of a version."""

_Key = Annotated[str, StringConstraints(pattern=r"^[a-z_]+(\.[a-z_]+)*$", max_length=100)]
_Text = Annotated[str, StringConstraints(min_length=1, max_length=100_000)]


@dataclass(frozen=True)
class _Path:
    """An entry of a run's record."""

    given: _Text
    absolute: _Text


def paths_of(config: ExperimentConfig) -> dict[str, str]:
    """The files and folders that an experiment names, as they are written, by key."""
    dataset, decoder = config.dataset, config.decoder
    data = {f"dataset.{key}": path for key in DATA_PATHS if (path := getattr(dataset, key)) is not None}
    found: dict[str, str | None] = {
        k: path for k, path in data.items() if dataset.source != "hub" or not is_on_hub(path)
    }
    found["dataset.image_root"] = dataset.image_root
    found["dataset.class_names"] = dataset.class_names if isinstance(dataset.class_names, str) else None
    for _, part, tower in towers(config):
        found[f"{part}.checkpoint"] = tower.checkpoint
    if decoder is not None:
        found["decoder.init_from"] = decoder.init_from
    found |= {key: name for key, name in models_of(config) if is_local(name)}
    return {key: path for key, path in found.items() if path not in (None, EMBEDDED)}


def absolute_paths(config: ExperimentConfig) -> dict[str, str]:
    """The same, independent of the folder where Impresa was started."""
    return {key: _absolute(path) for key, path in paths_of(config).items()}


def record_of(config: ExperimentConfig) -> dict[str, dict[str, str]]:
    """The content of a run's `paths.json`: each path as it was given and in full."""
    absolute = absolute_paths(config)
    return {key: {"given": path, "absolute": absolute[key]} for key, path in paths_of(config).items()}


def located(tree: dict[str, Any], file: Path) -> dict[str, Any]:
    """The tree of a config file. If it is that of a run, its paths lead to where they led when the run was trained.

    A path stays as it is where it leads there from this folder too, and where only it exists, as on another machine.

    Raises:
        CheckpointError: the run's record of paths is damaged.
    """
    record = file.with_name(PATHS)
    if file.name != CONFIG or not record.is_file():
        return tree
    fix = f"remove it, and name paths in {CONFIG} in full"
    for key, path in read_json(record, dict[_Key, _Path], fix=fix).items():
        is_elsewhere = lookup(tree, key) == path.given and _absolute(path.given) != path.absolute
        if is_elsewhere and (_begins_here(path.absolute) or not _begins_here(path.given)):
            tree = merge(tree, nested(key, path.absolute))
    return tree


def is_local(name: str) -> bool:
    """True for the name of a model that is a path: an existing one, or one that looks like it."""
    return os.path.exists(expanded(name)) or _why_local(name) is not None


def check_models(config: ExperimentConfig) -> None:
    """Refuse models that look like paths and are no folders; `ConfigError` with a line for each."""
    faults: list[str] = []
    for key, name in models_of(config):
        try:
            check_model(key, name)
        except ConfigError as error:
            faults += error.lines
    if faults:
        raise ConfigError(*faults)


def check_model(key: str, name: str) -> None:
    """Refuse the name of a model that looks like a path and is no folder, so that the hub is not asked for it.

    Raises:
        ConfigError: there is no such folder.
    """
    path, fix = expanded(name), "give the path of one that was made by save_pretrained"
    if os.path.isdir(path) or name.startswith(TIMM):
        return
    if os.path.exists(path):
        raise ConfigError(f"{key}: {name} cannot be loaded; it is a file and no folder; {fix}")
    if (reason := _why_local(name)) is not None:
        raise ConfigError(f"{key}: {name} cannot be loaded; there is no such folder{reason}; {fix}{looked_in(name)}")


def models_of(config: ExperimentConfig) -> Iterator[tuple[str, str]]:
    """Key and name of each pretrained model that is read by name."""
    for modality, part, tower in towers(config):
        if tower.checkpoint is None and not is_from_scratch(modality, tower):
            yield f"{part}.backbone", tower.backbone
    if config.decoder is not None and config.decoder.is_pretrained:
        yield "decoder.model", config.decoder.model


def _why_local(name: str) -> str | None:
    """Why a name can be no id of the hub, for a message, empty where it is plain to see; None if it can be one."""
    first, slash, _ = name.partition("/")
    if name.startswith((".", "~", "/")) or name.endswith("/") or name.count("/") > 1 or "\\" in name:
        return ""
    if name.lower().endswith(_FILE_SUFFIXES):
        return ""
    return f", and {first} is a folder here, so the hub is not asked" if slash and os.path.isdir(first) else None


def _begins_here(path: str) -> bool:
    """True for an existing path, an address, and a pattern whose first folders exist: one may search a whole disk."""
    fixed = takewhile(lambda part: not is_pattern(part), expanded(path).parts)
    return is_address(path) or os.path.exists(expanded(path)) or (is_pattern(path) and os.path.exists(Path(*fixed)))


def _absolute(path: str) -> str:
    return path if is_address(path) else os.path.abspath(expanded(path))
