"""One training, from the config to the report."""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer

from impresa.config.experiment import ExperimentConfig
from impresa.config.runs import prepare
from impresa.data.sample import Sample
from impresa.data.sources import BadSample, Source, open_source, reading_of
from impresa.evaluation.results import save_evaluation
from impresa.files import write_atomic
from impresa.reports.card import model_card
from impresa.reports.html import write_report
from impresa.run_dir.claim import claim, clear
from impresa.run_dir.environment import describe_environment, is_finished, now, read_environment, write_environment
from impresa.run_dir.layout import MODEL_CARD
from impresa.run_dir.load import load
from impresa.run_dir.save import save_run, save_start
from impresa.tasks.samples import name_of_data
from impresa.training.checkpoints import Checkpoints, read_checkpoint
from impresa.training.collapse import CollapseWatch
from impresa.training.interrupt import GracefulStop, TrainingInterrupted
from impresa.training.loggers import build_loggers
from impresa.training.module import TrainingModule
from impresa.training.parts import Parts, build_parts
from impresa.training.plan import make_plan
from impresa.training.processes import is_main_process
from impresa.training.progress import ProgressReport
from impresa.training.recorder import Recorder
from impresa.training.schedule import make_schedule
from impresa.training.steps import StepLoader
from impresa.training.trainer import build_trainer, leave_cores_to_workers

logger = logging.getLogger(__name__)

NUM_GOLDEN = 4


@dataclass(frozen=True)
class Start:
    """Where a training begins."""

    checkpoint: Path | None = None
    """What it goes on from; None for a new run."""
    step: int = 0
    """Optimizer steps done so far."""
    state: Mapping[str, Any] = field(default_factory=dict)
    """The checkpoint's content; empty for a new run."""


def train(config: ExperimentConfig, output_dir: Path, *, command: Sequence[str], resume: bool = False) -> Path:
    """Train, keep the best weights, evaluate them and write the report.

    Args:
        config: the experiment.
        output_dir: the run directory: new, empty, or with `resume` a run that has not finished.
        command: the command line, for the record.
        resume: continue the run in `output_dir`, if there is one.

    Returns:
        The run directory. In a distributed run only the first process writes to it.

    Raises:
        ConfigError: the config has a fault, or does not fit this machine or the run to be resumed.
        CheckpointError: the folder cannot be used.
        DataError: the data cannot be used.
        TrainingError: the training diverged.
        KeyboardInterrupt: the user stopped the run; it can be resumed.
    """
    config = prepare(config)
    start = _start(config, output_dir, resume)
    if is_finished(output_dir):
        logger.warning(f"{output_dir}: this run has finished; there is nothing to resume")
        return output_dir
    parts = build_parts(config, output_dir, resumed=start.checkpoint is not None)
    _prepare(output_dir, config, parts, command, start)
    device = fit(config, parts, output_dir, start)
    finish(config, parts, output_dir, device)
    return output_dir


def fit(config: ExperimentConfig, parts: Parts, run_dir: Path, start: Start) -> torch.device:
    """Train from `start` to the end of the plan; the model in `parts` has the best weights then.

    Returns:
        The device that was used.
    """
    leave_cores_to_workers(config.dataset.num_workers)
    with GracefulStop() as stop:
        checkpoints = Checkpoints(config.trainer.checkpoint, run_dir, stop)
        watches = [CollapseWatch(config)] if config.decoder is None else []
        callbacks = [Recorder(), ProgressReport(), *watches, checkpoints]
        trainer = build_trainer(config, run_dir, callbacks=callbacks)
        module, steps = join(config, parts, trainer, start)
        if start.step < module.plan.total_steps:
            trainer.fit_loop.max_epochs = module.plan.evaluations_left(start.step)
            trainer.loggers = build_loggers(config, run_dir, start.step)
            try:
                trainer.fit(module, steps, parts.data.val_dataloader(), ckpt_path=start.checkpoint, weights_only=True)
            except (TrainingInterrupted, RuntimeError) as reason:
                # Ctrl-C reaches data workers as well: one that it ends may be missed before the training looks up.
                if not (stop.requested or isinstance(reason, TrainingInterrupted)):
                    raise
                logger.warning(f"stopped; `impresa train --output-dir {run_dir} --resume` continues this run")
                raise KeyboardInterrupt from None
        else:
            checkpoints.load_state_dict(start.state["callbacks"][checkpoints.state_key])
            module.load_trained(start.state)
    if checkpoints.best is not None:
        module.load_trained(read_checkpoint(checkpoints.best))
    elif module.average is not None and start.step < module.plan.total_steps:
        module.average.swap()
    # What only training needs does not stay beside the evaluation: the optimizer's state and the averaged weights.
    module.average = parts.data.trainer = None
    return trainer.strategy.root_device


def finish(config: ExperimentConfig, parts: Parts, run_dir: Path, device: torch.device) -> None:
    """Save the weights, evaluate what was saved on the test data, and write report and model card."""
    if not is_main_process():
        return
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
    gc.collect()  # the trainer and its module know each other
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


def _start(config: ExperimentConfig, run_dir: Path, resume: bool) -> Start:
    """Where the training begins. The first process has claimed the folder when the others of a new run come here."""
    checkpoint = claim(run_dir, config, resume=resume) if is_main_process() or resume else None
    if checkpoint is None:
        return Start()
    state = read_checkpoint(checkpoint)
    return Start(checkpoint, state["global_step"], state)


def _prepare(run_dir: Path, config: ExperimentConfig, parts: Parts, command: Sequence[str], start: Start) -> None:
    """Write down what is known before the first step."""
    if not is_main_process():
        return
    if start.checkpoint is None:
        clear(run_dir)
        write_environment(run_dir, describe_environment(command, config.seed))
    else:
        environment = read_environment(run_dir)
        resumption = {"time": now(), "step": start.step, "command": list(command)}
        write_environment(run_dir, {**environment, "resumed": [*environment.get("resumed", []), resumption]})
    save_start(run_dir, config, parts.preprocessing)


def join(config: ExperimentConfig, parts: Parts, trainer: Trainer, start: Start) -> tuple[TrainingModule, StepLoader]:
    """The Lightning module and its data, both at the place where the training begins."""
    data = parts.data
    data.trainer = trainer  # tells the sampler how many processes share the data
    if start.state:
        data.load_state_dict(start.state["data"])
    loader = data.train_dataloader()
    plan = make_plan(config.trainer, len(loader))
    schedule = make_schedule(config.optimization, plan)
    module = TrainingModule(parts.model, config, plan, schedule, data)
    return module, StepLoader(loader, plan, config.trainer.accumulate_grad_batches, start.step)


def _examples(source: Source) -> list[Sample]:
    """The first usable samples of a source, for golden embeddings."""

    def usable() -> Iterator[Sample]:
        for index in range(len(source)):
            try:
                yield source[index]
            except BadSample:
                continue

    return list(islice(usable(), NUM_GOLDEN))
