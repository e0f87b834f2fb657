"""The end of a training run: weights saved, what was saved evaluated, report and model card written."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch

from impresa.config.experiment import ExperimentConfig
from impresa.data.sample import Sample
from impresa.data.sources import BadSample, Source, open_source, reading_of
from impresa.evaluation.results import save_evaluation
from impresa.files import write_atomic
from impresa.reports.card import model_card
from impresa.reports.html import write_report
from impresa.run_dir.environment import now, read_environment, write_environment
from impresa.run_dir.layout import MODEL_CARD
from impresa.run_dir.load import load
from impresa.run_dir.save import save_run
from impresa.tasks.samples import name_of_data
from impresa.training.parts import Parts

NUM_GOLDEN = 4


def finish(config: ExperimentConfig, parts: Parts, run_dir: Path, device: torch.device) -> None:
    """Save the weights, evaluate what was saved on the test data, and write report and model card."""
    save_run(
        run_dir,
        parts.model,
        config,
        parts.preprocessing,
        examples=_examples(parts.data.val_source),
        device=device,
    )
    num_parameters = parts.num_parameters
    parts.drop_model()  # the evaluation loads what was saved
    gc.collect()
    evaluation = parts.task.evaluate(
        load(run_dir, device),
        open_source(config.dataset, "test", reading_of(config)),
        data=name_of_data(config.dataset, "test"),
        train_source=parts.data.train_source,
        show_progress=sys.stderr.isatty(),
    )
    save_evaluation(evaluation, run_dir)
    environment = {**read_environment(run_dir), "finished": now()}
    write_atomic(run_dir / MODEL_CARD, model_card(config, evaluation, environment, run_dir, num_parameters))
    write_report(run_dir)
    write_environment(run_dir, environment)


def _examples(source: Source) -> list[Sample]:
    """The first usable samples of a source, for golden embeddings."""

    def usable() -> Iterator[Sample]:
        for index in range(len(source)):
            try:
                yield source[index]
            except BadSample:
                continue

    return list(islice(usable(), NUM_GOLDEN))
