"""Build everything and run one optimizer step, to see whether a config would train; nothing is written."""

from __future__ import annotations

from collections.abc import Iterator

from lightning.pytorch import Trainer

from impresa.config.experiment import ExperimentConfig
from impresa.config.runs import prepare
from impresa.training.module import TrainingModule
from impresa.training.parts import Parts, build_parts
from impresa.training.progress import memory_in_use
from impresa.training.run import Start, join
from impresa.training.trainer import build_trainer


def dry_run(config: ExperimentConfig) -> str:
    """Run one optimizer step and one validation batch.

    Returns:
        A summary for people: parameters of each part, data, steps, device, memory.

    Raises:
        ImpresaError: what `train` would raise up to there.
    """
    config = prepare(config)
    parts = build_parts(config, run_dir=None)
    once = {"logger": False, "enable_checkpointing": False, "limit_train_batches": 1, "limit_val_batches": 1}
    trainer = build_trainer(config, None, callbacks=[], max_epochs=1, num_sanity_val_steps=0, **once)
    module, steps = join(config, parts, trainer, Start())
    trainer.fit(module, steps, parts.data.val_dataloader())
    return "\n".join(_summary(parts, module, trainer))


def _summary(parts: Parts, module: TrainingModule, trainer: Trainer) -> Iterator[str]:
    plan, data, config = module.plan, parts.data, module.config
    for name, number in parts.parameters():
        yield f"{name + ':':<16}{number:>14,} parameters"
    yield f"{'in all:':<16}{parts.num_parameters:>14,} parameters"
    batch = f"{config.dataset.batch_size} x {trainer.world_size} x {config.trainer.accumulate_grad_batches}"
    yield f"data:           {len(data.train_source)} samples to train on, {len(data.val_source)} to validate"
    yield f"batch:          {batch} (samples x devices x accumulated)"
    yield f"vocabulary:     {parts.preprocessing.tokenizer.vocab_size} tokens"
    yield f"steps:          {plan.steps_per_epoch} per epoch, {plan.total_steps} in all"
    yield f"warm-up:        {module.schedule.warmup_steps} steps"
    yield f"device:         {trainer.strategy.root_device}"
    yield f"memory:         {memory_in_use()} after one step"
    yield f"validation:     {', '.join(sorted(trainer.callback_metrics))}"
    yield "dry run: one step was made, nothing was written"
