"""A dry run: a few seconds of steps that write nothing, and all that they tell of the whole run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from torch import nn

from impresa.config.experiment import ExperimentConfig
from impresa.config.origin import towers_in_words
from impresa.decoders.quantization import num_weights
from impresa.run_dir.cost import data_size, duration
from impresa.tasks.base import TrainableModel
from impresa.training.checkpoints import check_names
from impresa.training.costs import FlopCounter, utilisation
from impresa.training.exchange import Exchange, exchange
from impresa.training.logs import memory_in_use
from impresa.training.loop import Training
from impresa.training.memory import ActivationMeter, Memory, memory_of, num_bytes
from impresa.training.parts import Parts
from impresa.training.peaks import TOLD, peak_flops
from impresa.training.plan import Plan
from impresa.training.run import trial
from impresa.training.timing import Pace, measure

_FLOAT32 = 4
_ROW_OF_METRICS, _ROW_OF_EVENTS = 300, 1500
"""Bytes of the metrics of a step in `metrics.csv` and in TensorBoard's file, as tiny runs have them."""


@dataclass(frozen=True)
class Weights:
    """Numbers of parameters."""

    parameters: int
    trainable: int

    @property
    def frozen(self) -> int:
        return self.parameters - self.trainable


@dataclass(frozen=True)
class Speed:
    """Of all devices together, if several lose nothing to each other."""

    samples_per_second: float
    tokens_per_second: float
    """Of texts, without padding."""
    flops_per_sample: float
    """Of forward and backward pass, with what is computed twice to save memory."""
    mfu: float | None
    """Share of the devices' peak that is made use of, without what is computed twice; None where it is not known."""
    peak_flops: float | None
    """Of one device."""


@dataclass(frozen=True)
class Disk:
    """Bytes that the run directory takes in the end."""

    checkpoint: int
    num_checkpoints: int
    """At most: the best, and the last."""
    model: int
    logs: int
    """Of metrics, reckoned."""

    @property
    def total(self) -> int:
        return self.checkpoint * self.num_checkpoints + self.model + self.logs


@dataclass(frozen=True)
class DryRun:
    """All findings; sizes in bytes are those of one process."""

    towers: Mapping[str, str]
    """Where each tower below a decoder comes from."""
    parts: Mapping[str, Weights]
    model: Weights
    facts: Mapping[str, str]
    num_train: int
    num_val: int
    batch_size: int
    num_devices: int
    accumulated: int
    vocab_size: int
    steps_per_epoch: int
    total_steps: int
    warmup_steps: int
    device: str
    peak_memory: str
    memory: Memory
    pace: Pace
    speed: Speed
    disk: Disk
    exchange: Exchange | None
    """None on one device."""
    validation: tuple[str, ...]
    """Names of its metrics."""
    features: str | None
    """Folder of `dataset.cache_features`."""


def dry_run(config: ExperimentConfig, num_devices: int | None = None) -> DryRun:
    """Build everything, make a few seconds of steps and validate a batch in this process; nothing is written.

    Args:
        config: the experiment.
        num_devices: plan for so many, which need not be here; None: for those that the run itself would use.

    Raises:
        ImpresaError: as `impresa.training.run.train` does.
    """
    with trial(config, num_devices) as (parts, training, world_size):
        flops, activations = FlopCounter(), ActivationMeter(training.state)
        # What a compiler makes of the activations is not seen from outside.
        meters = (flops, activations) if training.config.trainer.compile == "off" else (flops,)
        pace, metrics = measure(training, *meters)
        if metrics:  # the first of many processes may have no batch of a short validation
            check_names(training.config.trainer.checkpoint, metrics)
        memory = memory_of(training.state, activations.most if len(meters) > 1 else None)
        num_first = pace.first_samples
        speed = _speed(training, pace, flops.flops / num_first, flops.useful / num_first, world_size)
        return _found(parts, training, world_size, _Measured(pace, memory, speed, tuple(sorted(metrics))))


class _Measured(NamedTuple):
    """Measurements of the steps."""

    pace: Pace
    memory: Memory
    speed: Speed
    metrics: tuple[str, ...]


def _speed(training: Training, pace: Pace, flops: float, useful: float, num_devices: int) -> Speed:
    samples, tokens = (num_devices * each / pace.step_seconds for each in (pace.samples_per_step, pace.tokens_per_step))
    peak = peak_flops(training.group.device, training.config.optimization.precision)
    share = None if peak is None else utilisation(useful * samples, peak, num_devices)
    return Speed(samples, tokens, flops, share, peak)


def _found(parts: Parts, training: Training, world_size: int, measured: _Measured) -> DryRun:
    config, plan, data = training.config, training.plan, parts.data
    memory = measured.memory
    is_sharded = config.trainer.strategy == "fsdp" and world_size > 1
    return DryRun(
        towers=towers_in_words(config) if config.decoder is not None else {},
        parts={name: _weights(part) for name, part in parts.model.named_children()},
        model=_weights(parts.model),
        facts=parts.model.facts(),
        num_train=len(data.train_source),
        num_val=len(data.val_source),
        batch_size=config.dataset.batch_size,
        num_devices=world_size,
        accumulated=config.trainer.accumulate_grad_batches,
        vocab_size=parts.preprocessing.tokenizer.vocab_size,
        steps_per_epoch=plan.steps_per_epoch,
        total_steps=plan.total_steps,
        warmup_steps=training.schedule.warmup_steps,
        device=str(training.group.device),
        peak_memory=memory_in_use(),
        memory=memory.divided(world_size) if is_sharded else memory,
        pace=measured.pace,
        speed=measured.speed,
        disk=_disk(config, parts.model, plan, training),
        exchange=(
            exchange(config, world_size, weights=memory.weights, gradients=memory.gradients) if world_size > 1 else None
        ),
        validation=measured.metrics,
        features=config.dataset.cache_features if data.kept_sources else None,
    )


