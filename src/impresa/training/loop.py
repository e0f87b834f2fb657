"""The training loop: optimizer steps, and what follows each of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice, repeat
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from impresa.config.experiment import ExperimentConfig
from impresa.data.loading import BatchLoader
from impresa.encoders.memory import unread
from impresa.tasks.base import Task
from impresa.tasks.validation import StepWatch
from impresa.training.checkpoints import Checkpoints
from impresa.training.costs import CostMeter
from impresa.training.distributed import Group, in_step, no_sync
from impresa.training.guards import SpikeWatch, refuse_divergence
from impresa.training.logs import ProgressReport, Recorder
from impresa.training.monitor import Monitor
from impresa.training.plan import Plan
from impresa.training.processes import GracefulStop, TrainingInterrupted
from impresa.training.schedule import Schedule
from impresa.training.state import TrainState
from impresa.training.watchdog import Watchdog

B = TypeVar("B")


@dataclass(frozen=True)
class Training:
    """The parts of a training run."""

    config: ExperimentConfig
    task: Task
    train_loader: BatchLoader[Any]
    val_loader: BatchLoader[Any]
    plan: Plan
    schedule: Schedule
    group: Group
    state: TrainState

    def close(self) -> None:
        """End the data workers."""
        self.train_loader.close()
        self.val_loader.close()


def run_steps(
    training: Training,
    *,
    recorder: Recorder,
    costs: CostMeter,
    progress: ProgressReport,
    watch: StepWatch,
    monitor: Monitor,
    checkpoints: Checkpoints,
    stop: GracefulStop,
    watchdog: Watchdog,
) -> None:
    """Train from the current step to the end of the plan, or to where the monitor's patience ends.

    Raises:
        TrainingInterrupted: the user stopped the run; the state is saved.
        TrainingError: the training diverged.
    """
    plan, group, state = training.plan, training.group, training.state
    recorder.speed.restart()
    progress.start(state.step)
    spikes = SpikeWatch(group)
    steps = steps_of(training.train_loader, training.config.trainer.accumulate_grad_batches)
    for batches in islice(steps, plan.total_steps - state.step):
        num_samples = sum(map(len, batches)) * group.world_size
        with costs.step(num_samples, group.world_size):
            logs = train_step(training, batches)
        step = state.step
        watchdog.beat(step)
        recorder.train(step, num_samples, logs, sum(batch.num_tokens for batch in batches) * group.world_size)
        progress.train(step, num_samples, logs)
        watch.after_step(step, batches, logs)
        spikes.after_step(step, batches, logs)
        metrics = None
        if plan.evaluates_after(step):
            with recorder.speed.paused(), progress.speed.paused(), costs.paused():
                metrics = validate(training, watchdog=watchdog)
            recorder.validation(step, metrics)
            progress.validation(step, metrics)
            monitor.after_validation(step, metrics)
        checkpoints.after_step(step, metrics, is_last=monitor.is_exhausted)
        watchdog.beat()
        if group.any(stop.requested):
            stop.is_of_scheduler = group.any(stop.is_of_scheduler)  # all processes end alike
            checkpoints.save_last()
            checkpoints.wait()
            raise TrainingInterrupted
        if monitor.is_exhausted:
            return


def steps_of(loader: Iterable[B], accumulate: int) -> Iterator[list[B]]:
    """The batches of each optimizer step, without end: `accumulate` of them, or what is left of an epoch of the data.

    Each iteration over `loader` gives one epoch, the first what is left of the epoch that was begun.
    """
    while True:
        batches = iter(loader)
        while step := list(islice(batches, accumulate)):
            yield step


def train_step(training: Training, batches: Sequence[Any]) -> dict[str, Tensor]:
    """One optimizer step over `batches`.

    Returns:
        Scalars of the whole step, over all its batches and processes, which a GPU may still be computing: `loss` and
        the other logs of the model (means over the samples, or over the tokens of their answers), those of the task,
        `lr`, the rates of parts that have one of their own (`lr_fusion`, ...), that of the lowest layer, and
        `gradient_norm`.
    """
    config, group, state = training.config, training.group, training.state
    seed_step(config.seed, state.step, group.rank)
    weights = training.task.loss_weights(batches, group)
    means: dict[str, Tensor] = {}
    sums: dict[str, Tensor] = {}
    losses: list[Tensor] = []
    for number, (batch, weight) in enumerate(zip(batches, weights, strict=True), start=1):
        remembered = nullcontext() if len(batch) else unread()
        with no_sync(state.wrapped, number < len(batches)), remembered:
            output = state.precision.forward(state.wrapped, batch)
            state.precision.scaler.scale(output.loss * weight).backward()
        losses.append(output.loss.detach())
        scalars = {**output.logs, "loss": losses[-1]}
        _add(means, {name: value * (weight / group.world_size) for name, value in scalars.items()})
        _add(sums, training.task.train_sums(output))
    totals = group.sums({**means, **sums})
    loss = totals["loss"]
    rates = _set_learning_rates(training)
    norm = _clip_gradients(training)
    value = refuse_divergence(
        config,
        group,
        state.step + 1,
        batches=batches,
        losses=losses,
        loss=loss,
        norm=norm,
        may_overflow=state.precision.scaler.is_enabled(),
    )
    state.precision.scaler.step(state.optimizer)  # skips the step, and lowers its scale, where float16 overflowed
    state.precision.scaler.update()
    state.optimizer.zero_grad()
    state.step += 1
    state.model.commit(state.step)  # type: ignore[operator]
    if state.average is not None:
        state.average.update(state.step)
    logs = {name: totals[name] for name in means} | {"loss": torch.tensor(value)}
    return {**logs, **training.task.train_logs(totals), **rates, "gradient_norm": norm}


def validate(training: Training, num_batches: int | None = None, watchdog: Watchdog | None = None) -> dict[str, float]:
    """Metrics of the validation data, or of their first batches."""
    state, group = training.state, training.group
    validation = training.task.validation(group)
    batches: Iterable[Any] = islice(training.val_loader, num_batches)
    with state.evaluating():
        for batch, counts in in_step(batches, group) if group.shares_model else zip(batches, repeat(True)):
            output = state.precision.forward(state.model, batch)
            if counts:
                validation.add(batch, output)
            if watchdog is not None:
                watchdog.beat()
    return validation.metrics()


def _add(totals: dict[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Add each value to the total of its name."""
    for name, value in values.items():
        totals[name] = totals[name] + value if name in totals else value


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch for one optimizer step, so that dropout depends on nothing but (seed, step, rank). Nothing else draws
    from torch's generator in a step, so that without dropout the number of processes changes nothing."""
    digest = hashlib.blake2b(f"{seed}/{step}/{rank}".encode(), digest_size=8).digest()
    torch.manual_seed(int.from_bytes(digest, "little"))


def _set_learning_rates(training: Training) -> dict[str, Tensor]:
    """Set every group's learning rate for the coming step; returns `lr` and those of other keys."""
    step, schedule = training.state.step + 1, training.schedule
    rates = {"lr": schedule.learning_rate(step, training.config.optimization.lr)}
    for group in training.state.optimizer.param_groups:
        group["lr"] = schedule.learning_rate(step, group["peak_lr"]) * group["lr_scale"]
        if group["key"] is not None:
            rates[group["key"]] = group["lr"]
    return {key: torch.tensor(rate) for key, rate in rates.items()}


def _clip_gradients(training: Training) -> Tensor:
    """Clip the gradients, which are averaged over processes then; returns their norm before."""
    optimizer = training.state.optimizer
    training.state.precision.scaler.unscale_(optimizer)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    limit = training.config.optimization.clip_grad or float("inf")
    if training.group.shares_model:
        from impresa.training.sharding import complete_gradients

        return complete_gradients(parameters, limit, training.group)
    return nn.utils.clip_grad_norm_(parameters, limit)
