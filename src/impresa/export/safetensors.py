"""The files of an alignment that using it needs, under documented names: a run directory without its training."""

from __future__ import annotations

import shutil
from pathlib import Path

from impresa.config.experiment import ExperimentConfig
from impresa.files import write_atomic
from impresa.reports.rendering import render
from impresa.run_dir.layout import (
    BACKBONES,
    CONFIG,
    GOLDEN,
    MANIFEST,
    MODEL_CARD,
    PREPROCESSING,
    TOKENIZER,
    WEIGHTS,
)


def write_encoders(config: ExperimentConfig, run_dir: Path, folder: Path) -> None:
    """Write weights, config, preprocessing, tokenizer and golden outputs, which `impresa.load` reads too, and a README
    that explains the names."""
    copy_usable(run_dir, folder)
    write_atomic(folder / MODEL_CARD, render("encoders.md.j2", config=config))


def copy_usable(run_dir: Path, folder: Path) -> None:
    """Copy what `impresa.load` reads of a run."""
    for name in (CONFIG, WEIGHTS, PREPROCESSING, GOLDEN, MANIFEST):
        shutil.copy(run_dir / name, folder)
    copy_folder(run_dir, folder, TOKENIZER)
    if (run_dir / BACKBONES).is_dir():
        copy_folder(run_dir, folder, BACKBONES)


def copy_folder(run_dir: Path, folder: Path, name: str) -> None:
    """Copy a folder of a run under its own name."""
    shutil.copytree(run_dir / name, folder / name)
