"""The training loop: optimizer steps, and what follows each of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from impresa.config.experiment import ExperimentConfig
from impresa.config.optimization import warmup_key
from impresa.data.loading import BatchLoader
from impresa.errors import TrainingError
from impresa.tasks.base import Task
from impresa.tasks.validation import StepWatch
from impresa.training.checkpoints import Checkpoints
from impresa.training.costs import CostMeter
from impresa.training.distributed import Group, no_sync
from impresa.training.logs import ProgressReport, Recorder
from impresa.training.monitor import Monitor
from impresa.training.plan import Plan
from impresa.training.processes import GracefulStop, TrainingInterrupted
from impresa.training.schedule import Schedule
from impresa.training.state import TrainState

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
) -> None:
    """Train from the current step to the end of the plan, or to where the monitor's patience ends.

    Raises:
        TrainingInterrupted: the user stopped the run; the state is saved.
        TrainingError: the training diverged.
    """
    plan, group, state = training.plan, training.group, training.state
    recorder.speed.restart()
    progress.start(state.step)
    steps = steps_of(training.train_loader, training.config.trainer.accumulate_grad_batches)
    for batches in islice(steps, plan.total_steps - state.step):
        num_samples = sum(map(len, batches)) * group.world_size
        with costs.step(num_samples, group.world_size):
            logs = train_step(training, batches)
        step = state.step
        recorder.train(step, num_samples, logs)
        progress.train(step, num_samples, logs)
        watch.after_step(step, batches, logs)
        metrics = None
        if plan.evaluates_after(step):
            with recorder.speed.paused(), progress.speed.paused(), costs.paused():
                metrics = validate(training)
            recorder.validation(step, metrics)
            progress.validation(step, metrics)
            monitor.after_validation(step, metrics)
        checkpoints.after_step(step, metrics, is_last=monitor.is_exhausted)
        if group.any(stop.requested):
            checkpoints.save_last()
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
    for number, (batch, weight) in enumerate(zip(batches, weights, strict=True), start=1):
        with no_sync(state.wrapped, number < len(batches)):
            output = state.precision.forward(state.wrapped, batch)
            state.precision.scaler.scale(output.loss * weight).backward()
        scalars = {**output.logs, "loss": output.loss.detach()}
        _add(means, {name: value * (weight / group.world_size) for name, value in scalars.items()})
        _add(sums, training.task.train_sums(output))
    totals = group.sums({**means, **sums})
    loss = totals["loss"]
    rates = _set_learning_rates(training)
    norm = _clip_gradients(training)
    _refuse_divergence(training, batches, loss, norm)
    state.precision.scaler.step(state.optimizer)  # skips the step, and lowers its scale, where float16 overflowed
    state.precision.scaler.update()
    state.optimizer.zero_grad()
    state.step += 1
    state.model.commit(state.step)  # type: ignore[operator]
    if state.average is not None:
        state.average.update(state.step)
    logs = {name: totals[name] for name in means}
    return {**logs, **training.task.train_logs(totals), **rates, "gradient_norm": norm}


def validate(training: Training, num_batches: int | None = None) -> dict[str, float]:
    """Metrics of the validation data, or of their first batches."""
    state, validation = training.state, training.task.validation(training.group)
    with state.evaluating():
        for batch in islice(training.val_loader, num_batches):
            validation.add(batch, state.precision.forward(state.model, batch))
    return validation.metrics()


def _add(totals: dict[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Add each value to the total of its name."""
    for name, value in values.items():
        totals[name] = totals[name] + value if name in totals else value


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch for one optimizer step, so that dropout depends on nothing but (seed, step, rank)."""
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
    """Clip the gradients, which are complete and averaged over processes; returns their norm before."""
    optimizer = training.state.optimizer
    training.state.precision.scaler.unscale_(optimizer)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return nn.utils.clip_grad_norm_(parameters, training.config.optimization.clip_grad or float("inf"))


def _refuse_divergence(training: Training, batches: Sequence[Any], loss: Tensor, norm: Tensor) -> None:
    """Stop before weights become NaN. Nothing else in a step waits for the GPU."""
    loss_is_finite, norm_is_finite = torch.stack((loss, norm.to(loss))).isfinite().tolist()
    if loss_is_finite and (norm_is_finite or training.state.precision.scaler.is_enabled()):
        return  # the loss is a mean over processes: all of them stop or none
    step, optimization = training.state.step + 1, training.config.optimization
    for batch in () if loss_is_finite else batches:
        if batch.image is not None and not batch.image.isfinite().all():
            bad = [name for name, image in zip(batch.ids, batch.image, strict=True) if not image.isfinite().all()]
            raise TrainingError(f"step {step}: not finite pixels in {', '.join(bad)}; remove these images")
    what = "the gradient is not finite" if loss_is_finite else f"the loss is {loss.item()}"
    fix = f"lower optimization.lr ({optimization.lr:g}) or lengthen {warmup_key(optimization)}"
    if optimization.clip_grad == 0:
        fix += ", and clip gradients (optimization.clip_grad=1)"
    if optimization.precision == "16-mixed":
        fix += "; float16 overflows easily: optimization.precision=bf16-mixed does not"
    raise TrainingError(f"step {step}: {what}, most likely because the steps are too large; {fix}")
