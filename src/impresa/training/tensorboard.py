"""A run in TensorBoard: its metrics under grouped names, and at the end hyperparameters, results and examples."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from impresa.config.experiment import ExperimentConfig
from impresa.config.tree import leaves, to_tree
from impresa.evaluation.figures import figures
from impresa.evaluation.results import Evaluation
from impresa.files import naming
from impresa.run_dir.layout import EVENTS

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_GROUPS = ("train", "val")


def events_folder(config: ExperimentConfig, run_dir: Path) -> Path:
    """The folder of a run's event files; its name is that of the run in TensorBoard."""
    settings = config.trainer.logging
    return run_dir.joinpath(EVENTS, *map(_folder_name, (settings.project, settings.name or config.name)))


class TensorBoardEvents:
    """Writes an event file for TensorBoard into a folder.

    A run that continues tells TensorBoard to forget what files of its earlier parts hold of steps after `step`.
    """

    def __init__(self, folder: Path, step: int) -> None:
        self.folder = folder
        self._purge_step = step + 1 if step else None
        self._writer = self._open() if step and folder.exists() else None

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics of a step, which are those of the training unless their names say otherwise."""
        with naming(self.folder):
            self._writer = self._writer or self._open()
            for name, value in metrics.items():
                self._writer.add_scalar(grouped(name), value, step)

    def _open(self) -> SummaryWriter:
        return _writer(self.folder, self._purge_step)

    def close(self, *, success: bool) -> None:
        if self._writer is not None:
            with naming(self.folder):
                self._writer.close()


def grouped(name: str) -> str:
    """The name in TensorBoard of a metric of `metrics.csv`: `val_loss` is `val/loss`, `lr` is `train/lr`."""
    group, _, rest = name.partition("_")
    return f"{group}/{rest}" if group in _GROUPS and rest else f"{_GROUPS[0]}/{name}"


def write_results(folder: Path, config: ExperimentConfig, evaluation: Evaluation, step: int) -> None:
    """Add hyperparameters, the figures of the evaluation and its examples after optimizer step `step`.

    The figures are named `test/FIGURE`, the examples `test/example_1` and so on: a picture of a query with what it
    found, or of a question with its answer, and the same as a text.
    """
    from torch.utils.tensorboard.summary import hparams

    from impresa.reports.cards import cards  # which the end of a run needs alone

    found = {f"test/{name}": value for name, value in figures(evaluation).items()}
    with naming(folder):
        writer: Any = _writer(folder)
        for summary in hparams(_hyperparameters(config), found):
            writer.file_writer.add_summary(summary)
        for name, value in found.items():
            writer.add_scalar(name, value, step)
        for number, card in enumerate(cards(evaluation.gallery), start=1):
            writer.add_image(f"test/example_{number}", np.asarray(card.picture), step, dataformats="HWC")
            writer.add_text(f"test/example_{number}", card.text, step)
        writer.close()


def _writer(folder: Path, purge_step: int | None = None) -> SummaryWriter:
    from torch.utils.tensorboard import SummaryWriter  # a second of imports, which a first step need not wait for

    return SummaryWriter(folder, purge_step=purge_step)


def _hyperparameters(config: ExperimentConfig) -> dict[str, Any]:
    """Every key with its value: numbers and texts as they are, the rest as JSON, null left out."""
    return {
        key: json.dumps(value) if isinstance(value, bool | list | dict) else value
        for key, value in leaves(to_tree(config))
        if value is not None
    }


def _folder_name(name: str) -> str:
    """A name for people as that of a folder: without slashes, and neither hidden nor a way up."""
    return name.replace("/", "-").lstrip(".") or "-"
