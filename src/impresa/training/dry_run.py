"""Build everything and run one optimizer step, to see whether a config would train; nothing is written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from impresa.config.experiment import ExperimentConfig
from impresa.config.runs import prepare
from impresa.training.distributed import join_group, processes_to_start, use_deterministic_algorithms
from impresa.training.loop import Training, steps_of, train_step, validate
from impresa.training.parts import Parts, build_parts
from impresa.training.progress import memory_in_use
from impresa.training.run import set_up


def dry_run(config: ExperimentConfig) -> str:
    """Run one optimizer step and one validation batch, in this process alone.

    Returns:
        A summary for people: parameters of each part, data, steps, device, memory.

    Raises:
        ImpresaError: what `train` would raise up to there.
    """
    config = prepare(config)
    world_size = processes_to_start(config.trainer)
    use_deterministic_algorithms(config.trainer.deterministic)
    parts = build_parts(config, run_dir=None)
    training = set_up(config, parts, join_group(config.trainer), num_shares=world_size)
    train_step(training, next(steps_of(training.train_loader, config.trainer.accumulate_grad_batches)))
    return "\n".join(_summary(parts, training, world_size, validate(training, num_batches=1)))


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
