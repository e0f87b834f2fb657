"""The smallest experiment that has everything a training can get wrong, and one finished run of it."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path

import pytest

from impresa.config import ExperimentConfig, load_experiment
from shared_folder import shared_folder

TINY = (
    *("dataset.image_size=16", "dataset.batch_size=4", "dataset.augmentation=clip"),
    *("dataset.shapes.num_train=18", "dataset.shapes.num_val=8", "dataset.shapes.num_test=8"),
    *("vision_encoder.dim=16", "vision_encoder.depth=1", "vision_encoder.num_heads=2", "vision_encoder.drop_rate=0.1"),
    *("vision_encoder.embed_dim=16", "vision_encoder.memory.dim=16", "vision_encoder.memory.num_memory_tokens=2"),
    *("vision_encoder.memory.mem_reinit_steps=4", "text_encoder.embed_dim=16"),
    *("text_encoder.dim=16", "text_encoder.depth=1", "text_encoder.num_heads=2", "text_encoder.drop_rate=0.1"),
    *("vision_encoder.patch_size=8", "vision_encoder.memory.enabled=true", "dataset.num_workers=0"),
    *("optimization.lr=1e-3", "optimization.min_lr=1e-6", "optimization.warmup_epochs=1"),
    *("trainer.epochs=3", "trainer.accumulate_grad_batches=2"),
    *("trainer.logging.eval_interval=100", "trainer.logging.save_interval=100"),
    *("trainer.logging.log_interval=2", "trainer.logging.tensorboard=false", "trainer.accelerator=cpu"),
)
"""18 samples in batches of 4, two for each step: 5 batches and 3 steps an epoch, the last batch and step smaller.
What the tests count on is set here, so that `shapes` can be tuned."""
HEARING = (
    *("audio_encoder.backbone=spectrogram", "audio_encoder.dim=16", "audio_encoder.depth=1"),
    *("audio_encoder.num_heads=2", "audio_encoder.embed_dim=16", "audio_encoder.audio_max_seconds=0.3"),
)
"""An audio tower beside the others."""

STEPS_PER_EPOCH = 3


def tiny_experiment(*overrides: str) -> ExperimentConfig:
    """`shapes` made tiny."""
    return load_experiment("shapes", [*TINY, *overrides])


@cache
def finished_run() -> Path:
    """A run of `tiny_experiment()`, trained once for all tests of a process; not to be changed."""
    from impresa.training.run import train

    folder = shared_folder()
    return train(tiny_experiment(), folder / "run", command=["impresa", "train", "shapes"])


def dry_run_of(config: ExperimentConfig) -> str:
    """The text of a dry run."""
    from impresa.training.dry_run import dry_run, lines

    return "\n".join(lines(dry_run(config)))


def without_charts(patch: pytest.MonkeyPatch) -> None:
    """Let trainings leave out the report's charts, which take longer than the tiny training itself."""
    finished_run()  # this one has them
    patch.setattr("impresa.training.finish.write_report", lambda run_dir: run_dir / "report.html")


def copy_of_run(target: Path) -> Path:
    """A copy of the finished run that a test may damage."""
    shutil.copytree(finished_run(), target)
    return target
