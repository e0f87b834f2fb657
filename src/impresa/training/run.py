"""One training run, from the config to the report; or a trial of it, which writes nothing."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from impresa.config.experiment import ExperimentConfig
from impresa.config.relevance import notices
from impresa.config.runs import prepare
from impresa.errors import Requeue, TrainingError
from impresa.run_dir.claim import claimed, clear, how_to_go_on, newest_checkpoint
from impresa.run_dir.environment import Resumption, describe_environment, now, read_environment, write_environment
from impresa.run_dir.save import save_start
from impresa.training.checkpoints import Checkpoints, read_checkpoint
from impresa.training.compiling import check_compiler, compiled, modules_to_compile
from impresa.training.costs import CostMeter, Spent
from impresa.training.distributed import (
    Group,
    join_group,
    leave_cores_to_workers,
    processes_to_start,
    use_deterministic_algorithms,
)
from impresa.training.failures import explained
from impresa.training.features import FeatureKeeper
from impresa.training.guards import DivergedError
from impresa.training.logs import ProgressReport, Recorder, build_loggers
from impresa.training.loop import Training, run_steps, validate
from impresa.training.monitor import Monitor
from impresa.training.optimizer import check_optimizer
from impresa.training.parts import Parts, build_parts
from impresa.training.peaks import peak_flops
from impresa.training.plan import Plan, make_plan
from impresa.training.processes import GracefulStop, TrainingInterrupted, scheduler_may_stop
from impresa.training.resuming import Checkpoint, check_length, checkpoint_to_continue, with_same_batch
from impresa.training.schedule import make_schedule
from impresa.training.state import TrainState, check_precision, take_best
from impresa.training.watchdog import Watchdog

logger = logging.getLogger(__name__)

TRIAL_BATCHES = 2
"""Batches that are validated before the first step, to know the metrics and that the data can be read."""


def train(config: ExperimentConfig, output_dir: Path, *, command: Sequence[str], resume: bool = False) -> Path:
    """Train, keep the best weights, evaluate them and write the report.

    With several devices it starts a process for each and waits for them, unless this process is one of several already
    (of torchrun, SLURM, or a process group that exists).

    Args:
        config: the experiment.
        output_dir: the run directory: new, empty, or with `resume` a run.
        command: the command line, for the record.
        resume: continue the run in `output_dir`, if there is one; a finished one if `config` makes it longer.

    Returns:
        The run directory. In a distributed run only the first process writes to it.

    Raises:
        ConfigError: the config has a fault, or does not fit this machine or the run to be resumed.
        CheckpointError: the folder cannot be used.
        DataError: the data cannot be used.
        TrainingError: the training diverged, one of its processes died, or the disk or memory is full.
        KeyboardInterrupt: the user stopped the run; it can be resumed.
        Requeue: a scheduler did, by SIGTERM, SIGUSR1 or SIGUSR2.
    """
    config = prepare(config)
    num_processes = processes_to_start(config.trainer)
    if num_processes > 1:
        from impresa.training.launch import launch

        launch(config, output_dir, num_processes, command=command, resume=resume)
        return output_dir
    use_deterministic_algorithms(config.trainer.deterministic)
    group = join_group(config.trainer)
    _check_device(config, group)
    if config.trainer.strategy == "fsdp" and not group.shares_model:
        logger.warning("trainer.strategy: fsdp has nobody to share the model with, for this is the only process")
    alone = claimed(output_dir, config, resume=resume) if group.is_main else nullcontext()
    with scheduler_may_stop(), explained(config, output_dir), alone as path:
        try:
            _train(config, output_dir, command, path, group)
        except KeyboardInterrupt:  # or a scheduler's signal, wherever it came
            logger.warning(f"stopped; {how_to_go_on(output_dir, config)}")
            raise
    return output_dir


def _train(config: ExperimentConfig, output_dir: Path, command: Sequence[str], path: Path | None, group: Group) -> None:
    """Train in a folder that is ours, from the checkpoint at `path` if the first process has found one."""
    checkpoint = checkpoint_to_continue(config, output_dir, path, group)
    if checkpoint is None:
        patience = config.trainer.early_stopping_patience
        how_on = f"a larger trainer.epochs{' or early_stopping_patience' if patience else ''} trains on"
        logger.warning(f"{output_dir}: this run has finished; there is nothing to resume ({how_on})")
        return
    given = config
    if checkpoint:
        config = with_same_batch(config, checkpoint, group.world_size)
    parts = build_parts(config, output_dir, resumed=bool(checkpoint), world_size=group.world_size)
    _check_model(parts, config, group)
    if checkpoint:
        check_length(_plan(config, parts, group.world_size), config.trainer, checkpoint)
    if group.is_main:
        for note in parts.task.notes(parts.data.train_source, parts.preprocessing):
            logger.info(note)
        _prepare(output_dir, given, parts, command, checkpoint)  # the same command may resume it again
        if not checkpoint:
            from impresa.training.before import measure_before

            measure_before(config, parts, output_dir, group.device)
    with compiled(parts.model, config.trainer.compile):
        spent = fit(config, parts, output_dir, checkpoint, group)
    if group.is_main:
        from impresa.training.finish import finish  # charts and metrics, which the steps need not wait for

        finish(given, parts, output_dir, group, spent, as_shared=config)


@contextmanager
def trial(config: ExperimentConfig, num_processes: int | None = None) -> Iterator[tuple[Parts, Training, int]]:
    """A training run in this process that writes nothing, as one of `num_processes`; and that number, which is that of
    the processes that the run itself starts if it is None."""
    config = prepare(config)
    world_size = num_processes or processes_to_start(config.trainer)
    use_deterministic_algorithms(config.trainer.deterministic)
    group = join_group(config.trainer)
    planned = replace(config.trainer, devices=num_processes or config.trainer.devices)
    _check_device(replace(config, trainer=planned), group)
    with explained(config):
        parts = build_parts(config, run_dir=None, world_size=world_size)
        _check_model(parts, config, group)
        with (
            compiled(parts.model, config.trainer.compile),
            closing(set_up(config, parts, group, num_shares=world_size)) as training,
        ):
            yield parts, training, world_size


def _check_device(config: ExperimentConfig, group: Group) -> None:
    """Refuse what this device cannot do, and name the keys that are set and have no effect, once."""
    check_precision(config.optimization.precision, group.device)
    check_compiler(config.trainer.compile, group.device)
    for line in notices(config) if group.is_main else ():
        logger.warning(line)


def _check_model(parts: Parts, config: ExperimentConfig, group: Group) -> None:
    """Refuse what this model cannot have, before anything is written."""
    check_optimizer(parts.model, config.optimization, group.device)
    modules_to_compile(parts.model, config.trainer.compile)
    if config.trainer.strategy == "fsdp":
        from impresa.training.sharding import check_can_share

        check_can_share(parts.model)


def fit(config: ExperimentConfig, parts: Parts, run_dir: Path, checkpoint: Checkpoint, group: Group) -> Spent:
    """Train from `checkpoint` to the end of the plan; the model in `parts` has the best weights then.

    Returns:
        What the run has cost.
    """
    leave_cores_to_workers(config.dataset.num_workers)
    training = set_up(config, parts, group, checkpoint)
    state, plan = training.state, training.plan
    costs = CostMeter(checkpoint.get("cost", {}), peak_flops(group.device, config.optimization.precision))
    loggers = build_loggers(config, run_dir, checkpoint.get("step", 0)) if group.is_main else []
    recorder = Recorder(plan, loggers, costs.utilisation)
    monitor = Monitor(config.trainer, plan.total_steps)

    def content() -> dict[str, Any]:
        length = {"total_steps": plan.total_steps, "warmup_steps": training.schedule.warmup_steps}
        seen = {"losses": recorder.losses(), "monitored": monitor.points(), "cost": costs.spent().model_dump()}
        return {**state.checkpoint(), "data": _position(training), **length, **seen}

    checkpoints = Checkpoints(config.trainer.checkpoint, run_dir, plan, group, content)
    if checkpoint:
        state.restore(checkpoint)
        recorder.resume(checkpoint["losses"])
        checkpoints.resume(checkpoint["scores"])
        monitor.resume(checkpoint["monitored"])
    progress = ProgressReport(plan.total_steps, shown=group.is_main)
    watch = training.task.watch(training.schedule.warmup_steps, group)
    success = False
    with GracefulStop() as stop, _ending_as_asked(stop, checkpoints), closing(training):
        try:
            with checkpoints:
                if state.step < plan.total_steps and not monitor.is_exhausted:
                    if parts.data.kept_sources:
                        keeper = FeatureKeeper(config, parts.preprocessing.image, state, group, stop)
                        keeper.keep(parts.data.kept_sources)
                    with Watchdog(config.trainer.timeout_minutes) as watchdog:
                        checkpoints.check_names(validate(training, TRIAL_BATCHES))
                        run_steps(
                            training,
                            recorder=recorder,
                            costs=costs,
                            progress=progress,
                            watch=watch,
                            monitor=monitor,
                            checkpoints=checkpoints,
                            stop=stop,
                            watchdog=watchdog,
                        )
            success = True
        finally:
            progress.stop()
            recorder.close(success=success)
    if monitor.is_exhausted and state.step < plan.total_steps:
        logger.warning(monitor.why_stopped(state.step))
    spent = costs.spent()
    _take_best(parts, state, checkpoints.best, config.seed)
    return spent


@contextmanager
def _ending_as_asked(stop: GracefulStop, checkpoints: Checkpoints) -> Iterator[None]:
    """Raise the end that the user or a scheduler asked for, which may come in the midst of any other, and a divergence
    with the last good checkpoint."""
    try:
        yield
    except (TrainingInterrupted, RuntimeError) as reason:
        # Ctrl-C ends data workers too, and torch may notice that (RuntimeError) before the loop sees the request.
        if not (stop.requested or isinstance(reason, TrainingInterrupted)):
            raise
        raise (Requeue if stop.is_of_scheduler else KeyboardInterrupt) from None
    except DivergedError as error:
        raise TrainingError(*error.lines[:-1], f"{error.lines[-1]}; {_last_good(checkpoints)}") from error


def _take_best(parts: Parts, state: TrainState, best: Path | None, seed: int) -> None:
    """Give the model in `parts` the weights of the best checkpoint, or the last ones where none is kept; in the first
    process, for the others are done. A model that is shared out is built again, whole."""
    shares, is_main = state.group.shares_model, state.group.is_main
    last = state.gathered() if shares and best is None else None
    if not is_main:
        return
    if shares:
        parts.model = parts.built_again(seed)
    if best is not None:
        take_best(parts.model, read_checkpoint(best))
    elif last is not None:
        take_best(parts.model, last)
    elif state.average is not None:
        state.average.swap()


def _last_good(checkpoints: Checkpoints) -> str:
    last = newest_checkpoint(checkpoints.directory)
    if last is None:
        return "there is no checkpoint yet"
    return f"the last good checkpoint is {last} (step {read_checkpoint(last)['step']})"


def set_up(
    config: ExperimentConfig,
    parts: Parts,
    group: Group,
    checkpoint: Checkpoint | None = None,
    num_shares: int | None = None,
) -> Training:
    """Loaders, plan, schedule and a fresh state.

    Data and warm-up continue those of `checkpoint`; `num_shares` processes share the data, those of the group if it is
    None.
    """
    shares, before = num_shares or group.world_size, checkpoint or {}
    plan = _plan(config, parts, shares)
    return Training(
        config=config,
        task=parts.task,
        train_loader=parts.data.train_loader(group.rank, shares, before.get("data")),
        val_loader=parts.data.val_loader(group.rank, shares),
        plan=plan,
        schedule=make_schedule(config.optimization, plan, before.get("warmup_steps")),
        group=group,
        state=TrainState(parts.model, config.optimization, group),
    )


def _plan(config: ExperimentConfig, parts: Parts, world_size: int) -> Plan:
    return make_plan(config.trainer, parts.data.num_train_batches(world_size))


def _position(training: Training) -> dict[str, Any]:
    """The position in the data after the current step. It follows from the step: the loader may be ahead of it."""
    epoch, steps = divmod(training.state.step, training.plan.steps_per_epoch)
    accumulated = training.config.trainer.accumulate_grad_batches
    place = {"epoch": epoch, "next_batch": steps * accumulated, "accumulated": accumulated}
    return {**training.train_loader.position(), **place}


def _prepare(
    run_dir: Path, config: ExperimentConfig, parts: Parts, command: Sequence[str], checkpoint: Checkpoint
) -> None:
    """Write what is known before the first step."""
    if checkpoint:
        environment = read_environment(run_dir)
        environment.pop("finished", None)  # a run that is made longer
        resumption = Resumption(time=now(), step=checkpoint["step"], command=list(command))
        environment["resumed"] = [*environment.get("resumed", []), resumption]
        write_environment(run_dir, environment)
    else:
        clear(run_dir)
        write_environment(run_dir, describe_environment(command, config.seed))
    save_start(run_dir, config, parts.preprocessing)
