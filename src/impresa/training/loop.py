"""The training loop: optimizer steps, and what follows each of them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from impresa.config.experiment import ExperimentConfig
from impresa.data.loading import BatchLoader
from impresa.errors import TrainingError
from impresa.tasks.base import Task
from impresa.tasks.validation import StepWatch
from impresa.training.checkpoints import Checkpoints
from impresa.training.distributed import Group, gradients_stay_here
from impresa.training.interrupt import GracefulStop, TrainingInterrupted
from impresa.training.plan import Plan
from impresa.training.progress import ProgressReport
from impresa.training.recorder import Recorder
from impresa.training.schedule import Schedule
from impresa.training.state import TrainState

B = TypeVar("B")

TRIAL_BATCHES = 2
"""Batches that are validated before the first step: which metrics are there, and can the data be read?"""


@dataclass(frozen=True)
class Training:
    """What a training run consists of."""

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
    progress: ProgressReport,
    watch: StepWatch,
    checkpoints: Checkpoints,
    stop: GracefulStop,
) -> None:
    """Train from the step at hand to the end of the plan.

    Args:
        training: what is trained, and how.
        recorder: writes metrics down.
        progress: shows them.
        watch: looks for training runs that do not learn.
        checkpoints: keeps the best states and the last.
        stop: knows whether the user wants the run to end.

    Raises:
        TrainingInterrupted: the user wanted it to end; the state is saved.
        TrainingError: it diverged.
    """
    plan, group, state = training.plan, training.group, training.state
    checkpoints.check_names(validate(training, TRIAL_BATCHES))
    recorder.speed.resume()
    progress.start(state.step)
    steps = steps_of(training.train_loader, training.config.trainer.accumulate_grad_batches)
    for batches in islice(steps, plan.total_steps - state.step):
        logs = train_step(training, batches)
        step, num_samples = state.step, sum(map(len, batches)) * group.world_size
        recorder.train(step, num_samples, logs)
        progress.train(step, num_samples, logs)
        watch.look(step, batches, logs)
        metrics = None
        if plan.evaluates_after(step):
            with recorder.speed.paused(), progress.speed.paused():
                metrics = validate(training)
            recorder.validation(step, metrics)
            progress.validation(step, metrics)
        checkpoints.after_step(step, metrics)
        if group.any(stop.requested):
            checkpoints.save_last()
            raise TrainingInterrupted


def steps_of(loader: Iterable[B], accumulate: int) -> Iterator[list[B]]:
    """The batches of one optimizer step after the other, without end.

    Batches are never added up over the border of two epochs of the data: the last step of an epoch has what is left.

    Args:
        loader: iterating it gives what is left of an epoch of the data; iterating it again gives the next epoch.
        accumulate: batches of one step.
    """
    while True:
        batches = iter(loader)
        while step := list(islice(batches, accumulate)):
            yield step


def train_step(training: Training, batches: Sequence[Any]) -> dict[str, Tensor]:
    """One optimizer step over `batches`.

    Returns:
        Scalars, which may still be under way on a GPU: `loss` (mean over the samples, or over the tokens of their
        answers), what model and task log of the last batch, `lr` and `gradient_norm`.
    """
    config, group, state = training.config, training.group, training.state
    seed_step(config.seed, state.step, group.rank)
    loss = torch.zeros((), device=group.device)
    weights = training.task.loss_weights(batches, group)
    for number, (batch, weight) in enumerate(zip(batches, weights, strict=True), start=1):
        with gradients_stay_here(state.wrapped, number < len(batches)):
            with state.precision.autocast():
                output = state.wrapped(_placed(training, batch))
            _backward(state, output.loss * weight)
        loss += output.loss.detach() * weight
    loss = group.mean(loss)
    lr = _set_learning_rates(training)
    norm = _clip_gradients(training)
    _refuse_divergence(training, batches, loss, norm)
    _optimize(state)
    state.step += 1
    state.model.commit(state.step)  # type: ignore[operator]
    if state.average is not None:
        state.average.update(state.step)
    logs = {name: value for name, value in output.logs.items() if name != "loss"} | training.task.train_logs(output)
    return {"loss": loss, **logs, "lr": torch.tensor(lr), "gradient_norm": norm}


def validate(training: Training, num_batches: int | None = None) -> dict[str, float]:
    """Metrics of the validation data, or of their first batches."""
    state, validation = training.state, training.task.validation(training.group)
    with state.evaluating():
        for batch in islice(training.val_loader, num_batches):
            with state.precision.autocast():
                output = state.model(_placed(training, batch))
            validation.add(batch, output)
    return validation.metrics()


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch for one optimizer step, so that dropout depends on nothing but (seed, step, rank)."""
    digest = hashlib.blake2b(f"{seed}/{step}/{rank}".encode(), digest_size=8).digest()
    torch.manual_seed(int.from_bytes(digest, "little"))


def _placed(training: Training, batch: Any) -> Any:
    """The batch on the device, in the numbers of the computation."""
    return training.state.precision.prepare_batch(batch.to(training.group.device, non_blocking=True))


def _backward(state: TrainState, loss: Tensor) -> None:
    scaler = state.precision.scaler
    (loss if scaler is None else scaler.scale(loss)).backward()


def _set_learning_rates(training: Training) -> float:
    """Set every group's learning rate for the coming step; returns that of a group at `optimization.lr`."""
    step = training.state.step + 1
    for group in training.state.optimizer.param_groups:
        group["lr"] = training.schedule.learning_rate(step, group["peak_lr"])
    return training.schedule.learning_rate(step, training.config.optimization.lr)


def _clip_gradients(training: Training) -> Tensor:
    """Clip the gradients, which are complete and averaged over processes; returns their norm before."""
    optimizer, scaler = training.state.optimizer, training.state.precision.scaler
    if scaler is not None:
        scaler.unscale_(optimizer)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return nn.utils.clip_grad_norm_(parameters, training.config.optimization.clip_grad or float("inf"))


def _optimize(state: TrainState) -> None:
    """Move the weights; a loss scale that was too high skips the step and is lowered."""
    if state.precision.scaler is None:
        state.optimizer.step()
    else:
        state.precision.scaler.step(state.optimizer)
        state.precision.scaler.update()
    state.optimizer.zero_grad()


def _refuse_divergence(training: Training, batches: Sequence[Any], loss: Tensor, norm: Tensor) -> None:
    """Stop before weights become NaN. It is the one place where a step waits for the GPU."""
    loss_is_finite, norm_is_finite = torch.stack((loss, norm.to(loss))).isfinite().tolist()
    if loss_is_finite and (norm_is_finite or training.state.precision.scaler is not None):
        return  # the loss is a mean over processes: all of them stop or none
    step, optimization = training.state.step + 1, training.config.optimization
    for batch in () if loss_is_finite else batches:
        if batch.image is not None and not batch.image.isfinite().all():
            bad = [name for name, image in zip(batch.ids, batch.image, strict=True) if not image.isfinite().all()]
            raise TrainingError(f"step {step}: not finite pixels in {', '.join(bad)}; remove these images")
    what = "the gradient is not finite" if loss_is_finite else f"the loss is {loss.item()}"
    fix = f"lower optimization.lr ({optimization.lr:g}) or lengthen optimization.warmup_epochs"
    if optimization.clip_grad == 0:
        fix += ", and clip gradients (optimization.clip_grad=1)"
    if optimization.precision == "16-mixed":
        fix += "; float16 overflows easily: optimization.precision=bf16-mixed does not"
    raise TrainingError(f"step {step}: {what}, most likely because the steps are too large; {fix}")
