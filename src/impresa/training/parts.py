"""From a config to the parts that training joins: task, preprocessing, data, model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from impresa.config.experiment import ExperimentConfig
from impresa.data.preprocessing import Preprocessing
from impresa.data.sources import open_source, reading_of
from impresa.run_dir.layout import BAD_SAMPLES
from impresa.tasks import task_of
from impresa.tasks.base import Task, TrainableModel
from impresa.training.data import TrainingData


@dataclass
class Parts:
    """The model that is trained, and everything that feeds it."""

    task: Task
    preprocessing: Preprocessing
    data: TrainingData
    model: TrainableModel

    @property
    def num_parameters(self) -> int:
        """Parameters of the model, frozen ones included."""
        return sum(number for _, number in self.parameters())

    def drop_model(self) -> None:
        """Give the memory of the model back, once it is saved."""
        del self.model

    def parameters(self) -> Iterator[tuple[str, int]]:
        """Name and number of parameters of each part of the model."""
        for name, part in self.model.named_children():
            yield name, sum(parameter.numel() for parameter in part.parameters())


def build_parts(config: ExperimentConfig, run_dir: Path | None, *, resumed: bool = False) -> Parts:
    """Open the data, prepare the tokenizer (or take that of a resumed run), draw or load the weights.

    Args:
        config: the experiment.
        run_dir: the run; None writes nothing.
        resumed: the run has its preprocessing already.
    """
    task = task_of(config)
    train_source = open_source(config.dataset, "train", reading_of(config))
    preprocessing = Preprocessing.load(run_dir) if resumed and run_dir is not None else task.prepare(train_source)
    bad_samples = run_dir / BAD_SAMPLES if run_dir is not None else None
    data = TrainingData(config, preprocessing, bad_samples, train_source=train_source)
    torch.manual_seed(config.seed)
    return Parts(task, preprocessing, data, task.build(preprocessing))
