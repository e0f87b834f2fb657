"""What a pretrained pair can do before the first step, measured on the data that the end is measured on."""

from __future__ import annotations

import logging
import sys
from copy import deepcopy
from pathlib import Path

import torch

from impresa.config.experiment import ExperimentConfig
from impresa.data.sources import open_source, reading_of
from impresa.evaluation.before import write_before
from impresa.evaluation.figures import figures
from impresa.tasks.samples import name_of_data
from impresa.training.parts import Parts

logger = logging.getLogger(__name__)


def measure_before(config: ExperimentConfig, parts: Parts, run_dir: Path, device: torch.device) -> None:
    """Evaluate a model that can do something untrained, and keep its figures in the run; any other is left alone.

    It is a copy that is measured: using a model freezes it, and the training starts as without.

    Raises:
        DataError: the test data cannot be used.
    """
    task = parts.task
    if not task.is_of_use_untrained(parts.model):
        return
    from impresa.reports.tables import figures_in_words, summary  # which other runs need at their end alone

    source = open_source(config.dataset, "test", reading_of(config, labels=True))
    with torch.random.fork_rng(devices=[]):
        model = task.use(deepcopy(parts.model), parts.preprocessing, device)
        name = name_of_data(config.dataset, "test")
        evaluation = task.evaluate(model, source, data=name, show_progress=sys.stderr.isatty())
    write_before(evaluation, run_dir)
    logger.info(f"before training, {summary(evaluation)}: {figures_in_words(figures(evaluation))}")
