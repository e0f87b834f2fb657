"""One training run, from the config to the report; or its dry run, one step that writes nothing."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from impresa.config.experiment import ExperimentConfig
from impresa.config.runs import prepare
from impresa.run_dir.claim import claimed, clear, clear_half_written
from impresa.run_dir.environment import describe_environment, is_finished, now, read_environment, write_environment
from impresa.run_dir.save import save_start
from impresa.training.checkpoints import Checkpoints, read_checkpoint
from impresa.training.distributed import (
    Group,
    join_group,
    leave_cores_to_workers,
    processes_to_start,
    use_deterministic_algorithms,
)
from impresa.training.failures import explained
from impresa.training.logs import ProgressReport, Recorder, build_loggers, memory_in_use
from impresa.training.loop import Training, run_steps, steps_of, train_step, validate
from impresa.training.parts import Parts, build_parts
from impresa.training.plan import make_plan
from impresa.training.processes import GracefulStop, TrainingInterrupted
from impresa.training.schedule import make_schedule
from impresa.training.state import TrainState

logger = logging.getLogger(__name__)

Checkpoint = Mapping[str, Any]
"""The content of the checkpoint that a run continues from; empty for a new run."""


def train(config: ExperimentConfig, output_dir: Path, *, command: Sequence[str], resume: bool = False) -> Path:
    """Train, keep the best weights, evaluate them and write the report.

    With several devices it starts a process for each and waits for them, unless this process is one of several already
    (of torchrun, SLURM, or a process group that exists).

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
        TrainingError: the training diverged, one of its processes died, or the disk or memory is full.
        KeyboardInterrupt: the user stopped the run; it can be resumed.
    """
    config = prepare(config)
    num_processes = processes_to_start(config.trainer)
    if num_processes > 1:
        from impresa.training.launch import launch

        launch(config, output_dir, num_processes, command=command, resume=resume)
        return output_dir
    use_deterministic_algorithms(config.trainer.deterministic)
    group = join_group(config.trainer)
    alone = claimed(output_dir, config, resume=resume) if group.is_main else nullcontext()
    with explained(config, output_dir), alone as path:
        _train(config, output_dir, command, path, group)
    return output_dir


def _train(config: ExperimentConfig, output_dir: Path, command: Sequence[str], path: Path | None, group: Group) -> None:
    """Train in a folder that is ours, from the checkpoint at `path` if the first process has found one."""
    (path,) = group.gather([path] if group.is_main else [])
    checkpoint = {} if path is None else read_checkpoint(path)
    if is_finished(output_dir):
        logger.warning(f"{output_dir}: this run has finished; there is nothing to resume")
        return
    parts = build_parts(config, output_dir, resumed=bool(checkpoint))
    if group.is_main:
        _prepare(output_dir, config, parts, command, checkpoint)
    fit(config, parts, output_dir, checkpoint, group)
    if group.is_main:
        from impresa.training.finish import finish  # charts and metrics, which the steps need not wait for

        finish(config, parts, output_dir, group.device)


def dry_run(config: ExperimentConfig) -> str:
    """Build everything, run one optimizer step and one validation batch in this process; nothing is written.

    Returns:
        A summary for people: parameters of each part, data, steps, device, memory.

    Raises:
        ImpresaError: as `train` does.
    """
    config = prepare(config)
    world_size = processes_to_start(config.trainer)
    use_deterministic_algorithms(config.trainer.deterministic)
    with explained(config):
        parts = build_parts(config, run_dir=None)
        training = set_up(config, parts, join_group(config.trainer), num_shares=world_size)
        train_step(training, next(steps_of(training.train_loader, config.trainer.accumulate_grad_batches)))
        return "\n".join(_summary(parts, training, world_size, validate(training, num_batches=1)))


def fit(config: ExperimentConfig, parts: Parts, run_dir: Path, checkpoint: Checkpoint, group: Group) -> None:
    """Train from `checkpoint` to the end of the plan; the model in `parts` has the best weights then."""
    leave_cores_to_workers(config.dataset.num_workers)
    training = set_up(config, parts, group, checkpoint.get("data"))
    state, plan = training.state, training.plan
    recorder = Recorder(plan, build_loggers(config, run_dir, checkpoint.get("step", 0)) if group.is_main else [])

    def content() -> dict[str, Any]:
        return {**state.checkpoint(), "data": _position(training), "losses": recorder.losses()}

    checkpoints = Checkpoints(config.trainer.checkpoint, run_dir, plan, group, content)
    if checkpoint:
        state.restore(checkpoint)
        recorder.resume(checkpoint["losses"])
        checkpoints.resume(checkpoint["scores"])
    progress = ProgressReport(plan.total_steps, shown=group.is_main)
    watch = training.task.watch(training.schedule.warmup_steps, group)
    success = False
    with GracefulStop() as stop:
        try:
            if state.step < plan.total_steps:
                run_steps(
                    training, recorder=recorder, progress=progress, watch=watch, checkpoints=checkpoints, stop=stop
                )
            success = True
        except (TrainingInterrupted, RuntimeError) as reason:
            # Ctrl-C ends data workers too, and torch may notice that (RuntimeError) before the loop sees the request.
            if not (stop.requested or isinstance(reason, TrainingInterrupted)):
                raise
            logger.warning(f"stopped; `impresa train --output-dir {run_dir} --resume` continues this run")
            raise KeyboardInterrupt from None
        finally:
            progress.stop()
            recorder.close(success=success)
    if checkpoints.best is not None and group.is_main:
        state.take_best(read_checkpoint(checkpoints.best))
    elif state.average is not None:
        state.average.swap()


def set_up(
    config: ExperimentConfig,
    parts: Parts,
    group: Group,
    position: Mapping[str, Any] | None = None,
    num_shares: int | None = None,
) -> Training:
    """Loaders, plan, schedule and a fresh state.

    The training data continue at `position`; `num_shares` processes share them, those of the group if it is None.
    """
    shares = num_shares or group.world_size
    train_loader = parts.data.train_loader(group.rank, shares, position)
    plan = make_plan(config.trainer, len(train_loader))
    return Training(
        config=config,
        task=parts.task,
        train_loader=train_loader,
        val_loader=parts.data.val_loader(group.rank, shares),
        plan=plan,
        schedule=make_schedule(config.optimization, plan),
        group=group,
        state=TrainState(parts.model, config.optimization, group),
    )


def _position(training: Training) -> dict[str, Any]:
    """The position in the data after the current step. It follows from the step: the loader may be ahead of it."""
    epoch, steps = divmod(training.state.step, training.plan.steps_per_epoch)
    next_batch = steps * training.config.trainer.accumulate_grad_batches
    return {**training.train_loader.position(), "epoch": epoch, "next_batch": next_batch}


def _prepare(
    run_dir: Path, config: ExperimentConfig, parts: Parts, command: Sequence[str], checkpoint: Checkpoint
) -> None:
    """Write what is known before the first step."""
    clear_half_written(run_dir)
    if checkpoint:
        environment = read_environment(run_dir)
        resumption = {"time": now(), "step": checkpoint["step"], "command": list(command)}
        before = environment.get("resumed")
        resumed = [*(before if isinstance(before, list) else []), resumption]
        write_environment(run_dir, {**environment, "resumed": resumed})
    else:
        clear(run_dir)
        write_environment(run_dir, describe_environment(command, config.seed))
    save_start(run_dir, config, parts.preprocessing)


def _summary(parts: Parts, training: Training, world_size: int, metrics: Mapping[str, float]) -> Iterator[str]:
    plan, data, config = training.plan, parts.data, training.config
    for name, number in parts.parameters():
        yield f"{name + ':':<16}{number:>14,} parameters"
    yield f"{'in all:':<16}{parts.num_parameters:>14,} parameters"
    batch = f"{config.dataset.batch_size} x {world_size} x {config.trainer.accumulate_grad_batches}"
    yield f"data:           {len(data.train_source)} samples to train on, {len(data.val_source)} to validate"
    yield f"batch:          {batch} (samples x devices x accumulated)"
    yield f"vocabulary:     {parts.preprocessing.tokenizer.vocab_size} tokens"
    yield f"steps:          {plan.steps_per_epoch} per epoch, {plan.total_steps} in all"
    yield f"warm-up:        {training.schedule.warmup_steps} steps"
    yield f"device:         {training.group.device}"
    yield f"memory:         {memory_in_use()} after one step"
    yield f"validation:     {', '.join(sorted(metrics))}"
    yield "dry run: one step was made, nothing was written"
