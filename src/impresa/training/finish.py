"""The end of a training run: weights saved, the saved model evaluated, report and model card written."""

from __future__ import annotations

import gc
import sys
from itertools import islice
from pathlib import Path

from impresa.config.experiment import ExperimentConfig
from impresa.data.sources import open_source, reading_of
from impresa.evaluation.before import with_before
from impresa.evaluation.figures import figures
from impresa.evaluation.preview import save_preview
from impresa.evaluation.results import Evaluation, save_evaluation
from impresa.files import write_atomic
from impresa.reports.card import model_card
from impresa.reports.charts import last_step, read_history
from impresa.reports.html import write_report
from impresa.reports.verdict import with_reasons
from impresa.run_dir.cost import write_cost
from impresa.run_dir.environment import now, read_environment, write_environment
from impresa.run_dir.layout import MODEL_CARD
from impresa.run_dir.load import load
from impresa.run_dir.lock import check_lock
from impresa.run_dir.save import save_run
from impresa.tasks.gallery import with_explanations
from impresa.tasks.samples import name_of_data, read_samples
from impresa.training.checkpoints import discard_last
from impresa.training.costs import Spent, cost_of
from impresa.training.distributed import Group
from impresa.training.parts import Parts
from impresa.training.preview import preview_of
from impresa.training.tensorboard import events_folder, write_results
from impresa.training.wandb_run import start_wandb

NUM_GOLDEN = 4
"""Samples whose outputs are stored, so that loading can compare."""


def finish(
    config: ExperimentConfig, parts: Parts, run_dir: Path, group: Group, spent: Spent, *, as_shared: ExperimentConfig
) -> None:
    """Save the weights, evaluate the saved model on the test data, and write report and model card. `as_shared` has the
    sizes of batches that these processes shared a step in."""
    device = group.device
    check_lock(run_dir)
    data, preprocessing = parts.data, parts.preprocessing
    cost = cost_of(spent, parts.model)
    usable = read_samples(data.val_source, range(len(data.val_source)), bad=[])
    examples = [sample for _, sample in islice(usable, NUM_GOLDEN)]
    save_run(run_dir, parts.model, config, preprocessing, examples=examples, device=device)
    del parts.model  # its memory is for the evaluation, which loads what was saved
    gc.collect()
    model, source = load(run_dir, device), open_source(config.dataset, "test", reading_of(config, labels=True))
    evaluation = parts.task.evaluate(
        model,
        source,
        data=name_of_data(config.dataset, "test"),
        train_source=data.train_source,
        show_progress=sys.stderr.isatty(),
    )
    evaluation = with_before(with_reasons(evaluation, config, run_dir), run_dir)
    save_evaluation(with_explanations(evaluation, parts.task, model, source), run_dir)
    _log_results(config, run_dir, evaluation)
    preview = preview_of(as_shared, data, source, group.world_size)
    save_preview(preview, run_dir)
    write_cost(run_dir, cost)
    environment = read_environment(run_dir)
    environment["finished"] = now()
    write_atomic(
        run_dir / MODEL_CARD, model_card(config, evaluation, environment, run_dir, cost.parameters, preview=preview)
    )
    write_report(run_dir)
    write_environment(run_dir, environment)
    discard_last(config.trainer.checkpoint, run_dir)


def _log_results(config: ExperimentConfig, run_dir: Path, evaluation: Evaluation) -> None:
    """Add figures and examples of the evaluation to TensorBoard and Weights & Biases."""
    step = last_step(read_history(run_dir))
    if config.trainer.logging.tensorboard:
        write_results(events_folder(config, run_dir), config, evaluation, step)
    if config.trainer.logging.wandb and (run := start_wandb(config, run_dir, again=True)):
        run.results(step, figures(evaluation), evaluation.gallery)
        run.close(success=True)