def _weights(part: nn.Module) -> Weights:
    return Weights(num_weights(part), num_weights(part, trainable=True))


def _disk(config: ExperimentConfig, model: TrainableModel, plan: Plan, training: Training) -> Disk:
    kept, due = config.trainer.checkpoint, range(1, plan.total_steps + 1)
    num_validations = sum(map(plan.evaluates_after, due))
    best = num_validations if kept.save_top_k < 0 else min(kept.save_top_k, num_validations)
    if kept.save_top_k < 0:  # keeps those between the validations, too
        best += sum(plan.saves_after(step) and not plan.evaluates_after(step) for step in due)
    row = _ROW_OF_METRICS + (_ROW_OF_EVENTS if config.trainer.logging.tensorboard else 0)
    stored = model.state_to_save().values()
    return Disk(
        checkpoint=num_bytes(training.state.checkpoint()),
        num_checkpoints=best + kept.save_last,
        model=sum(t.numel() * (_FLOAT32 if t.is_floating_point() else t.element_size()) for t in stored),
        logs=row * (sum(map(plan.logs_after, due)) + num_validations),
    )


def lines(found: DryRun) -> Iterator[str]:
    """The findings for people."""
    for name, text in found.towers.items():
        yield _line(name, text)
    for name, weights in found.parts.items():
        yield _line(name, _in_words(weights))
    for name, fact in found.facts.items():
        yield _line(name, fact)
    yield _line("in all", _in_words(found.model))
    yield _line("data", f"{found.num_train} samples to train on, {found.num_val} to validate")
    batch = f"{found.batch_size} x {found.num_devices} x {found.accumulated}"
    yield _line("batch", f"{batch} (samples x devices x accumulated)")
    yield _line("vocabulary", f"{found.vocab_size} tokens")
    yield _line("steps", f"{found.steps_per_epoch} per epoch, {found.total_steps} in all")
    yield _line("warm-up", f"{found.warmup_steps} steps")
    yield _line("device", found.device)
    yield _line("memory", f"{found.peak_memory} at most in these steps")
    yield _line("on each device", _memory_in_words(found.memory))
    yield _line("work", f"{found.speed.flops_per_sample / 1e9:.3g} GFLOP a sample, forward and backward")
    yield _line("speed", _speed_in_words(found))
    step_time, run_time = duration(found.pace.step_seconds), duration(found.pace.training_seconds)
    yield _line("time", f"{step_time} for a step, some {run_time} for the run")
    yield _line("disk", _disk_in_words(found.disk))
    if found.exchange is not None:
        yield _line("exchange", _exchange_in_words(found.exchange, found.num_devices))
    if found.features is not None:
        steps = "its steps take less than these"
        yield _line("features", f"a run encodes each image once, into {found.features}, and {steps}")
    yield _line("validation", ", ".join(found.validation))
    num_made = found.pace.num_steps + 1
    yield f"dry run: {'one step was' if num_made == 1 else f'{num_made} steps were'} made, nothing was written"


def _line(name: str, text: str) -> str:
    return f"{name + ':':<16}{text}"


def _in_words(weights: Weights) -> str:
    frozen = f", {weights.frozen:,} of them frozen" if weights.frozen else ""
    return f"{weights.parameters:>14,} parameters{frozen}"


def _memory_in_words(memory: Memory) -> str:
    parts = {
        "weights": memory.weights,
        "gradients": memory.gradients,
        "optimizer": memory.optimizer,
        "average": memory.average or None,
        "activations": memory.activations,
    }
    return ", ".join(f"{name} {data_size(number)}" for name, number in parts.items() if number is not None)


def _speed_in_words(found: DryRun) -> str:
    speed = found.speed
    said = f"{speed.samples_per_second:,.1f} samples/s, {speed.tokens_per_second:,.0f} tokens/s"
    if found.num_devices > 1:
        said += f" if {found.num_devices} devices lose nothing"
    if speed.mfu is None or speed.peak_flops is None:
        return f"{said}; MFU unknown, as the device's peak is ({TOLD} says it)"
    return f"{said}; MFU {speed.mfu:.1%} of {speed.peak_flops / 1e12:g} TFLOP/s"


def _disk_in_words(disk: Disk) -> str:
    each = f"{disk.num_checkpoints} checkpoints of {data_size(disk.checkpoint)}"
    return f"{data_size(disk.total)}: {each}, the model {data_size(disk.model)}, metrics {data_size(disk.logs)}"


def _exchange_in_words(found: Exchange, num_devices: int) -> str:
    kinds = {
        "all-reduced": found.all_reduced,
        "reduce-scattered": found.reduce_scattered,
        "gathered": found.all_gathered,
    }
    said = ", ".join(f"{data_size(number)} {kind}" for kind, number in kinds.items() if number)
    return f"{data_size(found.sent(num_devices))} sent by each device in a step ({said})"
