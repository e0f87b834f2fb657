"""From a checked config to one that can be run: towers of finished runs, data paths."""

from __future__ import annotations

import logging
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from impresa.config.compose import read_config
from impresa.config.dataset import DatasetConfig
from impresa.config.describe import Fault, listed, raise_faults, show
from impresa.config.encoder import FROM_SCRATCH, EncoderConfig, Modality
from impresa.config.experiment import PAIR, ExperimentConfig, is_pair, towers
from impresa.config.locations import check_models
from impresa.config.paths import check_data_paths, expanded, looked_in, shipped_names
from impresa.config.relevance import OWN
from impresa.config.tree import to_tree
from impresa.config.validate import validate
from impresa.errors import CheckpointError, ConfigError
from impresa.run_dir.layout import CONFIG, MANIFEST

logger = logging.getLogger(__name__)


def prepare(config: ExperimentConfig) -> ExperimentConfig:
    """The experiment as it will be run: checked, its towers as in the runs that they come from; idempotent.

    Raises:
        ConfigError: a value is impossible, or a run or data path does not exist.
    """
    config = validate(with_projections(adopt_towers(config)))
    check_data_paths(config)
    check_models(config)
    return config


def with_projections(config: ExperimentConfig) -> ExperimentConfig:
    """The experiment with `mlp` in place of `projection: auto` where there is no pair whose heads could be kept, and a
    line that says so. In a pair the towers decide when they are built, for they know their heads."""
    chosen: dict[str, Any] = {
        part: replace(tower, projection="mlp")
        for _, part, tower in towers(config)
        if tower.projection == "auto" and tower.checkpoint is None and not (part in PAIR and is_pair(config))
    }
    if chosen:
        keys = listed([f"{part}.projection" for part in chosen], "and")
        logger.info(f"{keys}: auto is mlp here, for image and text tower are not of one pretrained pair, used whole")
    return replace(config, **chosen)


def adopt_towers(config: ExperimentConfig) -> ExperimentConfig:
    """The experiment with each tower that has a `checkpoint` as it is in that run, and with images of that run's size.

    Idempotent.

    Raises:
        ConfigError: a path is no finished run, or a setting beside `checkpoint` contradicts the run.
    """
    changed: dict[str, Any] = {}
    faults: list[Fault] = []
    for modality, part, tower in towers(config):
        if tower.checkpoint is None:
            continue
        key, path = f"{part}.checkpoint", tower.checkpoint
        run = read_run(key, path, alignment=True)
        theirs: EncoderConfig | None = getattr(run, part)
        if run.decoder is not None:  # its towers have lost what makes embeddings
            faults.append(Fault(key, f"{path} is a run with a decoder; name the alignment that it stands on"))
        elif theirs is None:
            faults.append(Fault(key, f"{path} has no such tower; name another run"))
        else:
            faults += _contradictions(modality, part, tower, theirs)
            changed[part] = replace(theirs, **{name: getattr(tower, name) for name in OWN})
            if modality == "image":
                size, their_size = config.dataset.image_size, run.dataset.image_size
                if size not in (their_size, DatasetConfig().image_size):
                    fault = f"{size}, but {path} was trained at {their_size}; leave it out"
                    faults.append(Fault("dataset.image_size", fault))
                changed["dataset"] = replace(config.dataset, image_size=their_size)
    raise_faults(faults)
    return replace(config, **changed)


def shown_tree(config: ExperimentConfig) -> tuple[dict[str, Any], list[str]]:
    """A checked config as a tree that shows each tower with a `checkpoint` as it is in that run. Of one whose run is
    not there, and which is not written out either, it has only what is set, and a line says so.

    Raises:
        ConfigError: as `adopt_towers`, for runs that are there.
    """
    absent = {
        part: tower
        for _, part, tower in towers(config)
        if tower.checkpoint is not None and not (expanded(tower.checkpoint) / MANIFEST).is_file()
    }
    without_them: dict[str, Any] = {part: replace(tower, checkpoint=None) for part, tower in absent.items()}
    tree, lines = to_tree(adopt_towers(replace(config, **without_them))), []
    for part, tower in absent.items():
        own, default = to_tree(tower), to_tree(EncoderConfig(backbone=tower.backbone))
        changed = {name: value for name, value in own.items() if value != default[name]}
        if not changed.keys() <= set(OWN):  # the config of a run, which has taken them over
            tree[part] = own
            continue
        tree[part] = changed
        fault = f"{tower.checkpoint} is no finished run here, so its settings are not known"
        lines.append(f"{part}.checkpoint: {fault}")
    if lines and "vision_encoder" in absent and config.dataset.image_size == DatasetConfig().image_size:
        del tree["dataset"]["image_size"]
    return tree, lines


def read_run(key: str, path: str, *, alignment: bool = False) -> ExperimentConfig:
    """The config of a finished run.

    Args:
        key: beginning of an error line.
        path: the run directory.
        alignment: suggest alignments only where `path` holds runs.

    Raises:
        ConfigError: `path` is no finished run.
    """
    folder = expanded(path)
    if not (folder / CONFIG).is_file():
        raise ConfigError(f"{key}: {path} {_no_run(folder, path, alignment)}")
    if not (folder / MANIFEST).is_file():
        raise ConfigError(f"{key}: {path} has not finished; `impresa train --output-dir {path} --resume` finishes it")
    return read_config(folder / CONFIG)


def check_embeds(name: str | Path, config: ExperimentConfig) -> None:
    """Raises `CheckpointError` for the config of a run that answers questions; `name` begins the line."""
    if config.decoder is not None:
        raise CheckpointError(f"{name}: answers questions and embeds nothing; name the run of an alignment")


def _no_run(folder: Path, path: str, alignment: bool) -> str:
    """The fault of a path that is no run, and the fix."""
    within = sorted((found.parent for found in folder.glob(f"*/{MANIFEST}")), key=lambda run: run.stat().st_mtime)
    within = [run for run in within if not (alignment and _has_decoder(run))]
    if within:
        return f"holds runs and is none itself; name one, such as {Path(path) / within[-1].name}"
    if folder.exists():
        return f"is no run, it has no {CONFIG}; name the directory that `impresa train` printed last"
    fix = "name the directory that `impresa train` printed last"
    if folder.name in shipped_names():
        fix = f"`impresa train {folder.name} --output-dir {path}` makes it, or name another run"
    return f"does not exist; {fix}{looked_in(path)}"


def _has_decoder(run: Path) -> bool:
    """True also where the config cannot be read: such a run is no suggestion either."""
    try:
        return read_config(run / CONFIG).decoder is not None
    except ConfigError:
        return True


def _contradictions(modality: Modality, part: str, ours: EncoderConfig, theirs: EncoderConfig) -> list[Fault]:
    """Settings that differ from those of the run; one that has its default was not written and does not count."""
    default = EncoderConfig(backbone=FROM_SCRATCH[modality][0])
    return [
        Fault(f"{part}.{name}", f"is {show(getattr(theirs, name))} in {ours.checkpoint}; leave it out")
        for name in (field.name for field in fields(ours) if field.name not in OWN)
        if getattr(ours, name) not in (getattr(theirs, name), getattr(default, name))
    ]
