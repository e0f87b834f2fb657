"""Paths of configs and data: the YAML file of a name, and the check that the data of a config exist."""

from __future__ import annotations

import os
from collections.abc import Iterator
from glob import has_magic, iglob
from pathlib import Path

from impresa.config.dataset import DatasetConfig
from impresa.config.describe import Fault, listed, nearest, raise_faults
from impresa.config.experiment import ExperimentConfig
from impresa.config.hub_names import hub_name, is_hub_name
from impresa.config.memory_vlm import both_names
from impresa.config.shard_names import PIPE, braces_expanded, has_braces, is_address
from impresa.errors import ConfigError

EMBEDDED = "shapes"
"""The path that names the embedded data set."""
DATA_PATHS = ("train_path", "val_path", "test_path")
"""The keys of `dataset` that hold paths."""
STUDIES = "studies"
"""Folder of the shipped studies, among the shipped configs."""
_YAML_SUFFIXES = (".yaml", ".yml")
_GUIDE_PATHS = ("data/train", "data/val")
_PIXMO = ("pixmo", "pixmo_qa")
"""Folders of the shipped configs for pictures that a table names by their addresses."""
EXAMPLES = ("digits", "emoji", "spoken")
"""Scripts of `examples/` that write data; each writes `data/NAME`."""


def looked_in(path: str | Path) -> str:
    """The end of a message that a path does not exist: the folder that a relative one starts from."""
    return "" if expanded(str(path)).is_absolute() else f" (looked in {Path.cwd()})"


def expanded(path: str) -> Path:
    """`path` with `~` replaced by the home directory; `~name` of an unknown user stays, and names no file."""
    return Path(os.path.expanduser(path))  # pathlib's raises RuntimeError where there is no such user


def shipped_folder() -> Path:
    """The folder of the shipped YAML files: inside the installed package, or at the root of a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parents[1] / "configs"


def shipped_names() -> list[str]:
    """Names of the shipped configs, sorted."""
    return sorted(path.stem for path in shipped_folder().glob("*.yaml"))


def shipped_studies() -> list[str]:
    """Names of the shipped studies, sorted: `studies/NAME`."""
    return sorted(f"{STUDIES}/{path.stem}" for path in (shipped_folder() / STUDIES).glob("*.yaml"))


def find_config(name: str, *, studies: bool = False) -> Path:
    """The YAML file of a config or a study, by its path or by the name of a shipped one.

    `configs/NAME.yaml` is the shipped NAME also where there is no such folder, as after an installation. With `studies`
    a message that there is no such file names the shipped studies too.

    Raises:
        ConfigError: there is no such file, or no shipped config of that name.
    """
    path, shipped = expanded(name), shipped_folder()
    folders = (Path(), Path(STUDIES))
    known = [*shipped_names(), *(shipped_studies() if studies or path.parent == folders[1] else ())]
    if path.suffix not in _YAML_SUFFIXES and path.parent in folders and not name.startswith("."):
        path = shipped / f"{name}.yaml"
    elif not path.exists() and path.parent in [Path("configs") / folder for folder in folders]:
        path = shipped / path.relative_to("configs")
    if path.is_file():
        return path
    if Path(name).is_dir():
        raise ConfigError(f"{name}: is a directory; name a YAML file in it, or a shipped config")
    if path.parent not in (Path(), shipped, shipped / STUDIES):
        raise ConfigError(f"{name}: there is no such file; shipped configs are {listed(known, 'and')}")
    by_stem = {Path(other).stem: other for other in reversed(known)}
    near = nearest(Path(name).stem, by_stem)
    hint = f"did you mean {by_stem[near]}? " if near else ""
    if Path(f"{name}.yaml").is_file():
        hint = f"your file is named by its path, ./{name}.yaml; "
    raise ConfigError(f"{name}: unknown config; {hint}shipped are {listed(known, 'and')}")


def check_data_paths(config: ExperimentConfig) -> None:
    """Refuse data paths, and a file of class names, that do not exist.

    Raises:
        ConfigError: with one line per missing path.
    """
    dataset = config.dataset
    faults = []
    if isinstance(names := dataset.class_names, str) and not expanded(names).is_file():
        fix = "name an existing file, or give a list such as [cat,dog]"
        faults.append(Fault("dataset.class_names", f"{names} does not exist; {fix}{looked_in(names)}"))
    faults += (
        Fault(both_names(f"dataset.{key}"), fault)
        for key in DATA_PATHS
        if (path := getattr(dataset, key)) is not None and (fault := _fault(dataset, path))
    )
    raise_faults(faults)


def _fault(dataset: DatasetConfig, path: str) -> str | None:
    """Why a data path cannot be read, with the fix; None for the embedded data, and for what is there or on the web."""
    if path == EMBEDDED and dataset.source in ("auto", "shapes"):
        return None
    if is_hub_name(path) or dataset.source == "hub":
        return _fault_of_hub(path)
    if path.startswith(PIPE):
        return f"{path} is a command, and none is run; name the shards themselves, as files or addresses"
    is_on_web = is_address(path) and dataset.source != "shapes"  # which have no pattern either
    if is_on_web or os.path.exists(expanded(path)):
        return None
    try:
        missing = path if dataset.source == "shapes" else missing_name(path)
    except ValueError as error:
        return f"{path}: {error}; name fewer files"
    return missing and f"{missing} does not exist; {fix_of_missing(path)}{looked_in(path)}"


def _fault_of_hub(path: str) -> str | None:
    try:
        hub_name(path)
    except ValueError as error:
        return f"{path} {error}{'' if is_hub_name(path) else looked_in(path)}"
    return None


def is_there(path: str) -> bool:
    """True for an existing path, and for a pattern that matches one."""
    return os.path.exists(expanded(path)) or any(matches(path))


def missing_name(path: str) -> str | None:
    """The first of the names that a path with braces stands for that does not exist; of a pattern one match is enough.

    Raises:
        ValueError: there are too many names; the message is the reason alone.
    """
    names = [path] if has_magic(path) or os.path.exists(expanded(path)) else braces_expanded(path)
    return next((name for name in names if not is_there(name)), None)


def is_pattern(path: str) -> bool:
    """True for a path with `*`, `?`, `[...]`, or braces such as `{a,b}` or `{00..99}`."""
    return has_magic(path) or has_braces(path)


def matches(path: str) -> Iterator[str]:
    """The existing files and folders that a path stands for."""
    for name in braces_expanded(path):
        file = str(expanded(name))
        yield from iglob(file, recursive=True) if has_magic(file) else filter(os.path.exists, [file])


def fix_of_missing(path: str) -> str:
    """How to get data that are not there: by the command that writes them, or by another name."""
    parts = Path(path).parts
    if Path(path).as_posix() in _GUIDE_PATHS:
        return "`impresa data export shapes data` writes the embedded data there, or name your own"
    name = parts[parts.index("data") + 1] if "data" in parts[:-1] else ""
    if name in _PIXMO:
        fetched = f"`impresa data fetch TABLE --out data/{name}` fetches the pictures of PixMo's table"
        return f"{fetched} for dataset.train_path=data/{name}, or name your own data"
    if name in EXAMPLES:
        return f"`python examples/{name}.py` writes it, or name your own data"
    return "name an existing folder or file, or shapes for the embedded data"
