"""The two kinds of model, behind one interface: only `task_of(config)` distinguishes them."""

from __future__ import annotations

from impresa.config.experiment import ExperimentConfig
from impresa.tasks.base import Task


def task_of(config: ExperimentConfig) -> Task:
    """The task of an experiment: with a decoder it answers, without one it aligns."""
    if config.decoder is None:
        from impresa.tasks.alignment.task import AlignmentTask

        return AlignmentTask(config)
    from impresa.tasks.answering.task import AnsweringTask

    return AnsweringTask(config)
