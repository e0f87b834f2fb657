"""Where configs and data lie: the shipped YAML files, and whether the data that a config names is there."""

from __future__ import annotations

from pathlib import Path

from impresa.config.dialects import both_names
from impresa.config.experiment import DatasetConfig, ExperimentConfig
from impresa.config.faults import Fault, raise_faults

EMBEDDED = "shapes"
"""The path that stands for the embedded data set."""
_GUIDE_PATHS = ("data/train", "data/val")


def shipped_folder() -> Path:
    """The folder of the shipped YAML files: inside the installed package, or at the root of a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "configs"
    return installed if installed.is_dir() else package.parents[1] / "configs"


def shipped_names() -> list[str]:
    """Names of the shipped configs, sorted."""
    return sorted(path.stem for path in shipped_folder().glob("*.yaml"))


def check_data_paths(config: ExperimentConfig) -> None:
    """Refuse data paths that do not exist; the line names the mend.

    Raises:
        ConfigError: with one line per missing path.
    """
    dataset = config.dataset
    if dataset.source == "hub":
        return
    raise_faults(
        Fault(both_names(f"dataset.{key}"), f"{path} does not exist; {_mend(path)}")
        for key in ("train_path", "val_path", "test_path")
        if (path := getattr(dataset, key)) is not None and not _is_there(dataset, path)
    )


def _is_there(dataset: DatasetConfig, path: str) -> bool:
    if path == EMBEDDED and dataset.source in ("auto", "shapes"):
        return True
    return Path(path).expanduser().exists()


def _mend(path: str) -> str:
    if Path(path).as_posix() in _GUIDE_PATHS:
        return "`impresa data export shapes data` writes the embedded data there, or name your own"
    return "name an existing folder or file, or shapes for the embedded data"
